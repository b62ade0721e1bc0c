#pragma once

#include <cstdint>
#include <span>

#include "core/dtype.h"

namespace sage_ext::cpu {

// One parameter with its gradient and, with momentum, its exp_avg: dense arrays of `numel` elements in the same
// order. Without momentum exp_avg is null, and its dtype is not looked at.
struct SignSGDTensor {
  void* param;
  const void* grad;
  void* exp_avg;
  int64_t numel;
  DType param_dtype, grad_dtype, exp_avg_dtype;
};

struct SignSGDOptions {
  double lr, momentum, weight_decay;
  double grad_factor;  // multiplies every gradient on load: 1 / grad_scale, negated to maximize
};

// One step of Sign-SGD over all tensors, or of Signum where momentum is not 0, on up to `threads` threads.
void sign_sgd_step(std::span<const SignSGDTensor> tensors, const SignSGDOptions& options, int threads);

}  // namespace sage_ext::cpu
