#pragma once

#include <array>
#include <cmath>
#include <vector>

#include "core/math/adamw.h"
#include "cpu/adamw.h"
#include "support.h"

// A tensor for AdamW and what one step should make of it, in fp64.
namespace sage_ext::testing {

struct AdamWOptions {
  double lr = 1e-2, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.1, grad_factor = 1.0;
};

struct AdamWProblem {
  Buffer param, grad, exp_avg, exp_avg_sq;
  double step = 0;

  // `offsets` in elements, of W, g and both moments.
  AdamWProblem(const Mix& mix, int64_t numel, const std::array<int64_t, 4>& offsets)
      : param(mix.param, numel, offsets[0]),
        grad(mix.grad, numel, offsets[1]),
        exp_avg(mix.state, numel, offsets[2]),
        exp_avg_sq(mix.state, numel, offsets[3]) {}
  AdamWProblem(const Mix& mix, int64_t numel, int64_t offset = 0)
      : AdamWProblem(mix, numel, {offset, 3 * offset, 5 * offset, 7 * offset}) {}

  void fill(Random& random) {
    fill_normal(param, random, 0.5);
    fill_gradient(grad, 7, random);
  }

  cpu::AdamWTensor view(const AdamWOptions& o) {
    const AdamWConstants constants = adamw_constants(o.beta1, o.beta2, o.eps, o.weight_decay);
    return {param.data(),      grad.data(),     exp_avg.data(),
            exp_avg_sq.data(), param.numel(),   param.dtype(),
            grad.dtype(),      exp_avg.dtype(), adamw_coefficients(o.lr, constants, step)};
  }
};

// torch.optim.AdamW's formula in fp64, from the state as it is stored.
struct AdamWExpected {
  Expected param, exp_avg, exp_avg_sq;

  AdamWExpected(const AdamWProblem& p, const AdamWOptions& o)
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

inline std::vector<cpu::AdamWTensor> views(std::vector<AdamWProblem>& problems, const AdamWOptions& options) {
  std::vector<cpu::AdamWTensor> result;
  for (AdamWProblem& problem : problems) result.push_back(problem.view(options));
  return result;
}

template <typename Offset = int64_t>
std::vector<AdamWProblem> make_adamw(const Mix& mix, const std::vector<int64_t>& sizes, uint64_t seed,
                                     const Offset& offset = {}) {
  Random random(seed);
  std::vector<AdamWProblem> problems;
  for (const int64_t size : sizes) {
    problems.emplace_back(mix, size, offset);
    problems.back().fill(random);
  }
  return problems;
}

}  // namespace sage_ext::testing
