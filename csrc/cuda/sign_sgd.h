#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "core/dtype.h"
#include "cuda/common/step_scalars.h"

namespace sage_ext::cuda {

// One parameter with its gradient and, with momentum, its exp_avg: dense arrays of `numel` elements in the same
// order, on one device. Without momentum exp_avg is null, and its dtype is not looked at.
struct SignSGDTensor {
  void* param;
  const void* grad;
  void* exp_avg;
  int64_t numel;
  DType param_dtype, grad_dtype, exp_avg_dtype;
};

struct SignSGDOptions {
  double momentum, weight_decay;
};

// One step of Sign-SGD over all tensors, or of Signum where momentum is not 0, on `stream`: one launch for each mix of
// dtypes.
void sign_sgd_step(std::span<const SignSGDTensor> tensors, const SignSGDOptions& options, const StepScalars& scalars,
                   cudaStream_t stream);

}  // namespace sage_ext::cuda
