#include "ops/common/checks.h"

#include <ATen/ops/empty_strided.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "core/sign_planes.h"

namespace sage_ext::ops {

namespace {

bool is_storage_dtype(at::ScalarType type) { return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf; }

// Same shape, and the same strides where they matter.
bool same_layout(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes()) return false;
  if (a.numel() == 0 || a.strides() == b.strides()) return true;
  for (int64_t dim = 0; dim < a.dim(); ++dim) {
    if (a.size(dim) != 1 && a.stride(dim) != b.stride(dim)) return false;
  }
  return true;
}

// A wrapper may have freed the storage of a tensor that still has a shape.
bool has_no_memory(const at::Tensor& tensor) {
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  return impl.has_storage() && impl.numel() > 0 && impl.unsafe_storage().data() == nullptr;
}

}  // namespace

std::string shape_text(at::IntArrayRef shape) {
  std::string text = "[";
  for (const int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

std::string text_of(const at::Tensor& tensor) {
  return "shape " + shape_text(tensor.sizes()) + ", dtype " + std::string(tensor.dtype().name()) + ", device " +
         tensor.device().str();
}

DType dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return DType::float32;
    case at::kBFloat16:
      return DType::bfloat16;
    default:
      return DType::float16;
  }
}

namespace {

[[noreturn]] void refuse(const char* name, const std::string& value, const std::string& expected) {
  throw std::invalid_argument(std::string(name) + " is " + value + "; it " + expected);
}

}  // namespace

void NotNegative::check(const char* name, double value) {
  if (std::isfinite(value) && value >= 0.0) return;
  refuse(name, std::to_string(value), "must be finite and at least 0");
}

void Finite::check(const char* name, double value) {
  if (!std::isfinite(value)) refuse(name, std::to_string(value), "must be finite");
}

void Beta::check(const char* name, double value) {
  if (value >= 0.0 && value < 1.0) return;
  refuse(name, std::to_string(value), "must be in [0, 1)");
}

void check_integer(const char* name, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return;
  const bool bounded = max != std::numeric_limits<int64_t>::max();
  refuse(name, std::to_string(value),
         bounded ? "must be in [" + std::to_string(min) + ", " + std::to_string(max) + "]"
                 : "must be at least " + std::to_string(min));
}

void check_choice(const char* name, const std::string& value, const std::vector<const char*>& choices) {
  std::string expected;
  for (size_t i = 0; i < choices.size(); ++i) {
    if (value == choices[i]) return;
    expected += i == 0 ? "may be " : i + 1 < choices.size() ? ", " : " or ";
    expected += std::string("\"") + choices[i] + "\"";
  }
  refuse(name, "\"" + value + "\"", expected);
}

void check_scalar(const char* name, const char* otherwise, const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.numel() != 1 || !at::isFloatingType(tensor.scalar_type())) {
    throw std::invalid_argument(std::string(name) + " must be " + otherwise +
                                " or a floating-point tensor with one element");
  }
}

void Checker::fail(const char* list, size_t index, const at::Tensor& tensor, const std::string& what) const {
  std::string text = std::string(list) + "[" + std::to_string(index) + "]";
  if (describe_) text += " (" + describe_(static_cast<int64_t>(index)) + ")";
  if (tensor.defined()) text += ", " + text_of(tensor);
  throw std::invalid_argument(text + ": " + what);
}

Checker::Checker(const TensorList& params, Layout layout, Describe describe, bool are_known)
    : params_(params), describe_(std::move(describe)), are_known_(are_known) {
  if (are_known_) return;
  for (size_t i = 0; i < params.size(); ++i) {
    const at::Tensor& p = params[i];
    storage_dtype("params", i, p);
    device(i);
    if (layout == Layout::row_major && !p.is_contiguous()) {
      fail("params", i, p,
           "the parameter is not contiguous (strides " + shape_text(p.strides()) +
               "); make it so with param.data = param.data.contiguous(), or pass backend=\"reference\"");
    }
    if (layout == Layout::dense && !p.is_non_overlapping_and_dense()) {
      fail("params", i, p,
           "the parameter's memory has gaps or overlaps (strides " + shape_text(p.strides()) +
               "); make it dense with param.data = param.data.contiguous(), or pass backend=\"reference\"");
    }
  }
}

void Checker::device(size_t index) const {
  const at::Tensor& param = params_[index];
#ifdef SAGE_EXT_WITH_CUDA
  const bool has_kernels = param.is_cpu() || param.is_cuda();
  const char* kernels = "there are kernels for the CPU and for CUDA devices";
#else
  const bool has_kernels = param.is_cpu();
  const char* kernels = "this build has CPU kernels only";
#endif
  if (!has_kernels) {
    fail("params", index, param,
         std::string(kernels) + "; move the parameter to the CPU or pass backend=\"reference\"");
  }
  if (param.device() != params_[0].device()) {
    fail("params", index, param,
         "it is on another device than params[0]; make one call, or one param group, for each device");
  }
}

void Checker::same_length(const char* name, const TensorList& list) const {
  if (list.size() == params_.size()) return;
  throw std::invalid_argument(std::string(name) + " has " + std::to_string(list.size()) + " tensors for " +
                              std::to_string(params_.size()) + " params; give one tensor for each parameter");
}

void Checker::storage_dtype(const char* name, size_t index, const at::Tensor& tensor) const {
  if (!tensor.defined()) fail(name, index, tensor, "there is no tensor here");
  if (tensor.layout() != at::kStrided) {
    fail(name, index, tensor, "a sparse tensor is not supported; use a dense one (for nn.Embedding: sparse=False)");
  }
  if (!is_storage_dtype(tensor.scalar_type())) {
    fail(name, index, tensor,
         "the native kernels take float32, bfloat16 and float16; for float64 pass backend=\"reference\"");
  }
}

void Checker::fail_freed(const char* name, size_t index, const at::Tensor& tensor) const {
  fail(name, index, tensor,
       "its memory has been freed (storage().resize_(0)); have what freed it bring it back before optimizer.step()");
}

void Checker::state(const char* name, const TensorList& list) const {
  if (are_known_) return;
  same_length(name, list);
  for (size_t i = 0; i < list.size(); ++i) {
    storage_dtype(name, i, list[i]);
    if (list[i].device() != params_[i].device()) fail(name, i, list[i], "it is not on its parameter's device");
    if (!same_layout(list[i], params_[i])) {
      const bool same_shape = list[i].sizes() == params_[i].sizes();
      fail(name, i, list[i],
           std::string(same_shape ? "its strides " + shape_text(list[i].strides()) : "its shape") +
               " must be the parameter's: shape " + shape_text(params_[i].sizes()) + ", strides " +
               shape_text(params_[i].strides()) +
               (same_shape ? "; bring all state into its parameters' strides with "
                             "optimizer.load_state_dict(optimizer.state_dict())"
                           : "; if the parameter was replaced, begin its state anew with del optimizer.state[param]"));
    }
  }
}

void Checker::momentum(const char* name, const TensorList& list, double momentum) const {
  if (are_known_) return;
  if (momentum != 0.0) {
    state(name, list);
  } else if (!list.empty()) {
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(list.size()) +
                                " tensors, but momentum is 0, which keeps none; pass an empty list");
  }
}

void Checker::fp32_state(const char* name, const TensorList& list,
                         const std::function<std::vector<int64_t>(const at::Tensor&)>& shape_of) const {
  if (are_known_) return;
  same_length(name, list);
  for (size_t i = 0; i < list.size(); ++i) exactly(name, i, list[i], at::kFloat, shape_of(params_[i]));
}

void Checker::moments(const TensorList& exp_avgs, const TensorList& exp_avg_sqs) const {
  if (are_known_) return;
  state("exp_avgs", exp_avgs);
  state("exp_avg_sqs", exp_avg_sqs);
  for (size_t i = 0; i < params_.size(); ++i) {
    if (exp_avgs[i].scalar_type() != exp_avg_sqs[i].scalar_type()) {
      fail("exp_avg_sqs", i, exp_avg_sqs[i], "exp_avg and exp_avg_sq of a parameter must share a dtype");
    }
  }
}

void Checker::signs(const char* name, const TensorList& list) const {
  if (are_known_) return;
  same_length(name, list);
  for (size_t i = 0; i < list.size(); ++i) exactly(name, i, list[i], at::kInt, {2, sign_words(params_[i].numel())});
}

void Checker::scalars(const char* name, const TensorList& list, int64_t count) const {
  if (are_known_) return;
  same_length(name, list);
  for (size_t i = 0; i < list.size(); ++i) exactly(name, i, list[i], at::kDouble, {count});
}

void Checker::shared_scalars(const char* name, const TensorList& list, int64_t count) const {
  if (are_known_) return;
  if (list.size() != 1) {
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(list.size()) +
                                " tensors; give one for all parameters");
  }
  if (!params_.empty()) exactly(name, 0, list[0], at::kDouble, {count});
}

void Checker::exactly(const char* name, size_t index, const at::Tensor& tensor, at::ScalarType dtype,
                      at::IntArrayRef shape) const {
  if (tensor.defined() && tensor.layout() == at::kStrided && tensor.scalar_type() == dtype && tensor.is_contiguous() &&
      tensor.sizes() == shape && tensor.device() == params_[index].device()) {
    return;
  }
  std::string wanted = "it must be a contiguous tensor of dtype ";
  wanted += c10::scalarTypeToTypeMeta(dtype).name();
  wanted += " and shape " + shape_text(shape) + " on its parameter's device";
  if (tensor.defined() && tensor.sizes() != shape) {
    wanted += "; if the parameter was replaced, begin its state anew with del optimizer.state[param]";
  }
  fail(name, index, tensor, wanted);
}

void Checker::steps(const TensorList& list) const {
  same_length("steps", list);
  for (size_t i = 0; i < list.size(); ++i) {
    const at::Tensor& step = list[i];
    if (!step.defined() || step.numel() != 1 || step.scalar_type() != at::kFloat ||
        step.device() != params_[i].device()) {
      fail("steps", i, step,
           "it must be a float32 tensor with one element on its parameter's device: the number of steps done");
    }
    if (!step.is_cpu()) continue;  // reading it would wait for the device
    const float count = *static_cast<const float*>(step.const_data_ptr());
    if (!(count >= 0.0f)) fail("steps", i, step, "the number of steps done is " + std::to_string(count));
  }
}

TensorList Checker::grads(const TensorList& list) const {
  if (are_known_) return list;
  same_length("grads", list);
  const at::NoGradGuard no_grad;
  TensorList result;
  result.reserve(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    const at::Tensor& grad = list[i];
    storage_dtype("grads", i, grad);
    if (grad.device() != params_[i].device()) fail("grads", i, grad, "it is not on its parameter's device");
    if (grad.sizes() != params_[i].sizes()) {
      fail("grads", i, grad, "its shape is not its parameter's " + shape_text(params_[i].sizes()));
    }
    if (same_layout(grad, params_[i])) {
      result.push_back(grad);
    } else {
      if (has_no_memory(grad)) fail_freed("grads", i, grad);
      at::Tensor copy = at::empty_strided(params_[i].sizes(), params_[i].strides(), grad.options());
      copy.copy_(grad);
      result.push_back(std::move(copy));
    }
  }
  return result;
}

void Checker::no_overlap(const std::vector<const TensorList*>& written, const TensorList& read) const {
  if (are_known_) return;
  struct Range {
    const char* begin;
    const char* end;
    size_t index;
    bool is_written;
  };
  std::vector<Range> ranges;
  const auto add = [&](const TensorList& list, bool is_written) {
    for (size_t i = 0; i < list.size(); ++i) {
      const auto* begin = static_cast<const char*>(list[i].const_data_ptr());
      const auto bytes = static_cast<int64_t>(list[i].nbytes());
      if (bytes > 0 && has_no_memory(list[i])) fail_freed(is_written ? "params or their state" : "grads", i, list[i]);
      if (bytes > 0) ranges.push_back({begin, begin + bytes, i, is_written});
    }
  };
  for (const TensorList* list : written) add(*list, true);
  add(read, false);
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  const Range* reaches_farthest = nullptr;
  const Range* written_farthest = nullptr;
  for (const Range& range : ranges) {
    const Range* other = range.is_written ? reaches_farthest : written_farthest;
    if (other != nullptr && other->end > range.begin) {
      const size_t index = range.is_written ? range.index : other->index;
      fail("params", index, params_[index],
           "the parameter or its state shares memory with a tensor of parameter " +
               std::to_string(range.is_written ? other->index : range.index) +
               "; give every parameter, state and gradient memory of its own (tie weights by using one "
               "Parameter object)");
    }
    if (reaches_farthest == nullptr || range.end > reaches_farthest->end) reaches_farthest = &range;
    if (range.is_written && (written_farthest == nullptr || range.end > written_farthest->end)) {
      written_farthest = &range;
    }
  }
}

KnownTensors::Facts::Facts(const at::Tensor& tensor)
    : begin(tensor.has_storage() ? static_cast<const char*>(tensor.const_data_ptr()) : nullptr),
      storage(tensor.has_storage() ? tensor.storage().nbytes() : 0),
      kind(tensor.key_set().raw_repr()),
      dtype(tensor.scalar_type()) {}

KnownTensors::KnownTensors(const std::vector<TensorList>& lists, const TensorList& grads) {
  for (const TensorList& list : lists) {
    for (const at::Tensor& tensor : list) {
      const Facts& facts = facts_.emplace_back(tensor);
      dimensions_.insert(dimensions_.end(), tensor.sizes().begin(), tensor.sizes().end());
      dimensions_.insert(dimensions_.end(), tensor.strides().begin(), tensor.strides().end());
      if (tensor.nbytes() > 0) written_.push_back({facts.begin, facts.begin + tensor.nbytes()});
    }
  }
  std::sort(written_.begin(), written_.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  for (size_t i = 0; i < grads.size(); ++i) {
    grad_facts_.emplace_back(grads[i]);
    if (!same_layout(grads[i], lists[0][i])) is_valid_ = false;
  }
}

bool KnownTensors::are(const std::vector<TensorList>& lists) const {
  size_t i = 0;
  auto dimension = dimensions_.begin();
  const auto left = [&] { return dimensions_.end() - dimension; };
  for (const TensorList& list : lists) {
    for (const at::Tensor& tensor : list) {
      if (i == facts_.size()) return false;
      const at::IntArrayRef sizes = tensor.sizes();
      const at::IntArrayRef strides = tensor.strides();
      if (Facts(tensor) != facts_[i++] || left() < 2 * tensor.dim()) return false;
      if (!std::equal(sizes.begin(), sizes.end(), dimension)) return false;
      dimension += tensor.dim();
      if (!std::equal(strides.begin(), strides.end(), dimension)) return false;
      dimension += tensor.dim();
    }
  }
  return i == facts_.size();
}

bool KnownTensors::accept(const TensorList& params, const TensorList& grads) const {
  if (grads.size() != grad_facts_.size()) return false;
  for (size_t i = 0; i < grads.size(); ++i) {
    const Facts facts(grads[i]);
    const Facts& first = grad_facts_[i];
    if (facts.kind != first.kind || facts.dtype != first.dtype || grads[i].device() != params[i].device() ||
        !same_layout(grads[i], params[i]) || has_no_memory(grads[i])) {
      return false;
    }
    const char* const end = facts.begin + grads[i].nbytes();
    const auto after = std::upper_bound(written_.begin(), written_.end(), facts.begin,
                                        [](const char* begin, const Range& range) { return begin < range.begin; });
    if (after != written_.end() && after->begin < end) return false;
    if (after != written_.begin() && std::prev(after)->end > facts.begin && end > facts.begin) return false;
  }
  return true;
}

}  // namespace sage_ext::ops
