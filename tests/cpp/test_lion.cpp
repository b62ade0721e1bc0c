#include <cmath>
#include <vector>

#include "core/math/sign.h"
#include "cpu/sign.h"
#include "support.h"

namespace sage_ext {
namespace {

using cpu::LionOptions;
using cpu::LionTensor;
using testing::Buffer;
using testing::Expected;
using testing::kUlp;
using testing::Mix;
using testing::Random;

constexpr LionOptions kOptions{.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.99, .weight_decay = 0.1, .grad_factor = 1.0};

struct LionProblem {
  Buffer param, grad, exp_avg;

  LionProblem(const Mix& mix, int64_t numel, int64_t offset = 0)
      : param(mix.param, numel, offset), grad(mix.grad, numel, 3 * offset), exp_avg(mix.state, numel, 5 * offset) {}

  void fill(Random& random) {
    fill_normal(param, random, 0.5);
    fill_gradient(grad, 7, random);
    fill_normal(exp_avg, random, 0.1);
    for (int64_t i = 0; i < exp_avg.numel(); i += 5) exp_avg.set(i, 0.0);  // sign(0) where the gradient is zero too
  }

  LionTensor view() {
    return {param.data(), grad.data(), exp_avg.data(), param.numel(), param.dtype(), grad.dtype(), exp_avg.dtype()};
  }
};

std::vector<LionTensor> views(std::vector<LionProblem>& problems) {
  std::vector<LionTensor> result;
  for (LionProblem& problem : problems) result.push_back(problem.view());
  return result;
}

// The formula of ALGORITHMS in fp64, from the state as it is stored.
struct LionExpected {
  Expected param, exp_avg;

  LionExpected(const LionProblem& p, const LionOptions& o)
      : param(static_cast<size_t>(p.param.numel())), exp_avg(param) {
    for (int64_t i = 0; i < p.param.numel(); ++i) {
      const auto k = static_cast<size_t>(i);
      const double w = p.param[i], m = p.exp_avg[i], g = p.grad[i] * o.grad_factor;
      const double direction = o.beta1 * m + (1 - o.beta1) * g;
      const double size = std::abs(o.beta1 * m) + std::abs((1 - o.beta1) * g);
      const double sign = direction > 0 ? 1 : direction < 0 ? -1 : 0;
      param.value[k] = w * (1 - o.lr * o.weight_decay) - o.lr * sign;
      param.slack[k] = 2 * kUlp * (std::abs(w) + o.lr);
      // The sign is open only where the direction is within rounding of zero.
      if (direction != 0 && std::abs(direction) < 4 * kUlp * size) param.slack[k] += 2 * o.lr;
      exp_avg.value[k] = o.beta2 * m + (1 - o.beta2) * g;
      exp_avg.slack[k] = 3 * kUlp * (std::abs(o.beta2 * m) + std::abs((1 - o.beta2) * g));
    }
  }
};

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

std::vector<LionProblem> make(const Mix& mix, const std::vector<int64_t>& sizes, uint64_t seed, int64_t offset = 0) {
  Random random(seed);
  std::vector<LionProblem> problems;
  for (const int64_t size : sizes) {
    problems.emplace_back(mix, size, offset);
    problems.back().fill(random);
  }
  return problems;
}

TEST(LionStep, EveryMixOfDTypes) {
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    for (const int64_t offset : {0, 1}) {
      std::vector<LionProblem> problems = make(mix, {4097, 1, 777}, 1, offset);
      for (int step = 0; step < 3; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kOptions, 1));
    }
  }
}

TEST(LionStep, SizesAroundAChunkAndEmptyTensors) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    std::vector<LionProblem> problems = make(mix, {0, 32767, 1, 0, 32768, 32769, 31, 65536, 100003, 2, 0}, 2);
    for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kOptions, 3));
  }
}

TEST(LionStep, ThousandsOfSmallTensors) {
  std::vector<LionProblem> problems = make(testing::kFloat, std::vector<int64_t>(2000, 17), 3);
  ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kOptions, 2));
}

TEST(LionStep, Options) {
  for (const double weight_decay : {0.0, 0.3}) {
    for (const double factor : {1.0, -1.0, 1.0 / 1024}) {
      for (const double beta1 : {0.0, 0.5, 0.95}) {
        LionOptions options = kOptions;
        options.weight_decay = weight_decay;
        options.grad_factor = factor;
        options.beta1 = beta1;
        std::vector<LionProblem> problems = make(testing::kFloat, {1000}, 4);
        ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options, 1));
      }
    }
  }
}

TEST(LionStep, NothingToDo) { lion_step({}, kOptions, 2); }

TEST(LionStep, ZeroGradientAndMomentumStayPut) {
  LionProblem problem(testing::kFloat, 100);
  Random random(5);
  fill_normal(problem.param, random, 1.0);
  const std::vector<std::byte> before = problem.param.bytes();
  LionOptions options = kOptions;
  options.weight_decay = 0.0;
  const LionTensor view = problem.view();
  lion_step({&view, 1}, options, 1);
  EXPECT_EQ(problem.param.bytes(), before);
}

TEST(LionStep, TinyAndHugeGradients) {
  for (const double scale : {1e-20, 1e20}) {
    std::vector<LionProblem> problems = make(testing::kFloat, {1000}, 6);
    for (int64_t i = 0; i < 1000; ++i) {
      problems[0].grad.set(i, problems[0].grad[i] * scale);
      problems[0].exp_avg.set(i, 0.0);
    }
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kOptions, 1));
  }
}

TEST(LionStep, NonFiniteGradients) {
  for (const Mix& mix : testing::all_mixes()) {
    std::vector<LionProblem> problems = make(mix, {101}, 7);
    problems[0].grad.set(0, testing::kNaN);
    problems[0].grad.set(50, testing::kInf);
    problems[0].grad.set(100, -testing::kInf);
    const double w = problems[0].param[0];
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kOptions, 1));
    // sign(NaN) = 0: the parameter only decays, the momentum is NaN from here on.
    EXPECT_NEAR(problems[0].param[0], w * (1 - kOptions.lr * kOptions.weight_decay), 0.01 * std::abs(w));
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
      lion_coefficients(kOptions.lr, kOptions.beta1, kOptions.beta2, kOptions.weight_decay, false);
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    std::vector<LionProblem> got = make(mix, {40001}, 8, 1);
    std::vector<LionProblem> expected = make(mix, {40001}, 8);
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
    lion_step({&view, 1}, kOptions, 1);
    LionProblem& e = expected[0];
    for (int64_t i = 0; i < e.param.numel(); ++i) {
      auto w = static_cast<float>(e.param[i]);
      auto m = static_cast<float>(e.exp_avg[i]);
      lion_update(w, m, static_cast<float>(e.grad[i]), static_cast<float>(kOptions.lr), k);
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
    std::vector<LionProblem> first = make(mix, sizes, 9);
    lion_step(views(first), kOptions, 1);
    for (const int threads : {1, 2, 3, 5}) {
      std::vector<LionProblem> again = make(mix, sizes, 9);
      lion_step(views(again), kOptions, threads);
      for (size_t i = 0; i < sizes.size(); ++i) {
        EXPECT_EQ(again[i].param.bytes(), first[i].param.bytes());
        EXPECT_EQ(again[i].exp_avg.bytes(), first[i].exp_avg.bytes());
      }
    }
  }
}

TEST(LionStep, TheGradientIsOnlyRead) {
  std::vector<LionProblem> problems = make(testing::kBFloat, {5000}, 10);
  const std::vector<std::byte> before = problems[0].grad.bytes();
  lion_step(views(problems), kOptions, 2);
  EXPECT_EQ(problems[0].grad.bytes(), before);
}

}  // namespace
}  // namespace sage_ext
