#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "cpu/scale.h"
#include "support.h"

// A tensor for SCALE and what one step should make of it, in fp64.
namespace sage_ext::testing {

// Rows or columns, without and with momentum.
inline cpu::ScaleOptions scale_options(bool columns, bool momentum) {
  return {.lr = 0.25,
          .momentum = momentum ? 0.9 : 0.0,
          .eps = 1e-8,
          .weight_decay = 0.1,
          .rms = true,
          .columns = columns,
          .grad_factor = 1.0};
}

inline std::vector<cpu::ScaleOptions> all_scale_options() {
  return {scale_options(false, false), scale_options(true, false), scale_options(false, true),
          scale_options(true, true)};
}

inline std::string describe(const cpu::ScaleOptions& o) {
  return std::string(o.columns ? "columns" : "rows") + (o.momentum == 0.0 ? "" : " with momentum");
}

struct ScaleProblem {
  int64_t matrices, rows, cols;
  Buffer param, grad, exp_avg;

  // `offsets` in elements, of W, g and the momentum.
  ScaleProblem(const Mix& mix, Shape shape, const std::array<int64_t, 3>& offsets, int64_t count = 1)
      : matrices(count),
        rows(shape.rows),
        cols(shape.cols),
        param(mix.param, count * rows * cols, offsets[0]),
        grad(mix.grad, count * rows * cols, offsets[1]),
        exp_avg(mix.state, count * rows * cols, offsets[2]) {}
  ScaleProblem(const Mix& mix, Shape shape, int64_t offset = 0)
      : ScaleProblem(mix, shape, {offset, 3 * offset, 5 * offset}) {}

  void fill(Random& random) {
    fill_normal(param, random, 0.5);
    if (cols > 0) fill_gradient(grad, cols, random);
    fill_normal(exp_avg, random, 0.1);
  }

  // One matrix after the other.
  void append_views(const cpu::ScaleOptions& o, std::vector<cpu::ScaleMatrix>& views) {
    for (int64_t i = 0; i < matrices; ++i) {
      const auto at = [&](Buffer& b) { return static_cast<char*>(b.data()) + i * rows * cols * itemsize(b.dtype()); };
      views.push_back({at(param), at(grad), o.momentum == 0.0 ? nullptr : at(exp_avg), rows, cols, param.dtype(),
                       grad.dtype(), exp_avg.dtype()});
    }
  }
};

// The formula of ALGORITHMS in fp64, from the state as it is stored.
struct ScaleExpected {
  Expected param, exp_avg;

  ScaleExpected(const ScaleProblem& p, const cpu::ScaleOptions& o)
      : param(static_cast<size_t>(p.param.numel())), exp_avg(param) {
    Values x(param.value.size()), error(x.size());  // and how far x may be from it
    for (int64_t i = 0; i < p.param.numel(); ++i) {
      const auto k = static_cast<size_t>(i);
      const double m = p.exp_avg[i], g = p.grad[i] * o.grad_factor;
      x[k] = o.momentum == 0.0 ? g : o.momentum * m + (1 - o.momentum) * g;
      exp_avg.value[k] = o.momentum == 0.0 ? m : x[k];
      if (o.momentum == 0.0) continue;
      exp_avg.slack[k] = 3 * kUlp * (std::abs(o.momentum * m) + std::abs((1 - o.momentum) * g));
      error[k] = exp_avg.slack[k] + half_ulp(p.exp_avg.dtype(), std::abs(x[k]));
    }
    const int64_t groups = p.matrices * (o.columns ? p.cols : p.rows);
    const auto group_of = [&](int64_t i) {
      return static_cast<size_t>(o.columns ? i / (p.rows * p.cols) * p.cols + i % p.cols : i / p.cols);
    };
    Values sums(static_cast<size_t>(groups)), errors(sums);
    for (int64_t i = 0; i < p.param.numel(); ++i) {
      const auto k = static_cast<size_t>(i);
      sums[group_of(i)] += x[k] * x[k];
      errors[group_of(i)] += error[k] * error[k];
    }
    const double length = !o.rms ? 1.0 : static_cast<double>(o.columns ? p.rows : p.cols);
    for (int64_t i = 0; i < p.param.numel(); ++i) {
      const auto k = static_cast<size_t>(i);
      const double w = p.param[i];
      const double norm = std::sqrt(sums[group_of(i)] / length);
      const double divisor = norm < o.eps ? o.eps : norm;
      const double u = divisor == 0.0 ? 0.0 : x[k] / divisor;
      param.value[k] = w * (1 - o.lr * o.weight_decay) - o.lr * u;
      param.slack[k] = 2 * kUlp * std::abs(w) + 48 * kUlp * o.lr * std::abs(u);
      if (error[k] > 0.0 && divisor > 0.0 && std::isfinite(divisor)) {
        const double spread = std::abs(u) * std::sqrt(errors[group_of(i)] / length) / divisor;
        param.slack[k] += 2 * o.lr * (error[k] / divisor + spread);
      }
    }
  }
};

inline void scale_step(std::vector<ScaleProblem>& problems, const cpu::ScaleOptions& options, int threads) {
  std::vector<cpu::ScaleMatrix> views;
  for (ScaleProblem& problem : problems) problem.append_views(options, views);
  cpu::ScaleStep(std::move(views), options).run(threads);
}

inline void expect_matches(const std::vector<ScaleProblem>& problems, const std::vector<ScaleExpected>& expected) {
  for (size_t i = 0; i < problems.size(); ++i) {
    SCOPED_TRACE("tensor " + std::to_string(i) + ", " + describe(Shape{problems[i].rows, problems[i].cols}));
    ASSERT_TRUE(matches(problems[i].exp_avg, expected[i].exp_avg)) << "exp_avg";
    ASSERT_TRUE(matches(problems[i].param, expected[i].param)) << "param";
  }
}

inline void step_and_check(std::vector<ScaleProblem>& problems, const cpu::ScaleOptions& options, int threads) {
  std::vector<ScaleExpected> expected;
  for (const ScaleProblem& problem : problems) expected.emplace_back(problem, options);
  scale_step(problems, options, threads);
  expect_matches(problems, expected);
}

template <typename Offset = int64_t>
std::vector<ScaleProblem> make_scale(const Mix& mix, const std::vector<Shape>& shapes, uint64_t seed,
                                     const Offset& offset = {}) {
  Random random(seed);
  std::vector<ScaleProblem> problems;
  for (const Shape& shape : shapes) {
    problems.emplace_back(mix, shape, offset);
    problems.back().fill(random);
  }
  return problems;
}

// A list of experts: `count` matrices in one tensor, which differ in size.
inline std::vector<ScaleProblem> make_experts(const Mix& mix, int64_t count, Shape shape, uint64_t seed) {
  Random random(seed);
  std::vector<ScaleProblem> problems;
  problems.emplace_back(mix, shape, std::array<int64_t, 3>{0, 0, 0}, count);
  ScaleProblem& p = problems[0];
  p.fill(random);
  for (int64_t i = 0; i < p.grad.numel(); ++i) {
    p.grad.set(i, p.grad[i] * std::pow(4.0, static_cast<double>(i / (shape.rows * shape.cols))));
  }
  return problems;
}

inline std::vector<std::byte> bytes_of(const std::vector<ScaleProblem>& problems) {
  std::vector<std::byte> bytes;
  for (const ScaleProblem& p : problems) {
    for (const Buffer* buffer : {&p.param, &p.exp_avg}) {
      const std::vector<std::byte> more = buffer->bytes();
      bytes.insert(bytes.end(), more.begin(), more.end());
    }
  }
  return bytes;
}

}  // namespace sage_ext::testing
