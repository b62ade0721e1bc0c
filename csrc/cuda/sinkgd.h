#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "core/dtype.h"
#include "cuda/common/step_scalars.h"

namespace sage_ext::cuda {

// A contiguous parameter [matrices, rows, cols] with its gradient, on one device; each matrix is normalised on its
// own.
struct SinkGDTensor {
  void* param;
  const void* grad;
  int64_t matrices, rows, cols;
  DType param_dtype, grad_dtype;
};

struct SinkGDOptions {
  double alpha, eps, weight_decay;
  int iterations;
  bool unit;  // leave out the factors sqrt(rows) and sqrt(cols)
};

// Bytes of device memory that sinkgd_step() needs as scratch.
int64_t sinkgd_workspace_bytes(std::span<const SinkGDTensor> tensors);

// One SinkGD step over all tensors on `stream`: two launches an iteration and one for the update, where all
// tensors share their dtypes. The gradient is read once an iteration and never written.
void sinkgd_step(std::span<const SinkGDTensor> tensors, const SinkGDOptions& options, const StepScalars& scalars,
                 void* workspace, cudaStream_t stream);

}  // namespace sage_ext::cuda
