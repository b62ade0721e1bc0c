#include "alias_adam_problem.h"
#include "cpu/alias_adam.h"

namespace sage_ext {
namespace {

using testing::AliasAdamExpected;
using testing::AliasAdamOptions;
using testing::AliasAdamProblem;
using testing::make_alias_adam;
using testing::Mix;
using testing::Random;

constexpr AliasAdamOptions kOptions;

void step(std::vector<AliasAdamProblem>& problems, const AliasAdamOptions& options, int threads) {
  cpu::alias_adam_step(testing::alias_adam_views<cpu::AliasAdamTensor>(problems), options.lr, options.constants(),
                       options.grad_factor, threads);
}

// Some steps, each with gradients of its own.
void steps_and_check(std::vector<AliasAdamProblem>& problems, int steps, const AliasAdamOptions& options = kOptions,
                     int threads = 1) {
  Random random(99);
  for (int i = 0; i < steps; ++i) {
    SCOPED_TRACE("step " + std::to_string(i));
    std::vector<AliasAdamExpected> expected;
    for (const AliasAdamProblem& p : problems) expected.emplace_back(p, options);
    step(problems, options, threads);
    for (size_t t = 0; t < problems.size(); ++t) {
      SCOPED_TRACE("tensor " + std::to_string(t));
      ASSERT_NO_FATAL_FAILURE(expected[t].check(problems[t]));
    }
    for (AliasAdamProblem& p : problems) fill_gradient(p.grad, 7, random);
  }
}

TEST(AliasAdam, OneTensorByHand) {
  AliasAdamScalars s{.r = 2.0, .d = 3.0};
  alias_adam_advance(s, /*inner=*/4.0, /*beta2=*/0.25);
  EXPECT_EQ(s.r, 7.0);
  EXPECT_EQ(s.d, 7.0);
  alias_adam_advance(s, -100.0, 0.25);
  EXPECT_EQ(s.d, 7.0);
  const AliasAdamCoefficients k = alias_adam_coefficients(
      /*lr=*/0.5, /*d=*/2.0, /*grad_factor=*/1.0, {.beta1 = 0.5, .beta2 = 0.75, .eps = 1.0, .weight_decay = 1.0});
  float w = 4.0f, m = 2.0f, v = 0.0f;
  alias_adam_update(w, m, v, /*grad=*/3.0f, k);
  EXPECT_EQ(m, 4.0f);         // (2 + 2 * 3) / 2
  EXPECT_EQ(v, 9.0f);         // 36 / 4
  EXPECT_EQ(w, 2.0f - 1.0f);  // 4 / 2 - 0.5 * 2 * 4 / (3 + 1)
}

TEST(AliasAdam, EveryMixOfDTypes) {
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    for (const int64_t offset : {0, 1}) {
      std::vector<AliasAdamProblem> problems =
          make_alias_adam(mix, {777, 1, 31, 32, 33, 4097}, 1, {offset, 3 * offset, 5 * offset, 7 * offset, offset});
      ASSERT_NO_FATAL_FAILURE(steps_and_check(problems, 3));
    }
  }
}

TEST(AliasAdam, SizesAroundAChunkAndEmptyTensors) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    std::vector<AliasAdamProblem> problems =
        make_alias_adam(mix, {0, 32767, 1, 0, 32768, 32769, 31, 65535, 65536, 65537, 2, 0}, 2);
    ASSERT_NO_FATAL_FAILURE(steps_and_check(problems, 2, kOptions, 3));
  }
}

TEST(AliasAdam, OptionsOverSteps) {
  for (const double weight_decay : {0.0, 0.3}) {
    for (const double eps : {0.0, 1e-8}) {
      for (const double factor : {1.0, -1.0, 1.0 / 1024}) {
        const AliasAdamOptions options{.eps = eps, .weight_decay = weight_decay, .grad_factor = factor};
        std::vector<AliasAdamProblem> problems = make_alias_adam(testing::kFloat, {1000}, 3);
        ASSERT_NO_FATAL_FAILURE(steps_and_check(problems, 4, options));
      }
    }
  }
}

TEST(AliasAdam, NothingToDo) { cpu::alias_adam_step({}, 1e-2, kOptions.constants(), 1.0, 2); }

TEST(AliasAdam, ThreadsAndRunsGiveTheSameBits) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    const std::vector<AliasAdamProblem> start = make_alias_adam(mix, {100003, 5, 40000, 0, 70000}, 4);
    std::vector<std::byte> first;
    for (const int threads : {1, 1, 2, 3, 5}) {
      std::vector<AliasAdamProblem> problems = start;
      for (int i = 0; i < 2; ++i) step(problems, kOptions, threads);
      if (first.empty()) first = bytes_of(problems);
      EXPECT_EQ(bytes_of(problems), first);
    }
  }
}

}  // namespace
}  // namespace sage_ext
