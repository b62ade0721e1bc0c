#pragma once

#include "core/math/common.h"
#include "cuda/common/step_scalars.h"
#include "cuda/common/vec128.cuh"

namespace sage_ext::cuda {

__device__ __forceinline__ bool skips_step(const StepScalars& s) {
  return s.found_inf != nullptr && load_uniform(s.found_inf) != 0.0f;
}

__device__ __forceinline__ double learning_rate(const StepScalars& s) {
  return s.lr_tensor != nullptr ? static_cast<double>(load_uniform(s.lr_tensor)) : s.lr;
}

// The factor of every gradient on load.
__device__ __forceinline__ float grad_factor(const StepScalars& s) {
  const float scale = s.grad_scale != nullptr ? load_uniform(s.grad_scale) : 1.0f;
  return gradient_factor(s.maximize, scale);
}

}  // namespace sage_ext::cuda
