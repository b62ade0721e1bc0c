#include "ops/common/rule_plan.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/Scalar.h>

#include <stdexcept>

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

void AnyRulePlan::begin(Cut&& cut) {
  if (cut.shapes.size() != params_.size()) {
    throw std::invalid_argument("shapes has " + std::to_string(cut.shapes.size()) + " items, but there are " +
                                std::to_string(params_.size()) + " parameters");
  }
  for (size_t i = 0; i < params_.size(); ++i) {
    if (static_cast<int64_t>(cut.shapes[i].size()) == params_[i].dim() && whole_size(cut.shapes[i]).is_cut()) continue;
    throw std::invalid_argument("shapes[" + std::to_string(i) + "] is not the shape of a parameter with " +
                                std::to_string(params_[i].dim()) +
                                " dimensions and at least one element, for a rule that looks at rows or columns");
  }
  cut_ = std::move(cut);
}

std::optional<Exchange> AnyRulePlan::proceed() {
  if (params_.empty() || !cut_) return {};
#ifdef SAGE_EXT_WITH_CUDA
  if (on_cuda()) {
    CudaStep step(params_[0].device(), common_);
    std::optional<Exchange> exchange = proceed_cuda(step);
    if (!exchange) {
      for (const TensorList* list : written()) bump_versions(*list);
    }
    return exchange;
  }
#endif
  // The same on all processes, so that none of them waits.
  if (skips_step(value_of<"found_inf">(common_))) return {};
  std::optional<Exchange> exchange = proceed_cpu();
  if (!exchange) {
    count_step();
    for (const TensorList* list : written()) bump_versions(*list);
  }
  return exchange;
}

at::Tensor AnyRulePlan::buffer(size_t i, at::IntArrayRef shape, at::ScalarType dtype) const {
  const at::TensorOptions options = params_[i].options().dtype(dtype).requires_grad(false);
  return params_[i].numel() == 0 ? at::zeros(shape, options) : at::empty(shape, options);
}

at::Tensor AnyRulePlan::buffer_of(int64_t bytes) const {
  return at::empty({bytes}, params_[0].options().dtype(at::kByte));
}

double AnyRulePlan::grad_factor() const {
  const std::optional<at::Tensor>& scale = value_of<"grad_scale">(common_);
  return gradient_factor(value_of<"maximize">(common_), scale.has_value() ? scale->item().toDouble() : 1.0);
}

int num_threads() { return at::get_num_threads(); }

float& step_count(const at::Tensor& step) { return *static_cast<float*>(step.mutable_data_ptr()); }

}  // namespace sage_ext::ops
