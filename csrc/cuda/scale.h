#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "core/dtype.h"
#include "core/launch_plan.h"
#include "cuda/common/step_scalars.h"

namespace sage_ext::cuda {

// One contiguous parameter, [matrices, rows, cols], with its gradient and, with momentum, its exp_avg (else null, its
// dtype not looked at), all on one device. It may be a piece of a tensor that lies on several processes.
struct ScaleTensor {
  void* param;
  const void* grad;
  void* exp_avg;
  int64_t matrices, rows, cols;
  DType param_dtype, grad_dtype, exp_avg_dtype;
  WholeSize whole = {};  // of a matrix
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

// The same for pieces whose rows (or columns) are cut, in two parts with as much scratch, which is kept between them.
// After the first the processes add up the sums of squares: sums[i] is of tensor i, [matrices, rows] or
// [matrices, cols], and zero from the start where a piece has no elements.
void scale_put_sums(std::span<const ScaleTensor> pieces, std::span<double* const> sums, const ScaleOptions& options,
                    const StepScalars& scalars, void* workspace, cudaStream_t stream);
void scale_finish(std::span<const ScaleTensor> pieces, std::span<double* const> sums, const ScaleOptions& options,
                  const StepScalars& scalars, void* workspace, cudaStream_t stream);

}  // namespace sage_ext::cuda
