#include "cpu/adamw.h"

#include "core/math/adamw.h"
#include "ops/common/rule_plan.h"

#ifdef SAGE_EXT_WITH_CUDA
#include "cuda/adamw.h"
#include "ops/common/cuda_step.h"
#endif

namespace sage_ext::ops {

namespace {

class AdamWPlan final : public RulePlan<AdamW> {
 public:
  explicit AdamWPlan(Call<AdamW>&& call) : RulePlan(std::move(call)) {
    const Checker checker(params_, Layout::dense, common_.describe, common_.are_known);
    check_common();
    checker.moments(arg<"exp_avgs">(), arg<"exp_avg_sqs">());
    checker.steps(arg<"steps">());
    grads_ = checker.grads(grads_);
    checker.no_overlap(written(), grads_);
  }

 private:
  void run_cpu() override {
    const AdamWConstants constants =
        adamw_constants(arg<"beta1">(), arg<"beta2">(), arg<"eps">(), arg<"weight_decay">());
    std::vector<cpu::AdamWTensor> tensors;
    tensors.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      tensors.push_back(
          {params_[i].mutable_data_ptr(), grads_[i].const_data_ptr(), state<"exp_avgs">(i).mutable_data_ptr(),
           state<"exp_avg_sqs">(i).mutable_data_ptr(), params_[i].numel(), dtype_of(params_[i]), dtype_of(grads_[i]),
           dtype_of(state<"exp_avgs">(i)),
           adamw_coefficients(lr(), constants, static_cast<double>(step_count(state<"steps">(i))) + 1.0)});
    }
    cpu::adamw_step(tensors, grad_factor(), num_threads());
  }

#ifdef SAGE_EXT_WITH_CUDA
  void run_cuda(CudaStep& step) override {
    std::vector<cuda::AdamWTensor> tensors;
    tensors.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      tensors.push_back({params_[i].mutable_data_ptr(), grads_[i].const_data_ptr(),
                         state<"exp_avgs">(i).mutable_data_ptr(), state<"exp_avg_sqs">(i).mutable_data_ptr(),
                         &step_count(state<"steps">(i)), params_[i].numel(), dtype_of(params_[i]), dtype_of(grads_[i]),
                         dtype_of(state<"exp_avgs">(i))});
    }
    cuda::adamw_step(tensors, {arg<"beta1">(), arg<"beta2">(), arg<"eps">(), arg<"weight_decay">()}, step.scalars(),
                     step.workspace(cuda::adamw_workspace_bytes(tensors)), step.stream());
  }
#endif
};

}  // namespace

PlanPtr AdamW::plan(Call<AdamW>&& call) { return std::make_unique<AdamWPlan>(std::move(call)); }

}  // namespace sage_ext::ops
