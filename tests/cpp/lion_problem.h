#pragma once

#include <array>
#include <cmath>
#include <vector>

#include "cpu/lion.h"
#include "support.h"

// A tensor for Lion and what one step should make of it, in fp64.
namespace sage_ext::testing {

inline constexpr cpu::LionOptions kLionOptions{
    .lr = 1e-2, .beta1 = 0.9, .beta2 = 0.99, .weight_decay = 0.1, .grad_factor = 1.0};

struct LionProblem {
  Buffer param, grad, exp_avg;

  // `offsets` in elements, of W, g and the momentum.
  LionProblem(const Mix& mix, int64_t numel, const std::array<int64_t, 3>& offsets)
      : param(mix.param, numel, offsets[0]), grad(mix.grad, numel, offsets[1]), exp_avg(mix.state, numel, offsets[2]) {}
  LionProblem(const Mix& mix, int64_t numel, int64_t offset = 0)
      : LionProblem(mix, numel, {offset, 3 * offset, 5 * offset}) {}

  void fill(Random& random) {
    fill_normal(param, random, 0.5);
    fill_gradient(grad, 7, random);
    fill_normal(exp_avg, random, 0.1);
    for (int64_t i = 0; i < exp_avg.numel(); i += 5) exp_avg.set(i, 0.0);  // sign(0) where the gradient is zero too
  }

  cpu::LionTensor view() {
    return {param.data(), grad.data(), exp_avg.data(), param.numel(), param.dtype(), grad.dtype(), exp_avg.dtype()};
  }
};

inline std::vector<cpu::LionTensor> views(std::vector<LionProblem>& problems) {
  std::vector<cpu::LionTensor> result;
  for (LionProblem& problem : problems) result.push_back(problem.view());
  return result;
}

// The formula of ALGORITHMS in fp64, from the state as it is stored.
struct LionExpected {
  Expected param, exp_avg;

  LionExpected(const LionProblem& p, const cpu::LionOptions& o)
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

template <typename Offset = int64_t>
std::vector<LionProblem> make_lion(const Mix& mix, const std::vector<int64_t>& sizes, uint64_t seed,
                                   const Offset& offset = {}) {
  Random random(seed);
  std::vector<LionProblem> problems;
  for (const int64_t size : sizes) {
    problems.emplace_back(mix, size, offset);
    problems.back().fill(random);
  }
  return problems;
}

}  // namespace sage_ext::testing
