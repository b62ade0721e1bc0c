#include "cpu/sage.h"

#include <cmath>

#include "ops/common/rule_plan.h"

#ifdef SAGE_EXT_WITH_CUDA
#include "cuda/sage.h"
#include "ops/common/cuda_step.h"
#endif

namespace sage_ext::ops {

namespace {

std::vector<int64_t> s_range_shape(const at::Tensor& param) {
  const at::IntArrayRef shape = param.sizes();
  return param.dim() >= 2 ? shape.slice(1).vec() : shape.vec();
}

class SagePlan final : public RulePlan<Sage> {
 public:
  explicit SagePlan(Call<Sage>&& call) : RulePlan(std::move(call)) {
    const Checker checker(params_, Layout::row_major, common_.describe, common_.are_known);
    check_common();
    checker.state("exp_avgs", arg<"exp_avgs">());
    checker.fp32_state("s_ranges", arg<"s_ranges">(), s_range_shape);
    checker.steps(arg<"steps">());
    grads_ = checker.grads(grads_);
    checker.no_overlap(written(), grads_);
  }

 private:
  int64_t rows(size_t i) const { return params_[i].dim() >= 2 ? params_[i].size(0) : 1; }
  float* s_range(size_t i) const { return static_cast<float*>(state<"s_ranges">(i).mutable_data_ptr()); }

  WholeSize whole_size(const std::vector<int64_t>& shape) const override {
    int64_t numel = 1;
    for (const int64_t size : shape) numel *= size;
    if (numel == 0) return {};
    const int64_t rows = shape.size() >= 2 ? shape[0] : 1;
    return {rows, numel / rows};
  }

  std::vector<cpu::SageTensor> cpu_tensors() const {
    std::vector<cpu::SageTensor> tensors;
    tensors.reserve(params_.size());
    const double log_beta2 = std::log(arg<"beta2">());
    for (size_t i = 0; i < params_.size(); ++i) {
      const double t = static_cast<double>(step_count(state<"steps">(i))) + 1.0;
      tensors.push_back({params_[i].mutable_data_ptr(), grads_[i].const_data_ptr(),
                         state<"exp_avgs">(i).mutable_data_ptr(), s_range(i), rows(i), state<"s_ranges">(i).numel(),
                         dtype_of(params_[i]), dtype_of(grads_[i]), dtype_of(state<"exp_avgs">(i)),
                         bias_correction(log_beta2, t), whole(i)});
    }
    return tensors;
  }

  cpu::SageOptions cpu_options() const {
    return {lr(),
            arg<"beta1">(),
            arg<"beta2">(),
            arg<"eps">(),
            arg<"weight_decay">(),
            arg<"momentum_first">(),
            arg<"instant_damper">(),
            grad_factor()};
  }

  void run_cpu() override { cpu::SageStep(cpu_tensors(), cpu_options()).run(num_threads()); }

  // Stages: the sums of columns; those of their squares; the update.
  enum class Stage { columns, squares, update };

  std::optional<Exchange> proceed_cpu() override {
    if (stage_ == Stage::columns) {
      make_buffers();
      cpu_step_.emplace(cpu_tensors(), cpu_options());
      cpu_step_->sum_columns(num_threads());
      cpu_step_->put_columns(num_threads(), sums_);
      stage_ = Stage::squares;
      if (cut_->rows) return Exchange{"rows", columns_};
    }
    if (stage_ == Stage::squares) {
      cpu_step_->put_squares(num_threads(), sums_);
      stage_ = Stage::update;
      if (cut_->columns) return Exchange{"columns", squares_};
    }
    cpu_step_->take_squares(sums_);
    cpu_step_->compute_steps(num_threads());
    cpu_step_->update(num_threads());
    return {};
  }

#ifdef SAGE_EXT_WITH_CUDA
  std::vector<cuda::SageTensor> cuda_tensors() const {
    std::vector<cuda::SageTensor> tensors;
    tensors.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      tensors.push_back({params_[i].mutable_data_ptr(), grads_[i].const_data_ptr(),
                         state<"exp_avgs">(i).mutable_data_ptr(), s_range(i), &step_count(state<"steps">(i)), rows(i),
                         state<"s_ranges">(i).numel(), dtype_of(params_[i]), dtype_of(grads_[i]),
                         dtype_of(state<"exp_avgs">(i)), whole(i)});
    }
    return tensors;
  }

  cuda::SageOptions cuda_options() const {
    return {arg<"beta1">(),        arg<"beta2">(),          arg<"eps">(),
            arg<"weight_decay">(), arg<"momentum_first">(), arg<"instant_damper">()};
  }

  void run_cuda(CudaStep& step) override {
    const std::vector<cuda::SageTensor> tensors = cuda_tensors();
    cuda::sage_step(tensors, cuda_options(), step.scalars(), step.workspace(cuda::sage_workspace_bytes(tensors)),
                    step.stream());
  }

  std::optional<Exchange> proceed_cuda(CudaStep& step) override {
    const std::vector<cuda::SageTensor> tensors = cuda_tensors();
    if (stage_ == Stage::columns) {
      make_buffers();
      workspace_ = buffer_of(cuda::sage_workspace_bytes(tensors));
      cuda::sage_put_columns(tensors, sums_, step.scalars(), workspace_.mutable_data_ptr(), step.stream());
      stage_ = Stage::squares;
      if (cut_->rows) return Exchange{"rows", columns_};
    }
    if (stage_ == Stage::squares) {
      cuda::sage_put_squares(tensors, sums_, cuda_options(), step.scalars(), workspace_.mutable_data_ptr(),
                             step.stream());
      stage_ = Stage::update;
      if (cut_->columns) return Exchange{"columns", squares_};
    }
    cuda::sage_finish(tensors, sums_, cuda_options(), step.scalars(), workspace_.mutable_data_ptr(), step.stream());
    return {};
  }

  at::Tensor workspace_;
#endif

  void make_buffers() {
    for (size_t i = 0; i < params_.size(); ++i) {
      columns_.push_back(buffer(i, {state<"s_ranges">(i).numel()}, at::kFloat));
      squares_.push_back(buffer(i, {2}, at::kDouble));
      sums_.push_back(
          {static_cast<float*>(columns_[i].mutable_data_ptr()), static_cast<double*>(squares_[i].mutable_data_ptr())});
    }
  }

  Stage stage_ = Stage::columns;
  TensorList columns_, squares_;
  std::vector<SageSums> sums_;
  std::optional<cpu::SageStep> cpu_step_;
};

}  // namespace

PlanPtr Sage::plan(Call<Sage>&& call) { return std::make_unique<SagePlan>(std::move(call)); }

}  // namespace sage_ext::ops
