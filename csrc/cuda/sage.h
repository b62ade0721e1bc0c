#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "core/dtype.h"
#include "core/launch_plan.h"
#include "core/math/sage.h"
#include "cuda/common/step_scalars.h"

namespace sage_ext::cuda {

// One contiguous parameter seen as [rows, cols] (a 1-D tensor is one row), with its gradient, its momentum of the
// same shape, its s_range [cols] and its step counter (one element), all on one device. It may be a piece of a tensor
// that lies on several processes.
struct SageTensor {
  void* param;
  const void* grad;
  void* exp_avg;
  float* s_range;
  float* step;  // steps done; the finalize launch adds one
  int64_t rows, cols;
  DType param_dtype, grad_dtype, exp_avg_dtype;
  WholeSize whole = {};
};

struct SageOptions {
  double beta1, beta2, eps, weight_decay;
  bool momentum_first, instant_damper;
};

// Bytes of device memory that sage_step() needs as scratch.
int64_t sage_workspace_bytes(std::span<const SageTensor> tensors);

// One SAGE step over all tensors on `stream`: three launches, where all tensors share their dtypes.
void sage_step(std::span<const SageTensor> tensors, const SageOptions& options, const StepScalars& scalars,
               void* workspace, cudaStream_t stream);

// The same for pieces, in three parts with as much scratch, which is kept between them: after the first the processes
// whose pieces have the same columns add up `columns`, after the second those whose pieces have the same rows
// `squares`. The `columns` of a piece without rows are zero from the start.
void sage_put_columns(std::span<const SageTensor> pieces, std::span<const SageSums> sums, const StepScalars& scalars,
                      void* workspace, cudaStream_t stream);
void sage_put_squares(std::span<const SageTensor> pieces, std::span<const SageSums> sums, const SageOptions& options,
                      const StepScalars& scalars, void* workspace, cudaStream_t stream);
void sage_finish(std::span<const SageTensor> pieces, std::span<const SageSums> sums, const SageOptions& options,
                 const StepScalars& scalars, void* workspace, cudaStream_t stream);

}  // namespace sage_ext::cuda
