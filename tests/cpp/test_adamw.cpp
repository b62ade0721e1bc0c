#include "adamw_problem.h"

namespace sage_ext {
namespace {

using cpu::AdamWTensor;
using testing::AdamWExpected;
using testing::AdamWOptions;
using testing::AdamWProblem;
using testing::make_adamw;
using testing::Mix;
using testing::Random;

void step_and_check(std::vector<AdamWProblem>& problems, const AdamWOptions& options, int threads) {
  std::vector<AdamWExpected> expected;
  for (AdamWProblem& problem : problems) {
    ++problem.step;
    expected.emplace_back(problem, options);
  }
  cpu::adamw_step(views(problems, options), options.grad_factor, threads);
  for (size_t i = 0; i < problems.size(); ++i) {
    SCOPED_TRACE("tensor " + std::to_string(i));
    ASSERT_TRUE(matches(problems[i].param, expected[i].param)) << "param";
    ASSERT_TRUE(matches(problems[i].exp_avg, expected[i].exp_avg)) << "exp_avg";
    ASSERT_TRUE(matches(problems[i].exp_avg_sq, expected[i].exp_avg_sq)) << "exp_avg_sq";
  }
}

TEST(AdamWStep, EveryMixOfDTypes) {
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    for (const int64_t offset : {0, 1}) {
      std::vector<AdamWProblem> problems = make_adamw(mix, {4097, 1, 777}, 1, offset);
      for (int step = 0; step < 4; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, AdamWOptions{}, 1));
    }
  }
}

TEST(AdamWStep, SizesAroundAChunkAndEmptyTensors) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    std::vector<AdamWProblem> problems = make_adamw(mix, {0, 32767, 1, 0, 32768, 32769, 31, 65536, 100003, 2, 0}, 2);
    for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, AdamWOptions{}, 3));
  }
}

TEST(AdamWStep, EveryTensorHasItsOwnStepCount) {
  std::vector<AdamWProblem> problems = make_adamw(testing::kFloat, {100, 100, 100}, 3);
  problems[1].step = 10;
  problems[2].step = 100000;
  ASSERT_NO_FATAL_FAILURE(step_and_check(problems, AdamWOptions{}, 2));
}

TEST(AdamWStep, OptionsOverSteps) {
  for (const double weight_decay : {0.0, 0.3}) {
    for (const double eps : {0.0, 1e-8, 1e-2}) {
      for (const double factor : {1.0, -1.0, 1.0 / 1024}) {
        const AdamWOptions options{.eps = eps, .weight_decay = weight_decay, .grad_factor = factor};
        std::vector<AdamWProblem> problems = make_adamw(testing::kFloat, {1000}, 4);
        Random random(40);
        for (int step = 0; step < 5; ++step) {
          ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options, 1));
          fill_gradient(problems[0].grad, 7, random);
        }
      }
    }
  }
}

TEST(AdamWStep, NothingToDo) { cpu::adamw_step({}, 1.0, 2); }

TEST(AdamWStep, ZeroGradientStaysPut) {
  for (const double eps : {0.0, 1e-8}) {
    const AdamWOptions options{.eps = eps, .weight_decay = 0.0};
    std::vector<AdamWProblem> problems = make_adamw(testing::kFloat, {100}, 5);
    fill(problems[0].grad, 0.0);
    const std::vector<std::byte> before = problems[0].param.bytes();
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options, 1));
    EXPECT_EQ(problems[0].param.bytes(), before);
  }
}

TEST(AdamWStep, NonFiniteGradients) {
  for (const Mix& mix : testing::all_mixes()) {
    std::vector<AdamWProblem> problems = make_adamw(mix, {101}, 6);
    problems[0].grad.set(0, testing::kNaN);
    problems[0].grad.set(50, testing::kInf);
    problems[0].grad.set(100, -testing::kInf);
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, AdamWOptions{}, 1));
    // As in the eager form: NaN stays NaN, and inf / sqrt(inf) is one too.
    EXPECT_EQ(testing::count_nan(problems[0].param), 3);
    EXPECT_EQ(testing::count_nan(problems[0].exp_avg), 1);
    EXPECT_EQ(problems[0].exp_avg_sq[50], testing::kInf);
  }
}

// Every instruction set gives the bits of the scalar formula, with special values and odd lengths.
TEST(AdamWStep, BitsOfTheScalarFormula) {
  const AdamWOptions options;
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    std::vector<AdamWProblem> got = make_adamw(mix, {40001}, 7, 1);
    std::vector<AdamWProblem> expected = make_adamw(mix, {40001}, 7);
    for (std::vector<AdamWProblem>* problems : {&got, &expected}) {
      AdamWProblem& p = problems->front();
      p.step = 3;
      Random random(70);
      for (int64_t i = 0; i < p.param.numel(); ++i) {
        p.exp_avg.set(i, 0.1 * random.normal());
        p.exp_avg_sq.set(i, random.uniform());
      }
      int64_t at = 17;
      for (const double value : {0.0, -0.0, 6e-8, 1e-40, 1e-20, 65504.0, 1e20, 3e38, testing::kInf, testing::kNaN}) {
        p.grad.set(at, value);
        p.exp_avg.set(at + 100, -value);
        p.param.set(at + 200, value);
        p.exp_avg_sq.set(at + 300, std::abs(value));
        at += 401;
      }
    }
    const AdamWCoefficients k = got[0].view(options).coefficients;
    const AdamWTensor view = got[0].view(options);
    cpu::adamw_step({&view, 1}, options.grad_factor, 1);
    AdamWProblem& e = expected[0];
    for (int64_t i = 0; i < e.param.numel(); ++i) {
      auto w = static_cast<float>(e.param[i]);
      auto m = static_cast<float>(e.exp_avg[i]);
      auto v = static_cast<float>(e.exp_avg_sq[i]);
      adamw_update(w, m, v, static_cast<float>(e.grad[i]), k);
      e.param.set(i, w);
      e.exp_avg.set(i, m);
      e.exp_avg_sq.set(i, v);
    }
    ASSERT_TRUE(same_bits(got[0].param, e.param));
    ASSERT_TRUE(same_bits(got[0].exp_avg, e.exp_avg));
    ASSERT_TRUE(same_bits(got[0].exp_avg_sq, e.exp_avg_sq));
  }
}

TEST(AdamWStep, ThreadsAndRunsGiveTheSameBits) {
  const std::vector<int64_t> sizes = {100003, 5, 40000, 0, 70000};
  const AdamWOptions options;
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    const std::vector<AdamWProblem> start = make_adamw(mix, sizes, 8);
    const auto run = [&](int threads) {
      std::vector<AdamWProblem> problems = start;
      for (AdamWProblem& problem : problems) problem.step = 1;
      cpu::adamw_step(views(problems, options), options.grad_factor, threads);
      return problems;
    };
    const std::vector<AdamWProblem> first = run(1);
    for (const int threads : {1, 2, 3, 5}) {
      const std::vector<AdamWProblem> again = run(threads);
      for (size_t i = 0; i < sizes.size(); ++i) {
        EXPECT_EQ(again[i].param.bytes(), first[i].param.bytes());
        EXPECT_EQ(again[i].exp_avg.bytes(), first[i].exp_avg.bytes());
        EXPECT_EQ(again[i].exp_avg_sq.bytes(), first[i].exp_avg_sq.bytes());
        EXPECT_EQ(again[i].grad.bytes(), first[i].grad.bytes());
      }
    }
  }
}

}  // namespace
}  // namespace sage_ext
