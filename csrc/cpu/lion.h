#pragma once

#include <cstdint>
#include <span>

#include "core/dtype.h"

namespace sage_ext::cpu {

// One parameter with its gradient and momentum: three dense arrays of `numel` elements in the same order.
struct LionTensor {
  void* param;
  const void* grad;
  void* exp_avg;
  int64_t numel;
  DType param_dtype, grad_dtype, exp_avg_dtype;
};

struct LionOptions {
  double lr, beta1, beta2, weight_decay;
  double grad_factor;  // multiplies every gradient on load: 1 / grad_scale, negated to maximize
};

// One Lion step over all tensors, on up to `threads` threads.
void lion_step(std::span<const LionTensor> tensors, const LionOptions& options, int threads);

}  // namespace sage_ext::cpu
