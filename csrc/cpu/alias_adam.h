#pragma once

#include <cstdint>
#include <span>

#include "core/dtype.h"
#include "core/math/alias_adam.h"

namespace sage_ext::cpu {

// One parameter with its gradient and both moments, dense arrays of `numel` elements in the same order, the bit planes
// of the last gradient's signs (core/sign_planes.h) and its scalars.
struct AliasAdamTensor {
  void* param;
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  uint32_t* signs;
  AliasAdamScalars* scalars;
  int64_t numel;
  DType param_dtype, grad_dtype, state_dtype;
};

// One ALIAS-Adam step over all tensors, on up to `threads` threads. `grad_factor` multiplies every gradient on load.
void alias_adam_step(std::span<const AliasAdamTensor> tensors, double lr, const AliasAdamConstants& constants,
                     double grad_factor, int threads);

}  // namespace sage_ext::cpu
