// AdamW's kernel against fp64 and against the bits of the CPU's: storage types, sizes, options, step counters.
#include "adamw_problem.h"
#include "cuda/adamw.h"
#include "device_scalars.h"
#include "launches.h"

namespace sage_ext {
namespace {

using testing::AdamWExpected;
using testing::AdamWOptions;
using testing::AdamWProblem;
using testing::Buffer;
using testing::DeviceScalars;
using testing::launches_of;
using testing::make_adamw;
using testing::Mix;
using testing::names_of;

using Offsets = std::array<int64_t, 4>;  // of W, g and both moments
constexpr AdamWOptions kOptions;
constexpr Buffer AdamWProblem::* kBuffers[] = {&AdamWProblem::param, &AdamWProblem::grad, &AdamWProblem::exp_avg,
                                               &AdamWProblem::exp_avg_sq};
constexpr Mix kFloatState{DType::bfloat16, DType::bfloat16, DType::float32};

// `counters` are the problems' step counters; what they hold is what the step starts from.
void cuda_step(std::vector<AdamWProblem>& problems, const AdamWOptions& options, const cuda::StepScalars& scalars,
               Buffer& counters) {
  std::vector<cuda::AdamWTensor> tensors;
  for (size_t i = 0; i < problems.size(); ++i) {
    AdamWProblem& p = problems[i];
    tensors.push_back({p.param.data(), p.grad.data(), p.exp_avg.data(), p.exp_avg_sq.data(), counters.floats() + i,
                       p.param.numel(), p.param.dtype(), p.grad.dtype(), p.exp_avg.dtype()});
  }
  Buffer workspace(DType::float32, cuda::adamw_workspace_bytes(tensors) / 4);
  fill(workspace, testing::kNaN);
  cuda::adamw_step(tensors, {options.beta1, options.beta2, options.eps, options.weight_decay}, scalars,
                   workspace.data(), nullptr);
}

// The same with the problems' counts, of which this step is one: the counters have to arrive there.
void cuda_step(std::vector<AdamWProblem>& problems, const AdamWOptions& options, bool lr_tensor = false) {
  Buffer counters(DType::float32, static_cast<int64_t>(problems.size()));
  for (size_t i = 0; i < problems.size(); ++i) counters.set(static_cast<int64_t>(i), problems[i].step - 1);
  cuda_step(problems, options, DeviceScalars(options.lr, options.grad_factor, lr_tensor).get(), counters);
  for (size_t i = 0; i < problems.size(); ++i) {
    ASSERT_EQ(counters[static_cast<int64_t>(i)], problems[i].step) << "tensor " << i;
  }
}

std::vector<AdamWProblem> copies(const std::vector<AdamWProblem>& problems) {
  std::vector<AdamWProblem> result;
  for (const AdamWProblem& p : problems) {
    const Mix mix{p.param.dtype(), p.grad.dtype(), p.exp_avg.dtype()};
    AdamWProblem& copy = result.emplace_back(mix, p.param.numel());
    for (Buffer AdamWProblem::* buffer : kBuffers) (copy.*buffer).assign((p.*buffer).bytes());
    copy.step = p.step;
  }
  return result;
}

// One step here and one on the CPU: the same bits.
void step_as_on_cpu(std::vector<AdamWProblem>& problems, const AdamWOptions& options, bool lr_tensor = false) {
  std::vector<AdamWProblem> on_cpu = copies(problems);
  ASSERT_NO_FATAL_FAILURE(cuda_step(problems, options, lr_tensor));
  cpu::adamw_step(views(on_cpu, options), options.grad_factor, 1);
  for (size_t i = 0; i < problems.size(); ++i) {
    for (Buffer AdamWProblem::* buffer : kBuffers) {
      ASSERT_TRUE(same_bits(problems[i].*buffer, on_cpu[i].*buffer)) << "tensor " << i;
    }
  }
}

// And one in fp64.
void step_and_check(std::vector<AdamWProblem>& problems, const AdamWOptions& options, bool lr_tensor = false) {
  std::vector<AdamWExpected> expected;
  for (AdamWProblem& p : problems) {
    ++p.step;
    expected.emplace_back(p, options);
  }
  ASSERT_NO_FATAL_FAILURE(step_as_on_cpu(problems, options, lr_tensor));
  for (size_t i = 0; i < problems.size(); ++i) {
    SCOPED_TRACE("tensor " + std::to_string(i));
    ASSERT_TRUE(matches(problems[i].param, expected[i].param)) << "param";
    ASSERT_TRUE(matches(problems[i].exp_avg, expected[i].exp_avg)) << "exp_avg";
    ASSERT_TRUE(matches(problems[i].exp_avg_sq, expected[i].exp_avg_sq)) << "exp_avg_sq";
  }
}

std::vector<std::byte> bytes_of(const std::vector<AdamWProblem>& problems) {
  std::vector<std::byte> bytes;
  for (const AdamWProblem& p : problems) {
    for (Buffer AdamWProblem::* buffer : kBuffers) append(bytes, p.*buffer);
  }
  return bytes;
}

TEST(CudaAdamW, EveryMixOfDTypes) {
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    std::vector<AdamWProblem> problems = make_adamw(mix, {777, 1, 31, 4097}, 1);
    for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kOptions));
  }
}

TEST(CudaAdamW, MisalignedPointers) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat, kFloatState}) {
    for (const Offsets& offsets :
         {Offsets{1, 1, 1, 1}, {3, 3, 3, 3}, {0, 1, 0, 0}, {0, 3, 0, 0}, {3, 0, 0, 0}, {1, 3, 5, 7}}) {
      SCOPED_TRACE(testing::describe(mix) + ", g off by " + std::to_string(offsets[1]));
      std::vector<AdamWProblem> problems = make_adamw(mix, {1, 2, 31, 777, 16389}, 2, offsets);
      ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kOptions));
    }
  }
}

TEST(CudaAdamW, SizesAroundAChunkAndEmptyTensors) {
  for (const Mix& mix : {testing::kFloat, kFloatState}) {
    std::vector<AdamWProblem> problems =
        make_adamw(mix, {0, 16383, 1, 0, 0, 16384, 16385, 31, 65535, 65536, 65537, 2, 0}, 3);
    for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kOptions));
  }
}

TEST(CudaAdamW, MoreTensorsThanATableHolds) {
  std::vector<int64_t> sizes(1000, 5);
  sizes[400] = sizes[999] = 0;
  std::vector<AdamWProblem> problems = make_adamw(testing::kFloat, sizes, 4);
  const auto launches = launches_of([&] { ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kOptions)); });
  EXPECT_EQ(names_of(launches), (std::vector<std::string>{"cudaMemsetAsync", "adamw", "adamw", "adamw"}));
}

TEST(CudaAdamW, EveryTensorHasItsOwnStepCounter) {
  std::vector<AdamWProblem> problems = make_adamw(testing::kFloat, {100, 0, 40000, 100}, 5);
  for (const size_t i : {1, 2, 3}) problems[i].step = i == 3 ? 100'000 : 7 * static_cast<double>(i);
  for (int step = 0; step < 3; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kOptions));
}

// The last of a tensor's blocks advances the counter, whichever that is; none may have seen the new one.
TEST(CudaAdamW, HundredsOfBlocksAdvanceTheCounterOnce) {
  for (const uint64_t schedule : {0, 1}) {
    simt::Session session({.schedule = schedule});
    std::vector<AdamWProblem> problems = make_adamw(testing::kBFloat, {300 * 16384 - 5, 3}, 6);
    for (AdamWProblem& p : problems) p.step = 3;  // where another count gives other bits
    ASSERT_NO_FATAL_FAILURE(step_as_on_cpu(problems, kOptions));
    EXPECT_EQ(session.launches().back().grid.x, 301u);
  }
}

TEST(CudaAdamW, OptionsOverSteps) {
  for (const bool lr_tensor : {false, true}) {
    for (const double weight_decay : {0.0, 0.3}) {
      for (const double eps : {0.0, 1e-8}) {
        for (const double factor : {1.0, -1.0, 1.0 / 1024}) {
          const AdamWOptions options{
              .lr = static_cast<double>(1e-2f), .eps = eps, .weight_decay = weight_decay, .grad_factor = factor};
          std::vector<AdamWProblem> problems = make_adamw(testing::kFloat, {1000}, 7);
          testing::Random random(70);
          for (int step = 0; step < 4; ++step) {
            ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options, lr_tensor));
            fill_gradient(problems[0].grad, 7, random);
          }
        }
      }
    }
  }
}

TEST(CudaAdamW, NothingToDo) {
  std::vector<AdamWProblem> none;
  EXPECT_TRUE(launches_of([&] { cuda_step(none, kOptions); }).empty());
  std::vector<AdamWProblem> empty = make_adamw(testing::kFloat, {0, 0}, 8);
  ASSERT_NO_FATAL_FAILURE(step_and_check(empty, kOptions));
}

TEST(CudaAdamW, FoundInfChangesNothing) {
  std::vector<AdamWProblem> problems = make_adamw(kFloatState, {777, 0, 40000}, 9);
  for (AdamWProblem& p : problems) p.step = 1;
  ASSERT_NO_FATAL_FAILURE(cuda_step(problems, kOptions));
  const std::vector<std::byte> before = bytes_of(problems);
  Buffer counters(DType::float32, 3);
  fill(counters, 1.0);
  const auto launches =
      launches_of([&] { cuda_step(problems, kOptions, DeviceScalars(1e-2, 1.0, false, 1.0f).get(), counters); });
  EXPECT_EQ(before, bytes_of(problems));
  for (int64_t i = 0; i < 3; ++i) EXPECT_EQ(counters[i], 1.0);
  EXPECT_EQ(launches.back().bytes_read + launches.back().bytes_written, 0u);
}

TEST(CudaAdamW, ZeroGradientStaysPut) {
  for (const double eps : {0.0, 1e-8}) {
    const AdamWOptions options{.eps = eps, .weight_decay = 0.0};
    std::vector<AdamWProblem> problems = make_adamw(kFloatState, {1000}, 10);
    fill(problems[0].grad, 0.0);
    const std::vector<std::byte> before = problems[0].param.bytes();
    for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options));
    EXPECT_EQ(problems[0].param.bytes(), before);
  }
}

std::vector<AdamWProblem> with_gradients_times(const Mix& mix, double scale) {
  std::vector<AdamWProblem> problems = make_adamw(mix, {1000}, 11);
  for (int64_t i = 0; i < 1000; ++i) problems[0].grad.set(i, problems[0].grad[i] * scale);
  return problems;
}

// Squares of 1e-20 vanish in fp32, and those of 1e20 are infinite: so they do on the CPU.
TEST(CudaAdamW, TinyAndHugeGradients) {
  for (const double scale : {1e-12, 1e15}) {
    for (const double eps : {0.0, 1e-8}) {
      std::vector<AdamWProblem> problems = with_gradients_times(testing::kFloat, scale);
      const AdamWOptions options{.eps = eps};
      for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options));
    }
  }
  for (const Mix& mix : {testing::kFloat, kFloatState}) {
    for (const double scale : {1e-20, 1e20}) {
      std::vector<AdamWProblem> problems = with_gradients_times(mix, scale);
      problems[0].step = 1;
      ASSERT_NO_FATAL_FAILURE(step_as_on_cpu(problems, kOptions));
      EXPECT_EQ(testing::count_nan(problems[0].param), 0);
    }
  }
}

// In vectors, in the tail, and in every operand: NaN, infinities, zeros of both signs, subnormal numbers.
TEST(CudaAdamW, SpecialValues) {
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    std::vector<AdamWProblem> problems = make_adamw(mix, {403}, 13);
    AdamWProblem& p = problems[0];
    p.step = 3;
    int64_t at = 0;
    for (const double value : {testing::kNaN, testing::kInf, 0.0, -0.0, 6e-8, 1e-40, 65504.0, 3e38}) {
      for (const int64_t place : {at, 402 - at}) {
        p.grad.set(place, value);
        p.exp_avg.set(place / 2 + 100, value);
        p.exp_avg_sq.set(place / 2 + 125, std::abs(value));
        p.param.set(place / 2 + 150, value);
      }
      ++at;
    }
    ASSERT_NO_FATAL_FAILURE(step_as_on_cpu(problems, kOptions));
    // As in the eager form: NaN stays NaN, and inf / sqrt(inf) is one too.
    for (const int64_t place : {0, 1, 401, 402}) EXPECT_TRUE(std::isnan(p.param[place])) << place;
  }
}

// W, g and the moments in, all but g out. Besides, each block counts itself, and each tensor gets its new step.
TEST(CudaAdamWLaunches, ExactBytes) {
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    std::vector<AdamWProblem> problems = make_adamw(mix, {20000, 0, 777}, 14);
    for (AdamWProblem& p : problems) p.step = 1;
    const auto launches = launches_of([&] { cuda_step(problems, kOptions); });
    ASSERT_EQ(names_of(launches), (std::vector<std::string>{"cudaMemsetAsync", "adamw"}));
    EXPECT_EQ(launches[0].bytes_written, 4u * 3);
    const int64_t w = itemsize(mix.param), g = itemsize(mix.grad), m = itemsize(mix.state);
    ASSERT_EQ(launches[1].grid.x, 2u + 1u + 1u);
    EXPECT_EQ(launches[1].bytes_read, static_cast<uint64_t>(20777 * (w + g + 2 * m) + 4 * 4));
    EXPECT_EQ(launches[1].bytes_written, static_cast<uint64_t>(20777 * (w + 2 * m) + 4 * 4 + 4 * 3));
    EXPECT_EQ(launches[1].uniform_bytes, 4u * 8);  // found_inf and the step, in each block
    EXPECT_EQ(launches[1].atomics, 4u);
  }
}

// But for the counters.
TEST(CudaAdamWLaunches, AccessesAreCoalesced) {
  for (const Mix& mix : {testing::kFloat, kFloatState, Mix{DType::float32, DType::bfloat16, DType::float16}}) {
    std::vector<AdamWProblem> aligned = make_adamw(mix, {65536}, 15);
    aligned[0].step = 1;
    simt::Launch launch = launches_of([&] { cuda_step(aligned, kOptions); }, true).back();
    EXPECT_NEAR(launch.sector_efficiency_read(), 1.0, 0.001);
    EXPECT_NEAR(launch.sector_efficiency_written(), 1.0, 0.001);
    // A gradient off the boundary: element by element, side by side.
    std::vector<AdamWProblem> odd = make_adamw(mix, {65537}, 15, Offsets{0, 1, 0, 0});
    odd[0].step = 1;
    launch = launches_of([&] { cuda_step(odd, kOptions); }, true).back();
    EXPECT_GT(launch.sector_efficiency_read(), 0.9);
    EXPECT_GT(launch.sector_efficiency_written(), 0.99);
  }
}

TEST(CudaAdamWLaunches, SchedulesGiveTheSameBits) {
  for (const Mix& mix : {testing::kFloat, kFloatState}) {
    const auto run = [&] {
      std::vector<AdamWProblem> problems = make_adamw(mix, {40003, 5, 0, 777, 16385}, 16, int64_t{1});
      for (int step = 1; step <= 2; ++step) {
        for (AdamWProblem& p : problems) p.step = step;
        cuda_step(problems, kOptions);
      }
      return bytes_of(problems);
    };
    EXPECT_TRUE(simt::same_under_schedules(run, 5));
  }
}

}  // namespace
}  // namespace sage_ext
