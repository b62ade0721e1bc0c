// Lion's kernel against fp64 and against the bits of the CPU's: storage types, sizes, options, launches.
#include "cuda/lion.h"
#include "device_scalars.h"
#include "launches.h"
#include "lion_problem.h"

namespace sage_ext {
namespace {

using cpu::LionOptions;
using testing::DeviceScalars;
using testing::kLionOptions;
using testing::launches_of;
using testing::LionExpected;
using testing::LionProblem;
using testing::make_lion;
using testing::Mix;
using testing::names_of;
using testing::Random;

using Offsets = std::array<int64_t, 3>;  // of W, g and the momentum

void cuda_step(std::vector<LionProblem>& problems, const LionOptions& options, const cuda::StepScalars& scalars) {
  std::vector<cuda::LionTensor> tensors;
  for (LionProblem& p : problems) {
    tensors.push_back({p.param.data(), p.grad.data(), p.exp_avg.data(), p.param.numel(), p.param.dtype(),
                       p.grad.dtype(), p.exp_avg.dtype()});
  }
  cuda::lion_step(tensors, {options.beta1, options.beta2, options.weight_decay}, scalars, nullptr);
}

void cuda_step(std::vector<LionProblem>& problems, const LionOptions& options) {
  cuda_step(problems, options, DeviceScalars(options.lr, options.grad_factor).get());
}

// One step here, one on the CPU with the same numbers, and one in fp64.
void step_and_check(std::vector<LionProblem>& problems, const LionOptions& options, bool lr_tensor = false) {
  std::vector<LionExpected> expected;
  std::vector<LionProblem> on_cpu;
  for (const LionProblem& p : problems) {
    expected.emplace_back(p, options);
    LionProblem& copy = on_cpu.emplace_back(Mix{p.param.dtype(), p.grad.dtype(), p.exp_avg.dtype()}, p.param.numel());
    copy.param.assign(p.param.bytes());
    copy.grad.assign(p.grad.bytes());
    copy.exp_avg.assign(p.exp_avg.bytes());
  }
  cuda_step(problems, options, DeviceScalars(options.lr, options.grad_factor, lr_tensor).get());
  lion_step(views(on_cpu), options, 1);
  for (size_t i = 0; i < problems.size(); ++i) {
    SCOPED_TRACE("tensor " + std::to_string(i));
    ASSERT_TRUE(matches(problems[i].param, expected[i].param)) << "param";
    ASSERT_TRUE(matches(problems[i].exp_avg, expected[i].exp_avg)) << "exp_avg";
    ASSERT_TRUE(same_bits(problems[i].param, on_cpu[i].param)) << "param";
    ASSERT_TRUE(same_bits(problems[i].exp_avg, on_cpu[i].exp_avg)) << "exp_avg";
    ASSERT_EQ(problems[i].grad.bytes(), on_cpu[i].grad.bytes());
  }
}

TEST(CudaLion, EveryMixOfDTypes) {
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    std::vector<LionProblem> problems = make_lion(mix, {777, 1, 31, 4097}, 1);
    for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kLionOptions));
  }
}

TEST(CudaLion, MisalignedPointers) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat, Mix{DType::bfloat16, DType::float32, DType::float16}}) {
    // All equally, which keeps to vectors; g alone; the parameter alone; each by another number.
    for (const Offsets& offsets : {Offsets{1, 1, 1}, {3, 3, 3}, {0, 1, 0}, {0, 3, 0}, {3, 0, 0}, {1, 3, 5}}) {
      SCOPED_TRACE(testing::describe(mix) + ", g " + std::to_string(offsets[1]) + " elements past a boundary");
      std::vector<LionProblem> problems = make_lion(mix, {1, 2, 31, 777, 16389}, 2, offsets);
      ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kLionOptions));
    }
  }
}

TEST(CudaLion, SizesAroundAChunkAndEmptyTensors) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    std::vector<LionProblem> problems =
        make_lion(mix, {0, 16383, 1, 0, 0, 16384, 16385, 31, 65535, 65536, 65537, 2, 0}, 3);
    for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kLionOptions));
  }
}

// A chunk starts where the parameter's vectors do, and the elements before them are block 0's as well.
TEST(CudaLion, SizesAroundAChunkOffTheBoundary) {
  std::vector<LionProblem> problems = make_lion(testing::kBFloat, {16384, 16391, 16392, 32775}, 4, Offsets{1, 1, 1});
  ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kLionOptions));
}

TEST(CudaLion, MoreTensorsThanATableHolds) {
  std::vector<int64_t> sizes(1000, 5);
  sizes[500] = sizes[999] = 0;
  std::vector<LionProblem> problems = make_lion(testing::kFloat, sizes, 5);
  const auto launches = launches_of([&] { ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kLionOptions)); });
  ASSERT_EQ(launches.size(), 2u);
  EXPECT_EQ(launches[0].grid.x + launches[1].grid.x, 998u);
}

TEST(CudaLion, Options) {
  for (const double weight_decay : {0.0, 0.3}) {
    for (const double factor : {1.0, -1.0, 1.0 / 1024, -0.5}) {
      for (const double beta1 : {0.0, 0.9}) {
        for (const bool lr_tensor : {false, true}) {
          LionOptions options = kLionOptions;
          options.lr = static_cast<double>(1e-2f);
          options.weight_decay = weight_decay;
          options.grad_factor = factor;
          options.beta1 = beta1;
          std::vector<LionProblem> problems = make_lion(testing::kFloat, {1000}, 6);
          for (int step = 0; step < 3; ++step) {
            ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options, lr_tensor));
          }
        }
      }
    }
  }
}

// A learning rate that changes between two replays of a graph changes the decay too.
TEST(CudaLion, TheTensorOfTheLearningRateCounts) {
  LionOptions options = kLionOptions;
  options.lr = 0.25;
  std::vector<LionProblem> host = make_lion(testing::kFloat, {1000}, 7);
  std::vector<LionProblem> tensor = make_lion(testing::kFloat, {1000}, 7);
  cuda_step(host, options);
  cuda_step(tensor, options, DeviceScalars(options.lr, 1.0, /*lr_tensor=*/true).get());
  EXPECT_EQ(host[0].param.bytes(), tensor[0].param.bytes());
}

TEST(CudaLion, NothingToDo) {
  std::vector<LionProblem> none;
  std::vector<LionProblem> empty = make_lion(testing::kFloat, {0, 0}, 8);
  EXPECT_TRUE(launches_of([&] {
                cuda_step(none, kLionOptions);
                cuda_step(empty, kLionOptions);
              }).empty());
}

TEST(CudaLion, FoundInfChangesNothing) {
  for (const float found_inf : {1.0f, 3.0f}) {
    std::vector<LionProblem> problems = make_lion(testing::kBFloat, {777, 0, 40000}, 9);
    std::vector<std::byte> before, after;
    for (const LionProblem& p : problems) {
      append(before, p.param);
      append(before, p.exp_avg);
    }
    const auto launches =
        launches_of([&] { cuda_step(problems, kLionOptions, DeviceScalars(1e-2, 1.0, false, found_inf).get()); });
    for (const LionProblem& p : problems) {
      append(after, p.param);
      append(after, p.exp_avg);
    }
    EXPECT_EQ(before, after);
    for (const simt::Launch& launch : launches) EXPECT_EQ(launch.bytes_read + launch.bytes_written, 0u);
  }
}

TEST(CudaLion, ZeroGradientAndMomentumStayPut) {
  LionOptions options = kLionOptions;
  options.weight_decay = 0.0;
  std::vector<LionProblem> problems = make_lion(testing::kBFloat, {1000}, 10);
  fill(problems[0].grad, 0.0);
  fill(problems[0].exp_avg, 0.0);
  const std::vector<std::byte> before = problems[0].param.bytes();
  ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options));
  EXPECT_EQ(problems[0].param.bytes(), before);
}

TEST(CudaLion, TinyAndHugeGradients) {
  for (const DType grad : {DType::float32, DType::bfloat16}) {
    for (const double scale : {1e-20, 1e20}) {
      std::vector<LionProblem> problems = make_lion({DType::float32, grad, DType::float32}, {1000}, 11);
      fill(problems[0].exp_avg, 0.0);
      for (int64_t i = 0; i < 1000; ++i) problems[0].grad.set(i, problems[0].grad[i] * scale);
      ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kLionOptions));
    }
  }
}

// In vectors, in the tail, and in every operand: NaN, infinities, zeros of both signs, subnormal numbers.
TEST(CudaLion, SpecialValues) {
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    std::vector<LionProblem> problems = make_lion(mix, {403}, 12);
    LionProblem& p = problems[0];
    int64_t at = 0;
    for (const double value : {testing::kNaN, testing::kInf, -testing::kInf, 0.0, -0.0, 6e-8, 1e-40, 65504.0, 3e38}) {
      for (const int64_t place : {at, 402 - at}) {
        p.grad.set(place, value);
        p.exp_avg.set(place / 2 + 100, value);
        p.param.set(place / 2 + 150, value);
      }
      ++at;
    }
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kLionOptions));
    // sign(NaN) = 0: the parameter only decays, the momentum is NaN from here on.
    EXPECT_FALSE(std::isnan(p.param[0]));
    EXPECT_TRUE(std::isnan(p.exp_avg[0]));
    EXPECT_FALSE(std::isnan(p.param[402]));
    EXPECT_TRUE(std::isnan(p.exp_avg[402]));
  }
}

TEST(CudaLionLaunches, OneForEachMix) {
  std::vector<LionProblem> problems = make_lion(testing::kFloat, {100, 40000, 0, 3}, 13);
  auto launches = launches_of([&] { cuda_step(problems, kLionOptions); });
  ASSERT_EQ(names_of(launches), std::vector<std::string>{"lion"});
  EXPECT_EQ(launches[0].grid.x, 1u + 3u + 1u);
  for (LionProblem& p : make_lion(testing::kBFloat, {100, 7}, 13)) problems.push_back(std::move(p));
  launches = launches_of([&] { cuda_step(problems, kLionOptions); });
  EXPECT_EQ(names_of(launches), (std::vector<std::string>{"lion", "lion"}));
}

// W, g and m in, W and m out, and nothing else; whatever the alignment.
TEST(CudaLionLaunches, ExactBytes) {
  for (const Mix& mix : testing::all_mixes()) {
    for (const Offsets& offsets : {Offsets{0, 0, 0}, {0, 1, 0}}) {
      SCOPED_TRACE(testing::describe(mix));
      std::vector<LionProblem> problems = make_lion(mix, {20000, 777}, 14, offsets);
      const auto launches = launches_of([&] { cuda_step(problems, kLionOptions); });
      ASSERT_EQ(launches.size(), 1u);
      const int64_t w = itemsize(mix.param), g = itemsize(mix.grad), m = itemsize(mix.state);
      EXPECT_EQ(launches[0].bytes_read, static_cast<uint64_t>(20777 * (w + g + m)));
      EXPECT_EQ(launches[0].bytes_written, static_cast<uint64_t>(20777 * (w + m)));
      EXPECT_EQ(launches[0].uniform_bytes, 4 * launches[0].grid.x);  // found_inf
    }
  }
}

TEST(CudaLionLaunches, AccessesAreCoalesced) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    SCOPED_TRACE(testing::describe(mix));
    std::vector<LionProblem> aligned = make_lion(mix, {65536}, 15);
    simt::Launch launch = launches_of([&] { cuda_step(aligned, kLionOptions); }, true).back();
    EXPECT_EQ(launch.sector_efficiency_read(), 1.0);
    EXPECT_EQ(launch.sector_efficiency_written(), 1.0);
    // All off the boundary by as much still go in vectors, after the first few.
    std::vector<LionProblem> shifted = make_lion(mix, {65537}, 15, Offsets{1, 1, 1});
    launch = launches_of([&] { cuda_step(shifted, kLionOptions); }, true).back();
    EXPECT_GT(launch.sector_efficiency_read(), 0.94);
    EXPECT_GT(launch.sector_efficiency_written(), 0.94);
    // A gradient off the boundary: all go element by element, side by side.
    std::vector<LionProblem> odd = make_lion(mix, {65537}, 15, Offsets{0, 1, 0});
    launch = launches_of([&] { cuda_step(odd, kLionOptions); }, true).back();
    EXPECT_GT(launch.sector_efficiency_read(), 0.85);
    EXPECT_GT(launch.sector_efficiency_written(), 0.99);
  }
}

TEST(CudaLionLaunches, AccessesAreCoalescedInEveryMix) {
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    std::vector<LionProblem> problems = make_lion(mix, {65536}, 15);
    const simt::Launch launch = launches_of([&] { cuda_step(problems, kLionOptions); }, true).back();
    EXPECT_EQ(launch.sector_efficiency_read(), 1.0);
    EXPECT_EQ(launch.sector_efficiency_written(), 1.0);
  }
}

TEST(CudaLionLaunches, SchedulesGiveTheSameBits) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    const auto run = [&] {
      std::vector<LionProblem> problems = make_lion(mix, {40003, 5, 0, 777, 16385}, 16, int64_t{1});
      for (int step = 0; step < 2; ++step) cuda_step(problems, kLionOptions);
      std::vector<std::byte> bytes;
      for (const LionProblem& p : problems) {
        append(bytes, p.param);
        append(bytes, p.exp_avg);
      }
      return bytes;
    };
    EXPECT_TRUE(simt::same_under_schedules(run, 5));
  }
}

}  // namespace
}  // namespace sage_ext
