#include "cpu/adamw.h"

#include "core/math/adamw.h"
#include "ops/common/rule_plan.h"

#ifdef SAGE_EXT_WITH_CUDA
#include "cuda/adamw.h"
#include "ops/common/cuda_step.h"
#endif

namespace sage_ext::ops {

namespace {

class AdamWPlan final : public RulePlan {
 public:
  AdamWPlan(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs, TensorList steps,
            AdamWArgs args, CommonArgs common)
      : RulePlan(std::move(params), std::move(steps), std::move(common)),
        exp_avgs_(std::move(exp_avgs)),
        exp_avg_sqs_(std::move(exp_avg_sqs)),
        args_(args) {
    check_beta("beta1", args_.beta1);
    check_beta("beta2", args_.beta2);
    check_not_negative("eps", args_.eps);
    const Checker checker(params_, Layout::dense, common_.describe);
    check_common();
    checker.moments(exp_avgs_, exp_avg_sqs_);
    checker.steps(steps_);
    grads_ = checker.grads(grads);
    checker.no_overlap(written(), grads_);
  }

 private:
  Lists written() const override { return {&params_, &exp_avgs_, &exp_avg_sqs_, &steps_}; }

  void run_cpu() override {
    const AdamWConstants constants = adamw_constants(args_.beta1, args_.beta2, args_.eps, common_.weight_decay);
    std::vector<cpu::AdamWTensor> tensors;
    tensors.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      tensors.push_back({params_[i].mutable_data_ptr(), grads_[i].const_data_ptr(), exp_avgs_[i].mutable_data_ptr(),
                         exp_avg_sqs_[i].mutable_data_ptr(), params_[i].numel(), dtype_of(params_[i]),
                         dtype_of(grads_[i]), dtype_of(exp_avgs_[i]),
                         adamw_coefficients(lr(), constants, static_cast<double>(step_count(steps_[i])) + 1.0)});
    }
    cpu::adamw_step(tensors, grad_factor(common_), num_threads());
  }

#ifdef SAGE_EXT_WITH_CUDA
  void run_cuda(CudaStep& step) override {
    std::vector<cuda::AdamWTensor> tensors;
    tensors.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      tensors.push_back({params_[i].mutable_data_ptr(), grads_[i].const_data_ptr(), exp_avgs_[i].mutable_data_ptr(),
                         exp_avg_sqs_[i].mutable_data_ptr(), &step_count(steps_[i]), params_[i].numel(),
                         dtype_of(params_[i]), dtype_of(grads_[i]), dtype_of(exp_avgs_[i])});
    }
    cuda::adamw_step(tensors, {args_.beta1, args_.beta2, args_.eps, common_.weight_decay}, step.scalars(),
                     step.workspace(cuda::adamw_workspace_bytes(tensors)), step.stream());
  }
#endif

  TensorList exp_avgs_, exp_avg_sqs_;
  AdamWArgs args_;
};

}  // namespace

PlanPtr plan_adamw(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs, TensorList steps,
                   AdamWArgs args, CommonArgs common) {
  return std::make_unique<AdamWPlan>(std::move(params), std::move(grads), std::move(exp_avgs), std::move(exp_avg_sqs),
                                     std::move(steps), args, std::move(common));
}

}  // namespace sage_ext::ops
