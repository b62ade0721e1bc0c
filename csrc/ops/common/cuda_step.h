#pragma once

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/common/step_scalars.h"
#include "ops/rules.h"

// What the rules' steps on a CUDA device share. Only in builds with CUDA.
namespace sage_ext::ops {

// A step on a device: as long as it lives, the device is the current one, and what the kernels read and write
// beside the plan's own tensors is kept. All of that is allocated for the device's current stream, on which the
// kernels run too: it may be freed as soon as they are enqueued.
class CudaStep {
 public:
  CudaStep(at::Device device, const CommonCall& call);
  CudaStep(const CudaStep&) = delete;
  CudaStep& operator=(const CudaStep&) = delete;

  const cuda::StepScalars& scalars() const { return scalars_; }
  cudaStream_t stream() const { return stream_; }

  // Uninitialised memory on the device, valid as long as this step.
  void* workspace(int64_t bytes);

  // One float32 on the device with the value of `scalar`, which may be anywhere and of any floating dtype; valid as
  // long as this step.
  const float* on_device(const at::Tensor& scalar);

 private:
  c10::cuda::CUDAGuard guard_;
  at::Device device_;
  cudaStream_t stream_;
  TensorList kept_;
  cuda::StepScalars scalars_;
};

}  // namespace sage_ext::ops
