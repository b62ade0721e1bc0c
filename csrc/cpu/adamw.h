#pragma once

#include <cstdint>
#include <span>

#include "core/dtype.h"
#include "core/math/adamw.h"

namespace sage_ext::cpu {

// One parameter with its gradient and both moments: dense arrays of `numel` elements in the same order.
struct AdamWTensor {
  void* param;
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  int64_t numel;
  DType param_dtype, grad_dtype, state_dtype;
  AdamWCoefficients coefficients;  // depend on the tensor's own step count
};

// One AdamW step over all tensors, on up to `threads` threads. `grad_factor` multiplies every gradient on load.
void adamw_step(std::span<const AdamWTensor> tensors, double grad_factor, int threads);

}  // namespace sage_ext::cpu
