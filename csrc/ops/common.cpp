#include "ops/common.h"

#include <ATen/Parallel.h>
#include <c10/core/Scalar.h>

#include <stdexcept>

namespace sage_ext::ops {

namespace {

void check_scalar(const char* name, const std::optional<at::Tensor>& tensor) {
  if (!tensor.has_value()) return;
  if (!tensor->defined() || tensor->numel() != 1 || !at::isFloatingType(tensor->scalar_type())) {
    throw std::invalid_argument(std::string(name) + " must be None or a floating-point tensor with one element");
  }
}

}  // namespace

void check_common(const CommonArgs& args) {
  check_not_negative("lr", args.lr);
  check_not_negative("weight_decay", args.weight_decay);
  check_scalar("grad_scale", args.grad_scale);
  check_scalar("found_inf", args.found_inf);
}

bool skips_step(const CommonArgs& args) {
  return args.found_inf.has_value() && args.found_inf->item().toDouble() != 0.0;
}

double grad_factor(const CommonArgs& args) {
  const double scale = args.grad_scale.has_value() ? args.grad_scale->item().toDouble() : 1.0;
  return (args.maximize ? -1.0 : 1.0) / scale;
}

int num_threads() { return at::get_num_threads(); }

float& step_count(const at::Tensor& step) { return *static_cast<float*>(step.mutable_data_ptr()); }

void advance(const TensorList& steps) {
  for (const at::Tensor& step : steps) step_count(step) += 1.0f;
  bump_versions(steps);
}

void bump_versions(const TensorList& tensors) {
  for (const at::Tensor& tensor : tensors) {
    if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace sage_ext::ops
