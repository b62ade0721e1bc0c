#include "ops/common/rule_plan.h"

#include <ATen/Parallel.h>
#include <c10/core/Scalar.h>

#include "core/math/common.h"

#ifdef SAGE_EXT_WITH_CUDA
#include "ops/common/cuda_step.h"
#endif

namespace sage_ext::ops {

namespace {

void check_optional_scalar(const char* name, const std::optional<at::Tensor>& tensor) {
  if (tensor.has_value()) check_scalar(name, "None", *tensor);
}

bool skips_step(const std::optional<at::Tensor>& found_inf) {
  return found_inf.has_value() && found_inf->item().toDouble() != 0.0;
}

// Tells autograd that these tensors were written, as an in-place operation does.
void bump_versions(const TensorList& tensors) {
  for (const at::Tensor& tensor : tensors) {
    if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace

void AnyRulePlan::check_common() {
  Number& lr = value_of<"lr">(common_);
  if (const auto* tensor = std::get_if<at::Tensor>(&lr)) {
    check_scalar("lr", "a number", *tensor);
    // A device's own learning rate is for its kernels to read: the host would have to wait for it.
    if (!on_cuda() || tensor->is_cpu()) lr = tensor->item().toDouble();
  }
  if (const auto* number = std::get_if<double>(&lr)) NotNegative::check("lr", *number);
  check_arguments(common_, Common::Last());
  check_optional_scalar("grad_scale", value_of<"grad_scale">(common_));
  check_optional_scalar("found_inf", value_of<"found_inf">(common_));
}

void AnyRulePlan::run() {
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
  if (skips_step(value_of<"found_inf">(common_))) return;
  run_cpu();
  count_step();
  for (const TensorList* list : written()) bump_versions(*list);
}

double AnyRulePlan::grad_factor() const {
  const std::optional<at::Tensor>& scale = value_of<"grad_scale">(common_);
  return gradient_factor(value_of<"maximize">(common_), scale.has_value() ? scale->item().toDouble() : 1.0);
}

int num_threads() { return at::get_num_threads(); }

float& step_count(const at::Tensor& step) { return *static_cast<float*>(step.mutable_data_ptr()); }

}  // namespace sage_ext::ops
