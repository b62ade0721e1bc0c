#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "core/dtype.h"
#include "cuda/common/step_scalars.h"

namespace sage_ext::cuda {

// One parameter with its gradient and momentum: three dense arrays of `numel` elements in the same order, on one
// device.
struct LionTensor {
  void* param;
  const void* grad;
  void* exp_avg;
  int64_t numel;
  DType param_dtype, grad_dtype, exp_avg_dtype;
};

struct LionOptions {
  double beta1, beta2, weight_decay;
};

// One Lion step over all tensors on `stream`: one launch for each mix of dtypes.
void lion_step(std::span<const LionTensor> tensors, const LionOptions& options, const StepScalars& scalars,
               cudaStream_t stream);

}  // namespace sage_ext::cuda
