#pragma once

#include <string>
#include <vector>

#include "core/dtype.h"
#include "ops/common/arguments.h"

// Every check of the tensors that come in from Python. All of them throw std::invalid_argument (ValueError in
// Python) with a message that names the list, the index, what was found and what to do; none changes anything.
namespace sage_ext::ops {

// For messages: "[2, 3]", and "shape [2, 3], dtype float, device cpu". No stream makes them: one would print nothing,
// or crash, in a module that a compiler links with a C++ library of its own beside the one that torch brings.
std::string shape_text(at::IntArrayRef shape);
std::string text_of(const at::Tensor& tensor);

// How the elements of a parameter may lie in memory.
enum class Layout {
  row_major,  // rules that know rows and columns: contiguous
  dense       // element-wise rules: any order of strides without gaps or overlaps
};

class Checker {
 public:
  // Checks `params` itself: strided, fp32/bf16/fp16, on one device that has kernels, laid out as `layout` says. Where
  // all tensors `are_known` to be in order, none is looked at again, but for the values of step counters.
  Checker(const TensorList& params, Layout layout, Describe describe, bool are_known);

  // A list that is written along with the parameters: same length; each tensor of a storage dtype, with its
  // parameter's device, shape and strides.
  void state(const char* name, const TensorList& list) const;

  // The same for a moment that a rule keeps only where `momentum` is not 0; otherwise the list must be empty.
  void momentum(const char* name, const TensorList& list, double momentum) const;

  // Adam's two, which share a dtype.
  void moments(const TensorList& exp_avgs, const TensorList& exp_avg_sqs) const;

  // The bit planes of a tensor's signs: contiguous int32 of shape [2, words] for each parameter.
  void signs(const char* name, const TensorList& list) const;

  // A contiguous float64 tensor of `count` elements for each parameter; or one for all of them.
  void scalars(const char* name, const TensorList& list, int64_t count) const;
  void shared_scalars(const char* name, const TensorList& list, int64_t count) const;

  // A list of contiguous fp32 tensors that are written; `shape_of` gives the shape for a parameter.
  void fp32_state(const char* name, const TensorList& list,
                  const std::function<std::vector<int64_t>(const at::Tensor&)>& shape_of) const;

  // One fp32 scalar a parameter, on its device. The value is looked at on the CPU only.
  void steps(const TensorList& list) const;

  // The gradients, in their parameters' layout: one that lies otherwise in memory is copied, which is allowed
  // because a gradient is only read.
  TensorList grads(const TensorList& list) const;

  // Every tensor has memory. No tensor of `written` may share it with another one of them or with one of `read`.
  void no_overlap(const std::vector<const TensorList*>& written, const TensorList& read) const;

  [[noreturn]] void fail(const char* list, size_t index, const at::Tensor& tensor, const std::string& what) const;

 private:
  void device(size_t index) const;
  void same_length(const char* name, const TensorList& list) const;
  // Contiguous, of this dtype and shape, on the parameters' device.
  void exactly(const char* name, size_t index, const at::Tensor& tensor, at::ScalarType dtype,
               at::IntArrayRef shape) const;
  void storage_dtype(const char* name, size_t index, const at::Tensor& tensor) const;
  [[noreturn]] void fail_freed(const char* name, size_t index, const at::Tensor& tensor) const;

  const TensorList& params_;
  Describe describe_;
  bool are_known_;
};

// Tensors that a plan has accepted. As long as they are what they were, another step needs no checks but of its
// gradients, of which backward() may have made new ones. It keeps no tensor's memory: who frees a state frees it.
class KnownTensors {
 public:
  // `lists`: the parameters, then each list of state. The gradients are those of the accepted step, as they came.
  KnownTensors(const std::vector<TensorList>& lists, const TensorList& grads);

  // Whether the gradients lie as their parameters do, so that a step copies none; otherwise this is of no use.
  bool is_valid() const { return is_valid_; }

  // Whether these have the same dtypes, devices, shapes, strides and memory, which is all that the checks look at.
  bool are(const std::vector<TensorList>& lists) const;
  // Whether a step can take these gradients: like the first ones, and in no memory that is written.
  bool accept(const TensorList& params, const TensorList& grads) const;

 private:
  // Of a tensor, beside its shape and strides.
  struct Facts {
    const char* begin;
    size_t storage;  // bytes
    uint64_t kind;   // dispatch keys, which tell the device and the kind of tensor
    at::ScalarType dtype;

    explicit Facts(const at::Tensor& tensor);
    bool operator==(const Facts&) const = default;
  };
  struct Range {
    const char* begin;
    const char* end;
  };

  std::vector<Facts> facts_;         // of all tensors of all lists
  std::vector<int64_t> dimensions_;  // their sizes and strides, one after the other
  std::vector<Facts> grad_facts_;    // of the first gradients: where others have to be alike
  std::vector<Range> written_;       // sorted; apart from each other
  bool is_valid_ = true;
};

// The kernels' name for a tensor's dtype, which has been checked.
DType dtype_of(const at::Tensor& tensor);

// A floating tensor with one element; `otherwise` says in messages what may be there in its place.
void check_scalar(const char* name, const char* otherwise, const at::Tensor& tensor);

}  // namespace sage_ext::ops
