#include "lion_problem.h"

#include "core/math/sign.h"

namespace sage_ext {
namespace {

using cpu::LionOptions;
using cpu::LionTensor;
using testing::kLionOptions;
using testing::LionExpected;
using testing::LionProblem;
using testing::make_lion;
using testing::Mix;
using testing::Random;

void step_and_check(std::vector<LionProblem>& problems, const LionOptions& options, int threads) {
  std::vector<LionExpected> expected;
  for (const LionProblem& problem : problems) expected.emplace_back(problem, options);
  lion_step(views(problems), options, threads);
  for (size_t i = 0; i < problems.size(); ++i) {
    SCOPED_TRACE("tensor " + std::to_string(i));
    ASSERT_TRUE(matches(problems[i].param, expected[i].param)) << "param";
    ASSERT_TRUE(matches(problems[i].exp_avg, expected[i].exp_avg)) << "exp_avg";
  }
}

TEST(LionStep, EveryMixOfDTypes) {
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    for (const int64_t offset : {0, 1}) {
      std::vector<LionProblem> problems = make_lion(mix, {4097, 1, 777}, 1, offset);
      for (int step = 0; step < 3; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kLionOptions, 1));
    }
  }
}

TEST(LionStep, SizesAroundAChunkAndEmptyTensors) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    std::vector<LionProblem> problems = make_lion(mix, {0, 32767, 1, 0, 32768, 32769, 31, 65536, 100003, 2, 0}, 2);
    for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kLionOptions, 3));
  }
}

TEST(LionStep, ThousandsOfSmallTensors) {
  std::vector<LionProblem> problems = make_lion(testing::kFloat, std::vector<int64_t>(2000, 17), 3);
  ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kLionOptions, 2));
}

TEST(LionStep, Options) {
  for (const double weight_decay : {0.0, 0.3}) {
    for (const double factor : {1.0, -1.0, 1.0 / 1024}) {
      for (const double beta1 : {0.0, 0.5, 0.95}) {
        LionOptions options = kLionOptions;
        options.weight_decay = weight_decay;
        options.grad_factor = factor;
        options.beta1 = beta1;
        std::vector<LionProblem> problems = make_lion(testing::kFloat, {1000}, 4);
        ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options, 1));
      }
    }
  }
}

TEST(LionStep, NothingToDo) { lion_step({}, kLionOptions, 2); }

TEST(LionStep, ZeroGradientAndMomentumStayPut) {
  LionProblem problem(testing::kFloat, 100);
  Random random(5);
  fill_normal(problem.param, random, 1.0);
  const std::vector<std::byte> before = problem.param.bytes();
  LionOptions options = kLionOptions;
  options.weight_decay = 0.0;
  const LionTensor view = problem.view();
  lion_step({&view, 1}, options, 1);
  EXPECT_EQ(problem.param.bytes(), before);
}

TEST(LionStep, TinyAndHugeGradients) {
  for (const double scale : {1e-20, 1e20}) {
    std::vector<LionProblem> problems = make_lion(testing::kFloat, {1000}, 6);
    for (int64_t i = 0; i < 1000; ++i) {
      problems[0].grad.set(i, problems[0].grad[i] * scale);
      problems[0].exp_avg.set(i, 0.0);
    }
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kLionOptions, 1));
  }
}

TEST(LionStep, NonFiniteGradients) {
  for (const Mix& mix : testing::all_mixes()) {
    std::vector<LionProblem> problems = make_lion(mix, {101}, 7);
    problems[0].grad.set(0, testing::kNaN);
    problems[0].grad.set(50, testing::kInf);
    problems[0].grad.set(100, -testing::kInf);
    const double w = problems[0].param[0];
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kLionOptions, 1));
    // sign(NaN) = 0: the parameter only decays, the momentum is NaN from here on.
    EXPECT_NEAR(problems[0].param[0], w * (1 - kLionOptions.lr * kLionOptions.weight_decay), 0.01 * std::abs(w));
    EXPECT_TRUE(std::isnan(problems[0].exp_avg[0]));
    EXPECT_EQ(testing::count_nan(problems[0].exp_avg), 1);
    EXPECT_EQ(testing::count_nan(problems[0].param), 0);
    EXPECT_EQ(problems[0].exp_avg[50], testing::kInf);
    EXPECT_EQ(problems[0].exp_avg[100], -testing::kInf);
  }
}

// Every instruction set gives the bits of the scalar formula, with special values and odd lengths.
TEST(LionStep, BitsOfTheScalarFormula) {
  const LionCoefficients k =
      lion_coefficients(kLionOptions.lr, kLionOptions.beta1, kLionOptions.beta2, kLionOptions.weight_decay, false);
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    std::vector<LionProblem> got = make_lion(mix, {40001}, 8, 1);
    std::vector<LionProblem> expected = make_lion(mix, {40001}, 8);
    int64_t at = 17;
    for (const double value : {0.0, -0.0, 6e-8, 1e-40, 65504.0, 3e38, testing::kInf, -testing::kInf, testing::kNaN}) {
      for (std::vector<LionProblem>* problems : {&got, &expected}) {
        LionProblem& p = problems->front();
        p.grad.set(at, value);
        p.exp_avg.set(at + 100, value);
        p.param.set(at + 200, value);
      }
      at += 301;
    }
    const LionTensor view = got[0].view();
    lion_step({&view, 1}, kLionOptions, 1);
    LionProblem& e = expected[0];
    for (int64_t i = 0; i < e.param.numel(); ++i) {
      auto w = static_cast<float>(e.param[i]);
      auto m = static_cast<float>(e.exp_avg[i]);
      lion_update(w, m, static_cast<float>(e.grad[i]), static_cast<float>(kLionOptions.lr), k);
      e.param.set(i, w);
      e.exp_avg.set(i, m);
    }
    ASSERT_TRUE(same_bits(got[0].param, e.param));
    ASSERT_TRUE(same_bits(got[0].exp_avg, e.exp_avg));
  }
}

TEST(LionStep, ThreadsAndRunsGiveTheSameBits) {
  const std::vector<int64_t> sizes = {100003, 5, 40000, 0, 70000};
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    const std::vector<LionProblem> start = make_lion(mix, sizes, 9);
    std::vector<LionProblem> first = start;
    lion_step(views(first), kLionOptions, 1);
    for (const int threads : {1, 2, 3, 5}) {
      std::vector<LionProblem> again = start;
      lion_step(views(again), kLionOptions, threads);
      for (size_t i = 0; i < sizes.size(); ++i) {
        EXPECT_EQ(again[i].param.bytes(), first[i].param.bytes());
        EXPECT_EQ(again[i].exp_avg.bytes(), first[i].exp_avg.bytes());
      }
    }
  }
}

TEST(LionStep, TheGradientIsOnlyRead) {
  std::vector<LionProblem> problems = make_lion(testing::kBFloat, {5000}, 10);
  const std::vector<std::byte> before = problems[0].grad.bytes();
  lion_step(views(problems), kLionOptions, 2);
  EXPECT_EQ(problems[0].grad.bytes(), before);
}

}  // namespace
}  // namespace sage_ext
