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
    const Checker checker(params_, Layout::row_major, common_.describe);
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

  void run_cpu() override {
    std::vector<cpu::SageTensor> tensors;
    tensors.reserve(params_.size());
    const double log_beta2 = std::log(arg<"beta2">());
    for (size_t i = 0; i < params_.size(); ++i) {
      const double t = static_cast<double>(step_count(state<"steps">(i))) + 1.0;
      tensors.push_back({params_[i].mutable_data_ptr(), grads_[i].const_data_ptr(),
                         state<"exp_avgs">(i).mutable_data_ptr(), s_range(i), rows(i), state<"s_ranges">(i).numel(),
                         dtype_of(params_[i]), dtype_of(grads_[i]), dtype_of(state<"exp_avgs">(i)),
                         bias_correction(log_beta2, t)});
    }
    cpu::SageStep step(std::move(tensors), {lr(), arg<"beta1">(), arg<"beta2">(), arg<"eps">(), arg<"weight_decay">(),
                                            arg<"momentum_first">(), arg<"instant_damper">(), grad_factor()});
    step.run(num_threads());
  }

#ifdef SAGE_EXT_WITH_CUDA
  void run_cuda(CudaStep& step) override {
    std::vector<cuda::SageTensor> tensors;
    tensors.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      tensors.push_back({params_[i].mutable_data_ptr(), grads_[i].const_data_ptr(),
                         state<"exp_avgs">(i).mutable_data_ptr(), s_range(i), &step_count(state<"steps">(i)), rows(i),
                         state<"s_ranges">(i).numel(), dtype_of(params_[i]), dtype_of(grads_[i]),
                         dtype_of(state<"exp_avgs">(i))});
    }
    cuda::sage_step(tensors,
                    {arg<"beta1">(), arg<"beta2">(), arg<"eps">(), arg<"weight_decay">(), arg<"momentum_first">(),
                     arg<"instant_damper">()},
                    step.scalars(), step.workspace(cuda::sage_workspace_bytes(tensors)), step.stream());
  }
#endif
};

}  // namespace

PlanPtr Sage::plan(Call<Sage>&& call) { return std::make_unique<SagePlan>(std::move(call)); }

}  // namespace sage_ext::ops
