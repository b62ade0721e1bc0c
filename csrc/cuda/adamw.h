#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "core/dtype.h"
#include "cuda/common/step_scalars.h"

namespace sage_ext::cuda {

// One parameter with its gradient, both moments and its step counter: dense arrays of `numel` elements in the
// same order, on one device; `step` is one element there.
struct AdamWTensor {
  void* param;
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  float* step;  // steps done; the launch adds one
  int64_t numel;
  DType param_dtype, grad_dtype, state_dtype;
};

struct AdamWOptions {
  double beta1, beta2, eps, weight_decay;
};

// Bytes of device memory that adamw_step() needs as scratch.
int64_t adamw_workspace_bytes(std::span<const AdamWTensor> tensors);

// One AdamW step over all tensors on `stream`: one launch for each mix of dtypes.
void adamw_step(std::span<const AdamWTensor> tensors, const AdamWOptions& options, const StepScalars& scalars,
                void* workspace, cudaStream_t stream);

}  // namespace sage_ext::cuda
