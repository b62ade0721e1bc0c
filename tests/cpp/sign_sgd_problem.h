#pragma once

#include <cmath>
#include <vector>

#include "cpu/sign_sgd.h"
#include "lion_problem.h"

// What one step of Sign-SGD or Signum should make of a tensor, in fp64. The tensors are Lion's: W, g and one momentum.
namespace sage_ext::testing {

inline constexpr cpu::SignSGDOptions kSignSGDOptions{
    .lr = 1e-2, .momentum = 0.0, .weight_decay = 0.1, .grad_factor = 1.0};
inline constexpr cpu::SignSGDOptions kSignumOptions{
    .lr = 1e-2, .momentum = 0.9, .weight_decay = 0.1, .grad_factor = 1.0};

// Without momentum the pointer is null.
template <typename Tensor>
Tensor sign_sgd_view(LionProblem& p, double momentum) {
  return {p.param.data(),   p.grad.data(),   momentum == 0.0 ? nullptr : p.exp_avg.data(),
          p.param.numel(),  p.param.dtype(), p.grad.dtype(),
          p.exp_avg.dtype()};
}

template <typename Tensor>
std::vector<Tensor> sign_sgd_views(std::vector<LionProblem>& problems, double momentum) {
  std::vector<Tensor> result;
  for (LionProblem& problem : problems) result.push_back(sign_sgd_view<Tensor>(problem, momentum));
  return result;
}

inline void sign_sgd_step(std::vector<LionProblem>& problems, const cpu::SignSGDOptions& options, int threads) {
  cpu::sign_sgd_step(sign_sgd_views<cpu::SignSGDTensor>(problems, options.momentum), options, threads);
}

// The formula of ALGORITHMS in fp64, from the state as it is stored.
struct SignSGDExpected {
  Expected param, exp_avg;

  SignSGDExpected(const LionProblem& p, const cpu::SignSGDOptions& o)
      : param(static_cast<size_t>(p.param.numel())), exp_avg(param) {
    for (int64_t i = 0; i < p.param.numel(); ++i) {
      const auto k = static_cast<size_t>(i);
      const double w = p.param[i], m = p.exp_avg[i], g = p.grad[i] * o.grad_factor;
      const double x = o.momentum == 0.0 ? g : o.momentum * m + (1 - o.momentum) * g;
      const double size = std::abs(o.momentum * m) + std::abs((1 - o.momentum) * g);
      const double sign = x > 0 ? 1 : x < 0 ? -1 : 0;
      param.value[k] = w * (1 - o.lr * o.weight_decay) - o.lr * sign;
      param.slack[k] = 2 * kUlp * (std::abs(w) + o.lr);
      exp_avg.value[k] = o.momentum == 0.0 ? m : x;
      if (o.momentum == 0.0) continue;
      exp_avg.slack[k] = 3 * kUlp * size;
      // The sign is open only where the momentum is within rounding of zero.
      if (x != 0 && std::abs(x) < 4 * kUlp * size) param.slack[k] += 2 * o.lr;
    }
  }
};

inline std::vector<std::byte> bytes_of(const std::vector<LionProblem>& problems) {
  std::vector<std::byte> bytes;
  for (const LionProblem& p : problems) {
    for (const Buffer* buffer : {&p.param, &p.exp_avg}) {
      const std::vector<std::byte> more = buffer->bytes();
      bytes.insert(bytes.end(), more.begin(), more.end());
    }
  }
  return bytes;
}

}  // namespace sage_ext::testing
