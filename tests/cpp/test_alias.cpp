#include "alias_problem.h"
#include "cpu/alias.h"

namespace sage_ext {
namespace {

using testing::AliasExpected;
using testing::AliasInputs;
using testing::AliasProblem;
using testing::kAliasOptions;
using testing::make_alias;
using testing::Mix;
using testing::Random;

void step(AliasProblem& problem, const AliasInputs& inputs, int threads) {
  cpu::alias_step(problem.views<cpu::AliasTensor>(), problem.options, {inputs.lr, inputs.loss, inputs.grad_factor},
                  problem.shared(), threads);
}

void step_and_check(AliasProblem& problem, const AliasInputs& inputs = {}, int threads = 1) {
  const AliasExpected expected(problem, inputs);
  step(problem, inputs, threads);
  expected.check(problem);
}

// Some steps, each with gradients of its own.
void steps_and_check(AliasProblem& problem, int steps, const AliasInputs& inputs = {}, int threads = 1) {
  Random random(3 * static_cast<uint64_t>(problem.shared().step) + static_cast<uint64_t>(problem.options.phase));
  for (int i = 1; i <= steps; ++i) {
    SCOPED_TRACE("step " + std::to_string(i));
    problem.fill_grads(random);
    ASSERT_NO_FATAL_FAILURE(step_and_check(problem, inputs, threads));
  }
}

TEST(Alias, ScalarsByHand) {
  AliasScalars s{};
  AliasOptions o = kAliasOptions;
  o.max_step = 0.5;
  // In the first step nothing is known: the largest step.
  alias_advance(s, {.grad_max = 3, .grad_min = -1, .inner = 99, .norm = 99}, 0.1, 7.0, 1.0, o);
  EXPECT_EQ(s.step, 1.0);
  EXPECT_EQ(s.step_size, 0.5);
  EXPECT_EQ(s.eta + s.d + s.gap, 0.0);
  s.displacement = 2.0;
  // max(|1 - -1|, |3 - -5|) / 2 = 4; 0.5 * 2 = 1; sqrt(1 / 4).
  alias_advance(s, {.grad_max = 1, .grad_min = -5, .inner = 2, .norm = 99}, 0.1, 7.0, 1.0, o);
  EXPECT_EQ(s.eta, 4.0);
  EXPECT_EQ(s.d, 1.0);
  EXPECT_EQ(s.step_size, 0.5);
  // The gap falls, d stays; 12 more of eta make 16.
  s.displacement = 0.5;
  alias_advance(s, {.grad_max = 1, .grad_min = -3, .inner = -4, .norm = 99}, 0.1, 7.0, 1.0, o);
  EXPECT_EQ(s.gap, -1.0);
  EXPECT_EQ(s.d, 1.0);
  EXPECT_EQ(s.eta, 16.0);
  EXPECT_EQ(s.step_size, 0.25);
}

TEST(Alias, TheSumByHand) {
  AliasScalars s{};
  AliasOptions o = kAliasOptions;
  o.form = AliasForm::sum;
  o.max_step = 0.5;
  alias_advance(s, {.grad_max = 99, .grad_min = 0, .inner = 99, .norm = 3}, 0.1, 7.0, 1.0, o);
  EXPECT_EQ(s.grad_max, 3.0);
  s.displacement = 2.0;
  // (5 + 3) / 2 = 4; 0.5 * 2 = 1; sqrt(1 / 4).
  alias_advance(s, {.grad_max = 99, .grad_min = 0, .inner = 2, .norm = 5}, 0.1, 7.0, 1.0, o);
  EXPECT_EQ(s.eta, 4.0);
  EXPECT_EQ(s.step_size, 0.5);
  // (1 + 5) / 0.5 = 12 more.
  s.displacement = 0.5;
  alias_advance(s, {.grad_max = 99, .grad_min = 0, .inner = -4, .norm = 1}, 0.1, 7.0, 1.0, o);
  EXPECT_EQ(s.eta, 16.0);
  EXPECT_EQ(s.step_size, 0.25);
  EXPECT_EQ(s.grad_max, 1.0);
}

TEST(Alias, StepsThatRefreshAndRecord) {
  AliasOptions o = kAliasOptions;
  o.update_every = 3;
  std::string what;
  for (int number = 1; number <= 8; ++number) {
    what += alias_refreshes(number, o) ? 'u' : '-';
    what += alias_records(number, o) ? 'r' : '-';
  }
  EXPECT_EQ(what, "-ru----ru----ru-");
  o.update_every = 1;
  EXPECT_FALSE(alias_refreshes(1, o));
  EXPECT_TRUE(alias_records(1, o) && alias_refreshes(2, o) && alias_records(2, o));
}

TEST(Alias, ANaNWins) {
  for (const double other : {1.0, testing::kInf, -testing::kInf, testing::kNaN}) {
    EXPECT_TRUE(std::isnan(keep_nan_max(testing::kNaN, other)) && std::isnan(keep_nan_max(other, testing::kNaN)));
    EXPECT_TRUE(std::isnan(keep_nan_min(testing::kNaN, other)) && std::isnan(keep_nan_min(other, testing::kNaN)));
  }
  EXPECT_EQ(keep_nan_max(-1.0, 2.0), 2.0);
  EXPECT_EQ(keep_nan_min(-1.0, 2.0), -1.0);
}

TEST(Alias, SignsInWords) {
  EXPECT_EQ(sign_words(0), 0);
  EXPECT_EQ(sign_words(32), 1);
  EXPECT_EQ(sign_words(33), 2);
  EXPECT_EQ(sign_at(1u << 31, 1u, 31), 1.0f);
  EXPECT_EQ(sign_at(1u << 31, 1u, 0), -1.0f);
  EXPECT_EQ(sign_at(1u << 31, 1u, 5), 0.0f);
}

// All forms and gaps.
class AliasStep : public ::testing::TestWithParam<AliasOptions> {};

TEST_P(AliasStep, EveryMixOfDTypes) {
  for (const DType param : testing::kDTypes) {
    for (const DType grad : testing::kDTypes) {
      SCOPED_TRACE(testing::describe(Mix{param, grad, grad}));
      for (const int64_t offset : {0, 1}) {
        AliasProblem problem = make_alias(GetParam(), {param, grad, grad}, {777, 1, 31, 32, 33, 4097}, 1,
                                          {offset, 3 * offset, 5 * offset, offset});
        ASSERT_NO_FATAL_FAILURE(steps_and_check(problem, 4));
      }
    }
  }
}

TEST_P(AliasStep, SizesAroundAChunkAndEmptyTensors) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    AliasProblem problem =
        make_alias(GetParam(), mix, {0, 32767, 1, 0, 32768, 32769, 31, 65535, 65536, 65537, 2, 0}, 2);
    ASSERT_NO_FATAL_FAILURE(steps_and_check(problem, 2, {}, 3));
  }
}

TEST_P(AliasStep, InputsOfEveryKind) {
  for (const double weight_decay : {0.0, 0.3}) {
    for (const double factor : {1.0, -1.0, 1.0 / 1024}) {
      AliasOptions options = GetParam();
      options.weight_decay = weight_decay;
      options.warmup_steps = 2;
      AliasProblem problem = make_alias(options, testing::kFloat, {1000, 33}, 3);
      Random random(30);
      for (const double times : {1.0, 0.5, 0.5, 4.0}) {
        problem.fill_grads(random);
        ASSERT_NO_FATAL_FAILURE(step_and_check(problem, {.grad_factor = factor * times}));
      }
    }
  }
}

TEST_P(AliasStep, WarmUpAndRareUpdates) {
  for (const int64_t warmup_steps : {0, 1, 2, 100}) {
    for (const int64_t update_every : {1, 2, 3}) {
      AliasOptions options = GetParam();
      options.warmup_steps = warmup_steps;
      options.update_every = update_every;
      options.max_step = 1e-2;
      SCOPED_TRACE(testing::describe(options));
      AliasProblem problem = make_alias(options, testing::kBFloat, {300, 33, 0}, 4);
      ASSERT_NO_FATAL_FAILURE(steps_and_check(problem, 8));
    }
  }
}

TEST_P(AliasStep, TheSameBatchTwice) {
  for (const int64_t update_every : {1, 3}) {
    AliasProblem problem = make_alias(GetParam(), testing::kBFloat, {300, 4097}, 5);
    problem.options.update_every = update_every;
    for (int i = 0; i < 3; ++i) {
      problem.options.phase = AliasPhase::move;
      ASSERT_NO_FATAL_FAILURE(steps_and_check(problem, 1));
      problem.options.phase = AliasPhase::refresh;
      ASSERT_NO_FATAL_FAILURE(steps_and_check(problem, 1));
    }
    EXPECT_EQ(problem.shared().step, 3.0);
    EXPECT_GT(problem.shared().eta, 0.0);
  }
}

TEST_P(AliasStep, WithoutAMoveEtaStays) {
  AliasOptions options = GetParam();
  options.warmup_steps = 3;
  AliasProblem problem = make_alias(options, testing::kFloat, {1000, 31}, 6);
  for (int i = 0; i < 2; ++i) ASSERT_NO_FATAL_FAILURE(steps_and_check(problem, 1, {.lr = 0.0}));
  EXPECT_EQ(problem.shared().displacement, 0.0);
  EXPECT_EQ(problem.shared().eta, 0.0);
}

TEST_P(AliasStep, NonFiniteGradients) {
  for (const double value : {testing::kNaN, testing::kInf, -testing::kInf}) {
    for (const int64_t place : {0, 77, 255, 256, 300, 301}) {
      for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
        SCOPED_TRACE(std::to_string(value) + " at " + std::to_string(place));
        AliasProblem problem = make_alias(GetParam(), mix, {33, 302, 20}, 7);
        Random random(8);
        for (int i = 0; i < 3; ++i) {
          problem.fill_grads(random);
          if (i == 1) problem.tensors[1].grad.set(place, value);
          ASSERT_NO_FATAL_FAILURE(step_and_check(problem));
        }
      }
    }
  }
}

// As large as FusedALIAS's docstring says they may be, and of another sign in every step: no sum is infinite. (Terms
// that are all alike may be further off than kSumAccuracy.)
TEST_P(AliasStep, LargestGradients) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    AliasProblem problem = make_alias(GetParam(), mix, {8191, 33}, 12);
    problem.shared().d = 1e-6;
    for (const double value : {6e35, -6e35, 6e35}) {
      for (testing::AliasTensorProblem& t : problem.tensors) testing::fill(t.grad, value);
      step(problem, {}, 1);
    }
    const AliasScalars& s = problem.shared();
    EXPECT_TRUE(std::isfinite(s.eta) && s.eta > 0 && std::isfinite(s.gap) && s.step_size > 0);
  }
}

TEST_P(AliasStep, NothingToDo) {
  for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{}, {0, 0}}) {
    AliasProblem problem = make_alias(GetParam(), testing::kFloat, sizes, 9);
    for (int i = 0; i < 3; ++i) ASSERT_NO_FATAL_FAILURE(step_and_check(problem));
    EXPECT_EQ(problem.shared().step, 3.0);
  }
}

TEST_P(AliasStep, ThreadsAndRunsGiveTheSameBits) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    const AliasProblem start = make_alias(GetParam(), mix, {100003, 5, 40000, 0, 70000}, 10);
    AliasProblem later = start.copy();
    Random random(11);
    later.fill_grads(random);
    std::vector<std::byte> first;
    for (const int threads : {1, 1, 2, 3, 5}) {
      AliasProblem problem = start.copy();
      step(problem, {}, threads);
      for (size_t t = 0; t < problem.tensors.size(); ++t) {
        problem.tensors[t].grad.assign(later.tensors[t].grad.bytes());
      }
      step(problem, {}, threads);
      if (first.empty()) first = problem.bytes();
      EXPECT_EQ(problem.bytes(), first);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Forms, AliasStep, ::testing::ValuesIn(testing::alias_forms()));

}  // namespace
}  // namespace sage_ext
