#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>
#include <span>

#include "core/dtype.h"
#include "core/math/alias.h"
#include "cuda/common/step_scalars.h"

namespace sage_ext::cuda {

// One parameter with its gradient: dense arrays of `numel` elements in the same order, on one device. Of what is kept
// of the gradient before it, a form has one or neither; the other pointer is null:
//   extrema or sum, descent       signs: its bit planes (core/sign_planes.h)
//   extrema or sum, lower bound   nothing
//   base                          prev_grad: all of it, in grad_dtype
struct AliasTensor {
  void* param;
  const void* grad;
  uint32_t* signs;
  void* prev_grad;
  int64_t numel;
  DType param_dtype, grad_dtype;
};

// The loss at the first step, where the gap is the one to the lower bound: `tensor`, one element on the device, takes
// the place of `value`. Only the device knows which step is the first one; without a loss, what comes of it is NaN.
struct AliasLoss {
  double value = std::numeric_limits<double>::quiet_NaN();
  const float* tensor = nullptr;
};

// Bytes of device memory that alias_step() needs as scratch.
int64_t alias_workspace_bytes(std::span<const AliasTensor> tensors);

// One ALIAS step over all tensors on `stream`; `shared` is on the device. Three launches for tensors of one mix of
// dtypes: look at the gradients, advance `shared`, move the parameters; one more with update_every > 1.
void alias_step(std::span<const AliasTensor> tensors, const AliasOptions& options, const AliasLoss& loss,
                const StepScalars& scalars, AliasScalars* shared, void* workspace, cudaStream_t stream);

}  // namespace sage_ext::cuda
