#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "cpu/sinkgd.h"
#include "support.h"

// A matrix for SinkGD and what one step should make of it: the eager loop in fp64.
namespace sage_ext::testing {

inline constexpr cpu::SinkGDOptions kSinkGDOptions{
    .lr = 0.5, .alpha = 0.25, .eps = 1e-8, .weight_decay = 0.1, .iterations = 5, .unit = false, .grad_factor = 1.0};

struct SinkGDProblem {
  int64_t rows, cols;
  Buffer param, grad;

  // `offsets` in elements, of W and g.
  SinkGDProblem(const Mix& mix, Shape shape, const std::array<int64_t, 2>& offsets)
      : rows(shape.rows),
        cols(shape.cols),
        param(mix.param, rows * cols, offsets[0]),
        grad(mix.grad, rows * cols, offsets[1]) {}
  SinkGDProblem(const Mix& mix, Shape shape, int64_t offset = 0) : SinkGDProblem(mix, shape, {offset, 3 * offset}) {}

  void fill(Random& random) {
    fill_normal(param, random, 0.5);
    if (cols > 0) fill_gradient(grad, cols, random);
  }

  cpu::SinkGDMatrix view() { return {param.data(), grad.data(), rows, cols, param.dtype(), grad.dtype()}; }
};

// The factor that takes a vector to norm `target`; an exactly zero vector stays.
inline double factor(double sum_of_squares, double target, double eps) {
  const double norm = std::sqrt(sum_of_squares);
  return norm == 0 ? 0.0 : target / (norm + eps);
}

// X after all iterations.
inline Values sinkhorn(const SinkGDProblem& p, const cpu::SinkGDOptions& o) {
  Values x = p.grad.values();
  for (double& value : x) value *= o.grad_factor;
  const double row_target = o.unit ? 1 : std::sqrt(static_cast<double>(p.cols));
  const double col_target = o.unit ? 1 : std::sqrt(static_cast<double>(p.rows));
  const auto rows = static_cast<size_t>(p.rows), cols = static_cast<size_t>(p.cols);
  for (int iteration = 0; iteration < o.iterations; ++iteration) {
    Values col_sums(cols);
    for (size_t i = 0; i < rows; ++i) {
      double* const row = x.data() + i * cols;
      double sum = 0;
      for (size_t j = 0; j < cols; ++j) sum += row[j] * row[j];
      const double scale = factor(sum, row_target, o.eps);
      for (size_t j = 0; j < cols; ++j) {
        row[j] *= scale;
        col_sums[j] += row[j] * row[j];
      }
    }
    for (double& sum : col_sums) sum = factor(sum, col_target, o.eps);
    for (size_t k = 0; k < x.size(); ++k) x[k] *= col_sums[k % cols];
  }
  return x;
}

// The relative error of X that is let pass, whatever the size: kernels sum at most a few thousand numbers in fp32.
// Roundings go either way, except in a single column: all its entries have the same size once the rows are
// normalized, and so all its roundings the same direction.
inline double sinkgd_tolerance(const SinkGDProblem& p) { return (p.cols == 1 ? 64 : 40) * kUlp; }

inline Expected sinkgd_expected(const SinkGDProblem& p, const cpu::SinkGDOptions& o) {
  const double tolerance = sinkgd_tolerance(p);
  const Values x = sinkhorn(p, o);
  Expected param(x.size());
  for (size_t k = 0; k < x.size(); ++k) {
    const double w = p.param[static_cast<int64_t>(k)];
    const double update = o.lr * o.alpha * x[k];
    param.value[k] = w * (1 - o.lr * o.weight_decay) - update;
    param.slack[k] = 2 * kUlp * std::abs(w) + (tolerance + 2 * kUlp) * std::abs(update);
  }
  return param;
}

inline void sinkgd_step(std::vector<SinkGDProblem>& problems, const cpu::SinkGDOptions& options, int threads) {
  std::vector<cpu::SinkGDMatrix> matrices;
  for (SinkGDProblem& problem : problems) matrices.push_back(problem.view());
  cpu::SinkGDStep(std::move(matrices), options).run(threads);
}

inline void step_and_check(std::vector<SinkGDProblem>& problems, const cpu::SinkGDOptions& options, int threads) {
  std::vector<Expected> expected;
  for (const SinkGDProblem& problem : problems) expected.push_back(sinkgd_expected(problem, options));
  sinkgd_step(problems, options, threads);
  for (size_t i = 0; i < problems.size(); ++i) {
    SCOPED_TRACE("matrix " + std::to_string(i) + ", " + describe(Shape{problems[i].rows, problems[i].cols}));
    ASSERT_TRUE(matches(problems[i].param, expected[i]));
  }
}

template <typename Offset = int64_t>
std::vector<SinkGDProblem> make_sinkgd(const Mix& mix, const std::vector<Shape>& shapes, uint64_t seed,
                                       const Offset& offset = {}) {
  Random random(seed);
  std::vector<SinkGDProblem> problems;
  for (const Shape& shape : shapes) {
    problems.emplace_back(mix, shape, offset);
    problems.back().fill(random);
  }
  return problems;
}

// Thin matrices and many iterations, or gradients that are nearly too small or too large: the row and column scales of
// the unit form, iterated as it is written, leave fp32 in each of them.
struct UnitCase {
  Shape shape;
  int iterations;
  double size;  // of the gradients
};

inline constexpr UnitCase kUnitCases[] = {
    {{1, 500}, 60, 1.0}, {{500, 3}, 60, 1.0}, {{6, 600}, 60, 1.0}, {{3000, 2}, 30, 1e-8}, {{2, 1000}, 5, 1e34}};

inline std::vector<SinkGDProblem> make_unit_case(const UnitCase& c) {
  std::vector<SinkGDProblem> problems = make_sinkgd(kFloat, {c.shape}, 21);
  fill(problems[0].param, 0.0);  // every bit of the update is visible
  Random random(22);
  fill_normal(problems[0].grad, random, c.size);
  return problems;
}

// Matrices of which one half is of one size and the other of another: by rows, by elements, and as a chess board of
// four fields. Columns are scaled after the rows: what they differ by has to be a number of fp32 itself.
inline std::vector<SinkGDProblem> make_mixed(const Shape& shape) {
  std::vector<SinkGDProblem> problems = make_sinkgd(kFloat, std::vector<Shape>(4, shape), 23);
  Random random(24);
  for (size_t k = 0; k < problems.size(); ++k) {
    SinkGDProblem& p = problems[k];
    fill(p.param, 0.0);
    for (int64_t i = 0; i < p.grad.numel(); ++i) {
      const int64_t row = i / p.cols, col = i % p.cols;
      const bool is_large[] = {row % 2 == 0, random.uniform() < 0.5, (2 * row < p.rows) == (2 * col < p.cols),
                               col % 2 == 0};
      const double size = k == 3 ? 1e18 : 1e30;
      p.grad.set(i, random.normal() * (is_large[k] ? size : 1 / size));
    }
  }
  return problems;
}

}  // namespace sage_ext::testing
