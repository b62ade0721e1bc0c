#ifdef SAGE_EXT_WITH_CUDA  // this file is in the list of every build
#include "ops/common/cuda_step.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

namespace sage_ext::ops {

CudaStep::CudaStep(at::Device device, const CommonCall& call)
    : guard_(device), device_(device), stream_(c10::cuda::getCurrentCUDAStream(device.index()).stream()) {
  const Number& lr = value_of<"lr">(call);
  if (const auto* number = std::get_if<double>(&lr)) {
    scalars_.lr = *number;
  } else {
    scalars_.lr_tensor = on_device(std::get<at::Tensor>(lr));
  }
  if (const auto& scale = value_of<"grad_scale">(call)) scalars_.grad_scale = on_device(*scale);
  if (const auto& flag = value_of<"found_inf">(call)) scalars_.found_inf = on_device(*flag);
  scalars_.maximize = value_of<"maximize">(call);
}

void* CudaStep::workspace(int64_t bytes) {
  kept_.push_back(at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(device_)));
  return kept_.back().mutable_data_ptr();
}

const float* CudaStep::on_device(const at::Tensor& scalar) {
  if (scalar.is_cpu()) {
    // A kernel that fills in a value which the host knows: a copy from host memory would be waited for.
    const float value = scalar.to(at::kFloat).item<float>();
    kept_.push_back(at::full({}, value, at::TensorOptions().dtype(at::kFloat).device(device_)));
  } else {
    kept_.push_back(scalar.to(device_, at::kFloat, /*non_blocking=*/true));
  }
  return static_cast<const float*>(kept_.back().const_data_ptr());
}

}  // namespace sage_ext::ops
#endif
