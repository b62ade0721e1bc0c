#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "core/dtype.h"
#include "core/math/alias_adam.h"
#include "cuda/common/step_scalars.h"

namespace sage_ext::cuda {

// One parameter with its gradient and both moments, dense arrays of `numel` elements in the same order, the bit planes
// of the last gradient's signs (core/sign_planes.h) and its scalars: all on one device.
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

// Bytes of device memory that alias_adam_step() needs as scratch.
int64_t alias_adam_workspace_bytes(std::span<const AliasAdamTensor> tensors);

// One ALIAS-Adam step over all tensors on `stream`: three launches for tensors of one mix of dtypes.
void alias_adam_step(std::span<const AliasAdamTensor> tensors, const AliasAdamConstants& constants,
                     const StepScalars& scalars, void* workspace, cudaStream_t stream);

}  // namespace sage_ext::cuda
