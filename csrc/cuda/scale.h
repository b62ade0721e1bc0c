#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "core/dtype.h"
#include "cuda/common/step_scalars.h"

namespace sage_ext::cuda {

// One contiguous parameter, [matrices, rows, cols], with its gradient and, with momentum, its exp_avg (else null, its
// dtype not looked at), all on one device.
struct ScaleTensor {
  void* param;
  const void* grad;
  void* exp_avg;
  int64_t matrices, rows, cols;
  DType param_dtype, grad_dtype, exp_avg_dtype;
};

struct ScaleOptions {
  double momentum, eps, weight_decay;
  bool rms;      // else the l2 norm
  bool columns;  // a norm for every column (dim 0), else for every row (dim 1)
};

// Bytes of device memory that scale_step() needs as scratch.
int64_t scale_workspace_bytes(std::span<const ScaleTensor> tensors, const ScaleOptions& options);

// One SCALE step over all tensors on `stream`. x is the gradient, or the momentum as it is stored. Where all tensors
// share their dtypes: two launches for rows, three for columns.
void scale_step(std::span<const ScaleTensor> tensors, const ScaleOptions& options, const StepScalars& scalars,
                void* workspace, cudaStream_t stream);

}  // namespace sage_ext::cuda
