// ALIAS's kernels against fp64: storage types, sizes, forms, schedules of steps, inputs on the device.
#include "alias_support.h"

namespace sage_ext {
namespace {

using testing::AliasInputs;
using testing::AliasProblem;
using testing::cuda_alias_step;
using testing::cuda_step_and_check;
using testing::cuda_steps_and_check;
using testing::DeviceScalars;
using testing::kAliasOptions;
using testing::make_alias;
using testing::Mix;
using testing::Random;

using Offsets = std::array<int64_t, 4>;  // of W, g, the gradient before it, and the planes

std::vector<Mix> grad_mixes() {
  std::vector<Mix> mixes;
  for (const DType param : testing::kDTypes) {
    for (const DType grad : testing::kDTypes) mixes.push_back({param, grad, grad});
  }
  return mixes;
}

// All forms and gaps.
class CudaAlias : public ::testing::TestWithParam<AliasOptions> {};

TEST_P(CudaAlias, EveryMixOfDTypes) {
  for (const Mix& mix : grad_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    AliasProblem problem = make_alias(GetParam(), mix, {777, 1, 31, 32, 33, 4097}, 1);
    ASSERT_NO_FATAL_FAILURE(cuda_steps_and_check(problem, 4));
  }
}

TEST_P(CudaAlias, SizesAroundAChunkAndEmptyTensors) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    AliasProblem problem =
        make_alias(GetParam(), mix, {0, 255, 256, 257, 0, 0, 16383, 16384, 16385, 1, 65535, 65536, 65537, 2, 0}, 2);
    ASSERT_NO_FATAL_FAILURE(cuda_steps_and_check(problem, 2));
  }
}

TEST_P(CudaAlias, MisalignedPointers) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat, Mix{DType::bfloat16, DType::float32, DType::float32}}) {
    for (const Offsets& offsets :
         {Offsets{1, 1, 1, 1}, {3, 0, 0, 0}, {0, 3, 0, 0}, {0, 0, 1, 0}, {0, 0, 0, 1}, {1, 3, 5, 1}, {4, 4, 4, 2}}) {
      SCOPED_TRACE(testing::describe(mix) + ", g " + std::to_string(offsets[1]) + " elements past a boundary");
      AliasProblem problem = make_alias(GetParam(), mix, {1, 31, 33, 777, 16389}, 3, offsets);
      ASSERT_NO_FATAL_FAILURE(cuda_steps_and_check(problem, 2));
    }
  }
}

TEST_P(CudaAlias, ManySmallTensors) {
  std::vector<int64_t> sizes(1000, 5);
  for (size_t i = 0; i < sizes.size(); i += 7) sizes[i] = static_cast<int64_t>(i % 67);
  AliasProblem problem = make_alias(GetParam(), testing::kBFloat, sizes, 4);
  // And some of another mix.
  AliasProblem others = make_alias(GetParam(), testing::kFloat, {sizes.begin(), sizes.begin() + 40}, 5);
  for (testing::AliasTensorProblem& t : others.tensors) problem.tensors.push_back(std::move(t));
  ASSERT_NO_FATAL_FAILURE(cuda_steps_and_check(problem, 2));
}

TEST_P(CudaAlias, InputsOfEveryKind) {
  for (const double weight_decay : {0.0, 0.3}) {
    for (const double factor : {1.0, -1.0, 1.0 / 1024}) {
      for (const bool as_tensors : {false, true}) {
        AliasOptions options = GetParam();
        options.weight_decay = weight_decay;
        options.warmup_steps = 2;
        AliasProblem problem = make_alias(options, testing::kFloat, {1000, 33}, 5);
        Random random(50);
        // The factor may be another in every step, as with a growing loss scale.
        for (const double times : {1.0, 0.5, 0.5, 4.0}) {
          problem.fill_grads(random);
          const AliasInputs inputs{static_cast<double>(2e-4f), 2.5, factor * times};
          ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problem, inputs, as_tensors));
        }
      }
    }
  }
}

TEST_P(CudaAlias, WarmUpAndRareUpdates) {
  for (const int64_t warmup_steps : {0, 1, 2, 100}) {
    for (const int64_t update_every : {1, 2, 3}) {
      AliasOptions options = GetParam();
      options.warmup_steps = warmup_steps;
      options.update_every = update_every;
      options.max_step = 1e-2;
      SCOPED_TRACE(testing::describe(options));
      AliasProblem problem = make_alias(options, testing::kBFloat, {300, 33, 0}, 6);
      ASSERT_NO_FATAL_FAILURE(cuda_steps_and_check(problem, 8));
    }
  }
}

// With the same batch twice a step: record and move; then look at the gradient at the new point. In both,
// `update_every` is without meaning.
TEST_P(CudaAlias, TheSameBatchTwice) {
  for (const int64_t update_every : {1, 3}) {
    AliasProblem problem = make_alias(GetParam(), testing::kBFloat, {300, 4097}, 7);
    problem.options.update_every = update_every;
    for (int step = 0; step < 3; ++step) {
      problem.options.phase = AliasPhase::move;
      ASSERT_NO_FATAL_FAILURE(cuda_steps_and_check(problem, 1));
      problem.options.phase = AliasPhase::refresh;
      ASSERT_NO_FATAL_FAILURE(cuda_steps_and_check(problem, 1));
    }
    EXPECT_EQ(problem.shared().step, 3.0);
    EXPECT_GT(problem.shared().eta, 0.0);
  }
}

// eta = 0 at first: the step is the largest one. What lies in the memory of the last gradient is not looked at.
TEST_P(CudaAlias, TheFirstStep) {
  AliasProblem problem = make_alias(GetParam(), testing::kFloat, {1000}, 8);
  std::memset(problem.tensors[0].signs.data(), 0xa5, 128);
  cuda_alias_step(problem);
  EXPECT_EQ(problem.shared().step_size, 1e-3);
  EXPECT_EQ(problem.shared().eta, 0.0);
  EXPECT_EQ(problem.shared().gap, 0.0);
  EXPECT_EQ(problem.shared().d, GetParam().descent ? 0.0 : 2.25);
}

TEST_P(CudaAlias, WithoutAMoveEtaStays) {
  AliasOptions options = GetParam();
  options.warmup_steps = 3;
  AliasProblem problem = make_alias(options, testing::kFloat, {1000, 31}, 9);
  for (const double lr : {0.0, 0.0, 1e-3, 1e-3}) {
    const double eta = problem.shared().eta, last = problem.shared().displacement;
    ASSERT_NO_FATAL_FAILURE(cuda_steps_and_check(problem, 1, {.lr = lr}));
    if (last == 0.0) {
      EXPECT_EQ(problem.shared().eta, eta);
    }
    if (lr == 0.0) {
      EXPECT_EQ(problem.shared().displacement, 0.0);
    }
  }
  EXPECT_GT(problem.shared().eta, 0.0);
}

TEST_P(CudaAlias, ZeroGradients) {
  for (const double zero : {0.0, -0.0}) {
    AliasProblem problem = make_alias(GetParam(), testing::kBFloat, {300}, 10);
    problem.options.weight_decay = 0.0;
    const std::vector<std::byte> before = problem.tensors[0].param.bytes();
    for (int step = 0; step < 3; ++step) {
      fill(problem.tensors[0].grad, zero);
      ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problem));
    }
    EXPECT_EQ(problem.tensors[0].param.bytes(), before);
    EXPECT_EQ(problem.shared().displacement, 0.0);
  }
}

// In vectors and in the tail. A NaN and an infinity end up in the scalars as they do in plain arithmetic: sign(NaN) =
// 0, and 0 times infinity is a NaN.
TEST_P(CudaAlias, NonFiniteGradients) {
  for (const double value : {testing::kNaN, testing::kInf, -testing::kInf}) {
    for (const int64_t place : {0, 77, 255, 256, 300, 301}) {
      for (const int when : {0, 1}) {
        // Each storage type meets every place in both steps, with one value or another.
        const Mix& mix = (place + when + (value > 0 ? 1 : 0)) % 2 == 0 ? testing::kFloat : testing::kBFloat;
        SCOPED_TRACE(std::to_string(value) + " at " + std::to_string(place) + " in step " + std::to_string(when));
        AliasProblem problem = make_alias(GetParam(), mix, {33, 302, 20}, 11);
        Random random(12);
        for (int step = 0; step < 3; ++step) {
          problem.fill_grads(random);
          if (step == when) problem.tensors[1].grad.set(place, value);
          ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problem));
        }
      }
    }
  }
}

// Subnormal numbers, the largest ones, and what the factor on load makes 0 or infinite; parameters that are not finite.
TEST_P(CudaAlias, SpecialValues) {
  for (const Mix& mix : grad_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    for (const double factor : {1.0, 0x1p-20, -0x1p20}) {
      AliasProblem problem = make_alias(GetParam(), mix, {403}, 13);
      for (int step = 0; step < 2; ++step) {
        int64_t at = 0;
        for (const double value : {1e-40, -1e-44, 6e-8, -0.0, 1e30, -1e30}) {
          for (const int64_t place : {at, 402 - at}) problem.tensors[0].grad.set(place, value);
          ++at;
        }
        ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problem, {.grad_factor = factor}));
      }
      for (const double value : {testing::kInf, testing::kNaN}) {
        for (const int64_t place : {100, 400}) problem.tensors[0].param.set(place, value);
        ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problem, {.grad_factor = factor}));
        EXPECT_TRUE(std::isnan(problem.shared().displacement));
      }
    }
  }
}

// As large as FusedALIAS's docstring says they may be, and of another sign in every step.
TEST_P(CudaAlias, LargestGradients) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    AliasProblem problem = make_alias(GetParam(), mix, {1031, 33}, 12);
    for (const double value : {6e35, -6e35, 6e35}) {
      for (testing::AliasTensorProblem& t : problem.tensors) testing::fill(t.grad, value);
      ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problem));
    }
    EXPECT_TRUE(std::isfinite(problem.shared().eta) && std::isfinite(problem.shared().gap));
  }
}

TEST_P(CudaAlias, NothingToDo) {
  for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{}, {0, 0}}) {
    AliasProblem problem = make_alias(GetParam(), testing::kFloat, sizes, 14);
    for (int step = 0; step < 3; ++step) ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problem));
    EXPECT_EQ(problem.shared().step, 3.0);
  }
}

TEST_P(CudaAlias, FoundInfChangesNothing) {
  for (const AliasPhase phase : {AliasPhase::step, AliasPhase::move, AliasPhase::refresh}) {
    AliasProblem problem = make_alias(GetParam(), testing::kBFloat, {777, 0, 40000}, 15);
    problem.options.update_every = 2;
    ASSERT_NO_FATAL_FAILURE(cuda_steps_and_check(problem, 2));
    problem.options.phase = phase;
    const std::vector<std::byte> before = problem.bytes();
    const auto launches =
        testing::launches_of([&] { cuda_alias_step(problem, {}, DeviceScalars(1e-2, 1.0, false, 1.0f).get()); });
    EXPECT_EQ(before, problem.bytes());
    for (const simt::Launch& launch : launches) EXPECT_EQ(launch.bytes_read + launch.bytes_written, 0u);
  }
}

// Nobody else can see that the first step has no loss: it must not pass for one of 0.
TEST_P(CudaAlias, WithoutALossTheFirstStepIsNaN) {
  if (GetParam().descent) GTEST_SKIP() << "takes no loss";
  AliasProblem problem = make_alias(GetParam(), testing::kFloat, {777, 33}, 17);
  problem.shared().eta = 1.0;
  cuda_alias_step(problem, cuda::AliasLoss{}, DeviceScalars(1e-2, 1.0, false).get());
  EXPECT_TRUE(std::isnan(problem.shared().d));
  EXPECT_TRUE(std::isnan(problem.shared().step_size));
  for (const testing::AliasTensorProblem& t : problem.tensors) {
    for (int64_t i = 0; i < t.param.numel(); ++i) ASSERT_TRUE(std::isnan(t.param[i])) << i;
  }
  AliasProblem later = make_alias(GetParam(), testing::kFloat, {777, 33}, 17);
  later.shared().eta = later.shared().d = later.shared().step = 1.0;
  cuda_alias_step(later, cuda::AliasLoss{}, DeviceScalars(1e-2, 1.0, false).get());
  EXPECT_EQ(later.shared().d, 1.0);
  EXPECT_TRUE(std::isfinite(later.tensors[0].param[0]));
}

// Sums whose terms differ by 2^24, in turns of a thread: fp32 would lose the small ones. All numbers are powers of two,
// so that the exact sums are known.
TEST_P(CudaAlias, SumsAreExactWhereTheyCanBe) {
  const AliasForm form = GetParam().form;
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    AliasProblem problem = make_alias(GetParam(), mix, {65536 + 333}, 16);
    testing::AliasTensorProblem& t = problem.tensors[0];
    problem.options.max_step = 0x1p-10;
    problem.options.weight_decay = 0x1p9;  // halves the parameters
    const auto is_large = [](int64_t i) { return i / 2048 % 2 == 0; };
    // First the gradient before: its sign is 1.
    for (int64_t i = 0; i < t.grad.numel(); ++i) t.grad.set(i, is_large(i) ? 0x1p25 : 2.0);
    cuda_alias_step(problem);
    double sum = 0.0;
    for (int64_t i = 0; i < t.grad.numel(); ++i) {
      t.grad.set(i, is_large(i) ? 0x1p24 : 1.0);
      sum += t.grad[i];
    }
    problem.shared().displacement = 1.0;
    cuda_alias_step(problem);
    if (GetParam().descent) {
      EXPECT_EQ(problem.shared().gap, 0x1p-10 * sum);
    }
    if (form != AliasForm::extrema) {  // of the gradient before, which was twice this one, it has twice the sum
      EXPECT_EQ(problem.shared().eta, form == AliasForm::base ? sum : 3 * sum);
    }
    // And without a gradient the parameters move by the same numbers.
    fill(t.grad, 0.0);
    for (int64_t i = 0; i < t.grad.numel(); ++i) t.param.set(i, is_large(i) ? 0x1p25 : 2.0);
    problem.options.warmup_steps = 100;
    cuda_alias_step(problem, {.lr = 0x1p-10});
    EXPECT_EQ(problem.shared().displacement, form == AliasForm::extrema ? sum : 0x1p24);
  }
}

INSTANTIATE_TEST_SUITE_P(Forms, CudaAlias, ::testing::ValuesIn(testing::alias_forms()));

}  // namespace
}  // namespace sage_ext
