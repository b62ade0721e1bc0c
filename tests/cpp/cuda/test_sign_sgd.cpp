// The kernels of Sign-SGD and Signum against fp64 and against the bits of the CPU's: storage types, sizes, launches.
#include "cuda/sign_sgd.h"
#include "device_scalars.h"
#include "launches.h"
#include "sign_sgd_problem.h"

namespace sage_ext {
namespace {

using cpu::SignSGDOptions;
using testing::bytes_of;
using testing::DeviceScalars;
using testing::kSignSGDOptions;
using testing::kSignumOptions;
using testing::launches_of;
using testing::LionProblem;
using testing::make_lion;
using testing::Mix;
using testing::names_of;
using testing::SignSGDExpected;

using Offsets = std::array<int64_t, 3>;  // of W, g and the momentum

void cuda_step(std::vector<LionProblem>& problems, const SignSGDOptions& options, const cuda::StepScalars& scalars) {
  cuda::sign_sgd_step(testing::sign_sgd_views<cuda::SignSGDTensor>(problems, options.momentum),
                      {options.momentum, options.weight_decay}, scalars, nullptr);
}

void cuda_step(std::vector<LionProblem>& problems, const SignSGDOptions& options) {
  cuda_step(problems, options, DeviceScalars(options.lr, options.grad_factor).get());
}

// One step here, one on the CPU with the same numbers, and one in fp64.
void step_and_check(std::vector<LionProblem>& problems, const SignSGDOptions& options, bool lr_tensor = false) {
  std::vector<SignSGDExpected> expected;
  std::vector<LionProblem> on_cpu;
  for (const LionProblem& p : problems) {
    expected.emplace_back(p, options);
    LionProblem& copy = on_cpu.emplace_back(Mix{p.param.dtype(), p.grad.dtype(), p.exp_avg.dtype()}, p.param.numel());
    copy.param.assign(p.param.bytes());
    copy.grad.assign(p.grad.bytes());
    copy.exp_avg.assign(p.exp_avg.bytes());
  }
  cuda_step(problems, options, DeviceScalars(options.lr, options.grad_factor, lr_tensor).get());
  testing::sign_sgd_step(on_cpu, options, 1);
  for (size_t i = 0; i < problems.size(); ++i) {
    SCOPED_TRACE("tensor " + std::to_string(i));
    ASSERT_TRUE(matches(problems[i].param, expected[i].param)) << "param";
    ASSERT_TRUE(matches(problems[i].exp_avg, expected[i].exp_avg)) << "exp_avg";
    ASSERT_TRUE(same_bits(problems[i].param, on_cpu[i].param)) << "param";
    ASSERT_TRUE(same_bits(problems[i].exp_avg, on_cpu[i].exp_avg)) << "exp_avg";
    ASSERT_EQ(problems[i].grad.bytes(), on_cpu[i].grad.bytes());
  }
}

// Both rules: without momentum, and with it.
class CudaSignSGD : public ::testing::TestWithParam<SignSGDOptions> {};

TEST_P(CudaSignSGD, EveryMixOfDTypes) {
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    std::vector<LionProblem> problems = make_lion(mix, {777, 1, 31, 4097}, 1);
    for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, GetParam()));
  }
}

TEST_P(CudaSignSGD, MisalignedPointers) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat, Mix{DType::bfloat16, DType::float32, DType::float16}}) {
    for (const Offsets& offsets : {Offsets{1, 1, 1}, {0, 1, 0}, {3, 0, 0}, {1, 3, 5}}) {
      SCOPED_TRACE(testing::describe(mix) + ", g " + std::to_string(offsets[1]) + " elements past a boundary");
      std::vector<LionProblem> problems = make_lion(mix, {1, 2, 31, 777, 16389}, 2, offsets);
      ASSERT_NO_FATAL_FAILURE(step_and_check(problems, GetParam()));
    }
  }
}

TEST_P(CudaSignSGD, SizesAroundAChunkAndEmptyTensors) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    std::vector<LionProblem> problems = make_lion(mix, {0, 16383, 1, 0, 0, 16384, 16385, 31, 65537, 2, 0}, 3);
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, GetParam()));
  }
}

TEST_P(CudaSignSGD, Options) {
  for (const double weight_decay : {0.0, 0.3}) {
    for (const double factor : {1.0, -1.0, 1.0 / 1024}) {
      for (const bool lr_tensor : {false, true}) {
        SignSGDOptions options = GetParam();
        options.lr = static_cast<double>(1e-2f);
        options.weight_decay = weight_decay;
        options.grad_factor = factor;
        std::vector<LionProblem> problems = make_lion(testing::kFloat, {1000}, 6);
        for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options, lr_tensor));
      }
    }
  }
}

TEST_P(CudaSignSGD, NothingToDo) {
  std::vector<LionProblem> none;
  std::vector<LionProblem> empty = make_lion(testing::kFloat, {0, 0}, 8);
  EXPECT_TRUE(launches_of([&] {
                cuda_step(none, GetParam());
                cuda_step(empty, GetParam());
              }).empty());
}

TEST_P(CudaSignSGD, FoundInfChangesNothing) {
  std::vector<LionProblem> problems = make_lion(testing::kBFloat, {777, 0, 40000}, 9);
  const std::vector<std::byte> before = bytes_of(problems);
  const auto launches =
      launches_of([&] { cuda_step(problems, GetParam(), DeviceScalars(1e-2, 1.0, false, 1.0f).get()); });
  EXPECT_EQ(before, bytes_of(problems));
  for (const simt::Launch& launch : launches) EXPECT_EQ(launch.bytes_read + launch.bytes_written, 0u);
}

// In vectors, in the tail, and in every operand: NaN, infinities, zeros of both signs, subnormal numbers.
TEST_P(CudaSignSGD, SpecialValues) {
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
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, GetParam()));
    EXPECT_FALSE(std::isnan(p.param[0]));  // sign(NaN) = 0: it only decays
  }
}

// One launch for each mix, in which without momentum the state's dtype does not count. W and g in, W out; with
// momentum m as well; and nothing else, whatever the alignment.
TEST_P(CudaSignSGD, LaunchesAndExactBytes) {
  const bool has_momentum = GetParam().momentum != 0.0;
  const std::string name = has_momentum ? "signum" : "sign_sgd";
  for (const Mix& mix : testing::all_mixes()) {
    for (const Offsets& offsets : {Offsets{0, 0, 0}, {0, 1, 0}}) {
      SCOPED_TRACE(testing::describe(mix));
      std::vector<LionProblem> problems = make_lion(mix, {20000, 777, 0}, 14, offsets);
      const auto launches = launches_of([&] { cuda_step(problems, GetParam()); });
      ASSERT_EQ(names_of(launches), std::vector<std::string>{name});
      const int64_t w = itemsize(mix.param), g = itemsize(mix.grad), m = has_momentum ? itemsize(mix.state) : 0;
      EXPECT_EQ(launches[0].grid.x, 2u + 1u);
      EXPECT_EQ(launches[0].bytes_read, static_cast<uint64_t>(20777 * (w + g + m)));
      EXPECT_EQ(launches[0].bytes_written, static_cast<uint64_t>(20777 * (w + m)));
      EXPECT_EQ(launches[0].uniform_bytes, 4 * launches[0].grid.x);  // found_inf
    }
  }
  std::vector<LionProblem> problems = make_lion(testing::kFloat, {100, 7}, 13);
  for (LionProblem& p : make_lion(testing::kBFloat, {100, 7}, 13)) problems.push_back(std::move(p));
  EXPECT_EQ(names_of(launches_of([&] { cuda_step(problems, GetParam()); })), (std::vector<std::string>{name, name}));
}

TEST_P(CudaSignSGD, AccessesAreCoalesced) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    std::vector<LionProblem> problems = make_lion(mix, {65536}, 15);
    const simt::Launch launch = launches_of([&] { cuda_step(problems, GetParam()); }, true).back();
    EXPECT_EQ(launch.sector_efficiency_read(), 1.0);
    EXPECT_EQ(launch.sector_efficiency_written(), 1.0);
  }
}

TEST_P(CudaSignSGD, SchedulesGiveTheSameBits) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    const auto run = [&] {
      std::vector<LionProblem> problems = make_lion(mix, {40003, 5, 0, 777, 16385}, 16, int64_t{1});
      for (int step = 0; step < 2; ++step) cuda_step(problems, GetParam());
      return bytes_of(problems);
    };
    EXPECT_TRUE(simt::same_under_schedules(run, 5));
  }
}

INSTANTIATE_TEST_SUITE_P(Plain, CudaSignSGD, ::testing::Values(kSignSGDOptions));
INSTANTIATE_TEST_SUITE_P(Signum, CudaSignSGD, ::testing::Values(kSignumOptions));

}  // namespace
}  // namespace sage_ext
