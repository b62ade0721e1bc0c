#pragma once

#include <array>
#include <cmath>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "cpu/sage.h"
#include "support.h"

// A tensor for SAGE and what one step should make of it, in fp64.
namespace sage_ext::testing {

inline constexpr cpu::SageOptions kSageOptions{.lr = 1e-2,
                                               .beta1 = 0.9,
                                               .beta2 = 0.99,
                                               .eps = 1e-8,
                                               .weight_decay = 0.1,
                                               .momentum_first = false,
                                               .instant_damper = true,
                                               .grad_factor = 1.0};

struct SageProblem {
  int64_t rows, cols;
  Buffer param, grad, exp_avg, s_range;
  double step = 0;

  // `offsets` in elements, of W, g, the momentum and s_range.
  SageProblem(const Mix& mix, Shape shape, const std::array<int64_t, 4>& offsets)
      : rows(shape.rows),
        cols(shape.cols),
        param(mix.param, rows * cols, offsets[0]),
        grad(mix.grad, rows * cols, offsets[1]),
        exp_avg(mix.state, rows * cols, offsets[2]),
        s_range(DType::float32, cols, offsets[3]) {}
  SageProblem(const Mix& mix, Shape shape, int64_t offset = 0)
      : SageProblem(mix, shape, {offset, 3 * offset, 5 * offset, 7 * offset}) {}

  void fill(Random& random) {
    fill_normal(param, random, 0.5);
    if (cols > 0) fill_gradient(grad, cols, random);
  }

  cpu::SageTensor view(const cpu::SageOptions& options) {
    return {param.data(), grad.data(),   exp_avg.data(), s_range.floats(), rows,
            cols,         param.dtype(), grad.dtype(),   exp_avg.dtype(),  1.0 - std::pow(options.beta2, step)};
  }
};

// rms / (x + eps), where 0 / 0 is 0.
inline double damper_ratio(double rms, double x, double eps) { return rms == 0.0 ? 0.0 : rms / (x + eps); }

// The smaller one; NaN if one of them is.
inline double min_with_nan(double a, double b) { return std::isnan(a) || std::isnan(b) ? kNaN : std::min(a, b); }

// The formula of ALGORITHMS in fp64, from the state as it is stored; `step` counts this one.
struct SageExpected {
  Expected param, exp_avg, s_range;
  Values damper;

  SageExpected(const SageProblem& p, const cpu::SageOptions& o)
      : param(static_cast<size_t>(p.rows * p.cols)), exp_avg(param), s_range(static_cast<size_t>(p.cols)) {
    if (p.rows == 0) {  // an empty tensor is skipped: no mean over no rows
      s_range.value = p.s_range.values();
      return;
    }
    const auto cols = static_cast<size_t>(p.cols);
    Values s(cols), s_hat(cols);
    for (int64_t i = 0; i < p.rows * p.cols; ++i) {
      s[static_cast<size_t>(i % p.cols)] += std::abs(p.grad[i] * o.grad_factor);
    }
    double mean_square = 0, mean_square_hat = 0;
    for (size_t j = 0; j < cols; ++j) {
      s[j] /= static_cast<double>(p.rows);
      s_range.value[j] = o.beta2 * p.s_range[static_cast<int64_t>(j)] + (1 - o.beta2) * s[j];
      s_range.slack[j] = 32 * kUlp * (1 - o.beta2) * s[j];
      s_hat[j] = s_range.value[j] / (1 - std::pow(o.beta2, p.step));
      mean_square += s[j] * s[j] / static_cast<double>(p.cols);
      mean_square_hat += s_hat[j] * s_hat[j] / static_cast<double>(p.cols);
    }
    for (size_t j = 0; j < cols; ++j) {
      double h = min_with_nan(1.0, damper_ratio(std::sqrt(mean_square_hat), s_hat[j], o.eps));
      if (o.instant_damper) h = min_with_nan(h, damper_ratio(std::sqrt(mean_square), s[j], o.eps));
      damper.push_back(h);
    }
    update(p, o);
  }

 private:
  void update(const SageProblem& p, const cpu::SageOptions& o) {
    for (int64_t i = 0; i < p.rows * p.cols; ++i) {
      const auto k = static_cast<size_t>(i);
      const double w = p.param[i], m = p.exp_avg[i], g = p.grad[i] * o.grad_factor;
      const double new_m = o.beta2 * m + (1 - o.beta2) * g;
      const double direction = o.beta1 * (o.momentum_first ? new_m : m) + (1 - o.beta1) * g;
      const double size = std::abs(m) + std::abs(g);
      const double sign = direction > 0 ? 1 : direction < 0 ? -1 : 0;
      const double length = o.lr * damper[static_cast<size_t>(i % p.cols)];
      param.value[k] = w * (1 - o.lr * o.weight_decay) - length * sign;
      param.slack[k] = 2 * kUlp * std::abs(w) + 48 * kUlp * length;
      // The sign is open only where the direction is within rounding of zero.
      if (direction != 0 && std::abs(direction) < 4 * kUlp * size) param.slack[k] += 2 * length;
      exp_avg.value[k] = new_m;
      exp_avg.slack[k] = 3 * kUlp * (std::abs(o.beta2 * m) + std::abs((1 - o.beta2) * g));
    }
  }
};

inline void sage_step(std::vector<SageProblem>& problems, const cpu::SageOptions& options, int threads) {
  std::vector<cpu::SageTensor> tensors;
  for (SageProblem& problem : problems) tensors.push_back(problem.view(options));
  cpu::SageStep(std::move(tensors), options).run(threads);
}

inline void expect_matches(const std::vector<SageProblem>& problems, const std::vector<SageExpected>& expected) {
  for (size_t i = 0; i < problems.size(); ++i) {
    SCOPED_TRACE("tensor " + std::to_string(i) + ", " + describe(Shape{problems[i].rows, problems[i].cols}));
    ASSERT_TRUE(matches(problems[i].s_range, expected[i].s_range)) << "s_range";
    ASSERT_TRUE(matches(problems[i].exp_avg, expected[i].exp_avg)) << "exp_avg";
    ASSERT_TRUE(matches(problems[i].param, expected[i].param)) << "param";
  }
}

// Takes one step and compares everything it wrote.
inline void step_and_check(std::vector<SageProblem>& problems, const cpu::SageOptions& options, int threads) {
  std::vector<SageExpected> expected;
  for (SageProblem& problem : problems) {
    ++problem.step;
    expected.emplace_back(problem, options);
  }
  sage_step(problems, options, threads);
  expect_matches(problems, expected);
}

inline std::vector<SageProblem> make_sage(const Mix& mix, const std::vector<Shape>& shapes, uint64_t seed,
                                          int64_t offset = 0) {
  Random random(seed);
  std::vector<SageProblem> problems;
  for (const Shape& shape : shapes) {
    problems.emplace_back(mix, shape, offset);
    problems.back().fill(random);
  }
  return problems;
}

}  // namespace sage_ext::testing
