#include "ops/common/rule_plan.h"

#include <ATen/Parallel.h>
#include <c10/core/Scalar.h>

#include <stdexcept>

#include "core/math/common.h"

#ifdef SAGE_EXT_WITH_CUDA
#include "ops/common/cuda_step.h"
#endif

namespace sage_ext::ops {

void check_scalar(const char* name, const char* otherwise, const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.numel() != 1 || !at::isFloatingType(tensor.scalar_type())) {
    throw std::invalid_argument(std::string(name) + " must be " + otherwise +
                                " or a floating-point tensor with one element");
  }
}

namespace {

void check_optional_scalar(const char* name, const std::optional<at::Tensor>& tensor) {
  if (tensor.has_value()) check_scalar(name, "None", *tensor);
}

bool skips_step(const CommonArgs& args) {
  return args.found_inf.has_value() && args.found_inf->item().toDouble() != 0.0;
}

// Tells autograd that these tensors were written, as an in-place operation does.
void bump_versions(const TensorList& tensors) {
  for (const at::Tensor& tensor : tensors) {
    if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace

void RulePlan::check_common() {
  if (const auto* tensor = std::get_if<at::Tensor>(&common_.lr)) {
    check_scalar("lr", "a number", *tensor);
    // A device's own learning rate is for its kernels to read: the host would have to wait for it.
    if (!on_cuda() || tensor->is_cpu()) common_.lr = tensor->item().toDouble();
  }
  if (const auto* number = std::get_if<double>(&common_.lr)) check_not_negative("lr", *number);
  check_not_negative("weight_decay", common_.weight_decay);
  check_optional_scalar("grad_scale", common_.grad_scale);
  check_optional_scalar("found_inf", common_.found_inf);
}

void RulePlan::run() {
  if (params_.empty()) return;
#ifdef SAGE_EXT_WITH_CUDA
  if (on_cuda()) {
    CudaStep step(params_[0].device(), common_);
    run_cuda(step);
    // Also where found_inf will skip the step, which only the device knows: autograd then takes the tensors for
    // written although they were not, which is safe.
    for (const TensorList* list : written()) bump_versions(*list);
    return;
  }
#endif
  if (skips_step(common_)) return;
  run_cpu();
  for (const at::Tensor& step : steps_) step_count(step) += 1.0f;
  for (const TensorList* list : written()) bump_versions(*list);
}

double grad_factor(const CommonArgs& args) {
  const double scale = args.grad_scale.has_value() ? args.grad_scale->item().toDouble() : 1.0;
  return gradient_factor(args.maximize, scale);
}

int num_threads() { return at::get_num_threads(); }

float& step_count(const at::Tensor& step) { return *static_cast<float*>(step.mutable_data_ptr()); }

}  // namespace sage_ext::ops
