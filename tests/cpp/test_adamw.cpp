#include <cmath>
#include <vector>

#include "core/math/adamw.h"
#include "cpu/adamw.h"
#include "support.h"

namespace sage_ext {
namespace {

using cpu::AdamWTensor;
using testing::Buffer;
using testing::Expected;
using testing::kUlp;
using testing::Mix;
using testing::Random;

struct Options {
  double lr = 1e-2, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.1, grad_factor = 1.0;
};

struct AdamWProblem {
  Buffer param, grad, exp_avg, exp_avg_sq;
  double step = 0;

  AdamWProblem(const Mix& mix, int64_t numel, int64_t offset = 0)
      : param(mix.param, numel, offset),
        grad(mix.grad, numel, 3 * offset),
        exp_avg(mix.state, numel, 5 * offset),
        exp_avg_sq(mix.state, numel, 7 * offset) {}

  void fill(Random& random) {
    fill_normal(param, random, 0.5);
    fill_gradient(grad, 7, random);
  }

  AdamWTensor view(const Options& o) {
    return {
        param.data(),      grad.data(),     exp_avg.data(),
        exp_avg_sq.data(), param.numel(),   param.dtype(),
        grad.dtype(),      exp_avg.dtype(), adamw_coefficients(o.lr, o.beta1, o.beta2, o.eps, o.weight_decay, step)};
  }
};

// torch.optim.AdamW's formula in fp64, from the state as it is stored.
struct AdamWExpected {
  Expected param, exp_avg, exp_avg_sq;

  AdamWExpected(const AdamWProblem& p, const Options& o)
      : param(static_cast<size_t>(p.param.numel())), exp_avg(param), exp_avg_sq(param) {
    const double correction1 = 1 - std::pow(o.beta1, p.step);
    const double correction2 = std::sqrt(1 - std::pow(o.beta2, p.step));
    for (int64_t i = 0; i < p.param.numel(); ++i) {
      const auto k = static_cast<size_t>(i);
      const double g = p.grad[i] * o.grad_factor;
      const double old_m = o.beta1 * p.exp_avg[i], old_v = o.beta2 * p.exp_avg_sq[i];
      const double m = old_m + (1 - o.beta1) * g;
      const double v = old_v + (1 - o.beta2) * g * g;
      exp_avg.value[k] = m;
      exp_avg.slack[k] = 3 * kUlp * (std::abs(old_m) + std::abs((1 - o.beta1) * g));
      exp_avg_sq.value[k] = v;
      exp_avg_sq.slack[k] = 5 * kUlp * v;
      const double denominator = std::sqrt(v) / correction2 + o.eps;
      const double ratio = denominator == 0 ? 0 : m / denominator;
      const double decayed = p.param[i] * (1 - o.lr * o.weight_decay);
      const double update = o.lr / correction1 * ratio;
      param.value[k] = decayed - update;
      param.slack[k] = 2 * kUlp * std::abs(p.param[i]) + 10 * kUlp * std::abs(update);
      if (denominator != 0) param.slack[k] += o.lr / correction1 * exp_avg.slack[k] / denominator;
    }
  }
};

std::vector<AdamWTensor> views(std::vector<AdamWProblem>& problems, const Options& options) {
  std::vector<AdamWTensor> result;
  for (AdamWProblem& problem : problems) result.push_back(problem.view(options));
  return result;
}

void step_and_check(std::vector<AdamWProblem>& problems, const Options& options, int threads) {
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

std::vector<AdamWProblem> make(const Mix& mix, const std::vector<int64_t>& sizes, uint64_t seed, int64_t offset = 0) {
  Random random(seed);
  std::vector<AdamWProblem> problems;
  for (const int64_t size : sizes) {
    problems.emplace_back(mix, size, offset);
    problems.back().fill(random);
  }
  return problems;
}

TEST(AdamWStep, EveryMixOfDTypes) {
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    for (const int64_t offset : {0, 1}) {
      std::vector<AdamWProblem> problems = make(mix, {4097, 1, 777}, 1, offset);
      for (int step = 0; step < 4; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, Options{}, 1));
    }
  }
}

TEST(AdamWStep, SizesAroundAChunkAndEmptyTensors) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    std::vector<AdamWProblem> problems = make(mix, {0, 32767, 1, 0, 32768, 32769, 31, 65536, 100003, 2, 0}, 2);
    for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, Options{}, 3));
  }
}

TEST(AdamWStep, EveryTensorHasItsOwnStepCount) {
  std::vector<AdamWProblem> problems = make(testing::kFloat, {100, 100, 100}, 3);
  problems[1].step = 10;
  problems[2].step = 100000;
  ASSERT_NO_FATAL_FAILURE(step_and_check(problems, Options{}, 2));
}

TEST(AdamWStep, OptionsOverSteps) {
  for (const double weight_decay : {0.0, 0.3}) {
    for (const double eps : {0.0, 1e-8, 1e-2}) {
      for (const double factor : {1.0, -1.0, 1.0 / 1024}) {
        const Options options{.eps = eps, .weight_decay = weight_decay, .grad_factor = factor};
        std::vector<AdamWProblem> problems = make(testing::kFloat, {1000}, 4);
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
    const Options options{.eps = eps, .weight_decay = 0.0};
    std::vector<AdamWProblem> problems = make(testing::kFloat, {100}, 5);
    fill(problems[0].grad, 0.0);
    const std::vector<std::byte> before = problems[0].param.bytes();
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options, 1));
    EXPECT_EQ(problems[0].param.bytes(), before);
  }
}

TEST(AdamWStep, NonFiniteGradients) {
  for (const Mix& mix : testing::all_mixes()) {
    std::vector<AdamWProblem> problems = make(mix, {101}, 6);
    problems[0].grad.set(0, testing::kNaN);
    problems[0].grad.set(50, testing::kInf);
    problems[0].grad.set(100, -testing::kInf);
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, Options{}, 1));
    // As in the eager form: NaN stays NaN, and inf / sqrt(inf) is one too.
    EXPECT_EQ(testing::count_nan(problems[0].param), 3);
    EXPECT_EQ(testing::count_nan(problems[0].exp_avg), 1);
    EXPECT_EQ(problems[0].exp_avg_sq[50], testing::kInf);
  }
}

// Every instruction set gives the bits of the scalar formula, with special values and odd lengths.
TEST(AdamWStep, BitsOfTheScalarFormula) {
  const Options options;
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    std::vector<AdamWProblem> got = make(mix, {40001}, 7, 1);
    std::vector<AdamWProblem> expected = make(mix, {40001}, 7);
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
  const Options options;
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    const auto run = [&](int threads) {
      std::vector<AdamWProblem> problems = make(mix, sizes, 8);
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
