#include "cpu/scale.h"

#include <stdexcept>

#include "ops/common/rule_plan.h"

#ifdef SAGE_EXT_WITH_CUDA
#include "cuda/scale.h"
#include "ops/common/cuda_step.h"
#endif

namespace sage_ext::ops {

void NormDim::check(const char* name, int64_t value) {
  if (value == 0 || value == 1) return;
  throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) +
                              "; it may be 0 (a norm for every column) or 1 (a norm for every row)");
}

namespace {

class ScalePlan final : public RulePlan<Scale> {
 public:
  explicit ScalePlan(Call<Scale>&& call) : RulePlan(std::move(call)) {
    const Checker checker(params_, Layout::row_major, common_.describe, common_.are_known);
    check_common();
    for (size_t i = 0; i < params_.size(); ++i) {
      if (params_[i].dim() < 2) {
        checker.fail("params", i, params_[i],
                     "SCALE normalises rows or columns and needs at least two dimensions; give this parameter to "
                     "AdamW, as FusedHybrid does");
      }
    }
    checker.momentum("exp_avgs", arg<"exp_avgs">(), arg<"momentum">());
    grads_ = checker.grads(grads_);
    checker.no_overlap(written(), grads_);
  }

 private:
  std::vector<cpu::ScaleMatrix> cpu_matrices() const {
    std::vector<cpu::ScaleMatrix> matrices;
    matrices.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      const at::Tensor& param = params_[i];
      if (param.numel() == 0) continue;
      const int64_t cols = param.size(-1);
      const int64_t rows = columns() ? param.size(-2) : param.numel() / cols;
      for (int64_t begin = 0; begin < param.numel(); begin += rows * cols) {
        matrices.push_back({write_pointer(param, begin), read_pointer(grads_[i], begin), exp_avg(i, begin), rows, cols,
                            dtype_of(param), dtype_of(grads_[i]), exp_avg_dtype(i), whole(i)});
      }
    }
    return matrices;
  }

  cpu::ScaleOptions cpu_options() const {
    return {lr(), arg<"momentum">(), arg<"eps">(), arg<"weight_decay">(), rms(), columns(), grad_factor()};
  }

  void run_cpu() override { cpu::ScaleStep(cpu_matrices(), cpu_options()).run(num_threads()); }

  WholeSize whole_size(const std::vector<int64_t>& shape) const override { return size_of_last_two(shape); }

  // Whether other processes have the rest of what is normalised.
  bool exchanges() const { return columns() ? cut_->rows : cut_->columns; }
  Exchange exchange() const { return {columns() ? "rows" : "columns", buffers_}; }

  std::optional<Exchange> proceed_cpu() override {
    if (!exchanges()) {
      run_cpu();
      return {};
    }
    if (!cpu_step_) {
      make_buffers(/*by_matrix=*/columns());
      cpu_step_.emplace(cpu_matrices(), cpu_options());
      cpu_step_->put_sums(num_threads(), sums_);
      return exchange();
    }
    cpu_step_->update(num_threads(), sums_);
    return {};
  }

#ifdef SAGE_EXT_WITH_CUDA
  std::vector<cuda::ScaleTensor> cuda_tensors() const {
    std::vector<cuda::ScaleTensor> tensors;
    tensors.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      const at::Tensor& param = params_[i];
      if (param.numel() == 0) continue;
      const int64_t rows = param.size(-2);
      const int64_t cols = param.size(-1);
      tensors.push_back({write_pointer(param, 0), read_pointer(grads_[i], 0), exp_avg(i, 0),
                         param.numel() / (rows * cols), rows, cols, dtype_of(param), dtype_of(grads_[i]),
                         exp_avg_dtype(i), whole(i)});
    }
    return tensors;
  }

  cuda::ScaleOptions cuda_options() const {
    return {arg<"momentum">(), arg<"eps">(), arg<"weight_decay">(), rms(), columns()};
  }

  void run_cuda(CudaStep& step) override {
    const std::vector<cuda::ScaleTensor> tensors = cuda_tensors();
    cuda::scale_step(tensors, cuda_options(), step.scalars(),
                     step.workspace(cuda::scale_workspace_bytes(tensors, cuda_options())), step.stream());
  }

  std::optional<Exchange> proceed_cuda(CudaStep& step) override {
    if (!exchanges()) {
      run_cuda(step);
      return {};
    }
    const std::vector<cuda::ScaleTensor> tensors = cuda_tensors();
    if (!workspace_.defined()) {
      make_buffers(/*by_matrix=*/false);
      workspace_ = buffer_of(cuda::scale_workspace_bytes(tensors, cuda_options()));
      cuda::scale_put_sums(tensors, sums_, cuda_options(), step.scalars(), workspace_.mutable_data_ptr(),
                           step.stream());
      return exchange();
    }
    cuda::scale_finish(tensors, sums_, cuda_options(), step.scalars(), workspace_.mutable_data_ptr(), step.stream());
    return {};
  }

  at::Tensor workspace_;
#endif

  // One for each parameter with elements, or for each of its matrices.
  void make_buffers(bool by_matrix) {
    for (size_t i = 0; i < params_.size(); ++i) {
      const at::Tensor& param = params_[i];
      std::vector<int64_t> shape = param.sizes().vec();
      const int64_t cols = shape.back();
      const int64_t size = columns() ? cols : shape[shape.size() - 2];
      shape.pop_back();
      shape.back() = size;
      buffers_.push_back(buffer(i, shape, at::kDouble));
      if (param.numel() == 0) continue;
      auto* sums = static_cast<double*>(buffers_[i].mutable_data_ptr());
      const int64_t matrices = by_matrix ? buffers_[i].numel() / size : 1;
      for (int64_t m = 0; m < matrices; ++m) sums_.push_back(sums + m * size);
    }
  }

  // Addresses of elements.
  static void* write_pointer(const at::Tensor& tensor, int64_t element) {
    return static_cast<char*>(tensor.mutable_data_ptr()) + element * static_cast<int64_t>(tensor.element_size());
  }
  static const void* read_pointer(const at::Tensor& tensor, int64_t element) {
    return static_cast<const char*>(tensor.const_data_ptr()) + element * static_cast<int64_t>(tensor.element_size());
  }
  void* exp_avg(size_t i, int64_t element) const {
    return arg<"exp_avgs">().empty() ? nullptr : write_pointer(state<"exp_avgs">(i), element);
  }

  DType exp_avg_dtype(size_t i) const {
    return arg<"exp_avgs">().empty() ? DType::float32 : dtype_of(state<"exp_avgs">(i));
  }
  bool rms() const { return arg<"normalization">() == "rms"; }
  bool columns() const { return arg<"dim">() == 0; }

  TensorList buffers_;
  std::vector<double*> sums_;
  std::optional<cpu::ScaleStep> cpu_step_;
};

}  // namespace

PlanPtr Scale::plan(Call<Scale>&& call) { return std::make_unique<ScalePlan>(std::move(call)); }

}  // namespace sage_ext::ops
