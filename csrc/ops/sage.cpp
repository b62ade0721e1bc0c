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

class SagePlan final : public RulePlan {
 public:
  SagePlan(TensorList params, TensorList grads, TensorList exp_avgs, TensorList s_ranges, TensorList steps,
           SageArgs args, CommonArgs common)
      : RulePlan(std::move(params), std::move(steps), std::move(common)),
        exp_avgs_(std::move(exp_avgs)),
        s_ranges_(std::move(s_ranges)),
        args_(args) {
    check_beta("beta1", args_.beta1);
    check_beta("beta2", args_.beta2);
    check_not_negative("eps", args_.eps);
    const Checker checker(params_, Layout::row_major, common_.describe);
    check_common();
    checker.state("exp_avgs", exp_avgs_);
    checker.fp32_state("s_ranges", s_ranges_, s_range_shape);
    checker.steps(steps_);
    grads_ = checker.grads(grads);
    checker.no_overlap(written(), grads_);
  }

 private:
  Lists written() const override { return {&params_, &exp_avgs_, &s_ranges_, &steps_}; }

  int64_t rows(size_t i) const { return params_[i].dim() >= 2 ? params_[i].size(0) : 1; }
  float* s_range(size_t i) const { return static_cast<float*>(s_ranges_[i].mutable_data_ptr()); }

  void run_cpu() override {
    std::vector<cpu::SageTensor> tensors;
    tensors.reserve(params_.size());
    const double log_beta2 = std::log(args_.beta2);
    for (size_t i = 0; i < params_.size(); ++i) {
      const double t = static_cast<double>(step_count(steps_[i])) + 1.0;
      tensors.push_back({params_[i].mutable_data_ptr(), grads_[i].const_data_ptr(), exp_avgs_[i].mutable_data_ptr(),
                         s_range(i), rows(i), s_ranges_[i].numel(), dtype_of(params_[i]), dtype_of(grads_[i]),
                         dtype_of(exp_avgs_[i]), bias_correction(log_beta2, t)});
    }
    cpu::SageStep step(std::move(tensors), {lr(), args_.beta1, args_.beta2, args_.eps, common_.weight_decay,
                                            args_.momentum_first, args_.instant_damper, grad_factor(common_)});
    step.run(num_threads());
  }

#ifdef SAGE_EXT_WITH_CUDA
  void run_cuda(CudaStep& step) override {
    std::vector<cuda::SageTensor> tensors;
    tensors.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      tensors.push_back({params_[i].mutable_data_ptr(), grads_[i].const_data_ptr(), exp_avgs_[i].mutable_data_ptr(),
                         s_range(i), &step_count(steps_[i]), rows(i), s_ranges_[i].numel(), dtype_of(params_[i]),
                         dtype_of(grads_[i]), dtype_of(exp_avgs_[i])});
    }
    cuda::sage_step(
        tensors,
        {args_.beta1, args_.beta2, args_.eps, common_.weight_decay, args_.momentum_first, args_.instant_damper},
        step.scalars(), step.workspace(cuda::sage_workspace_bytes(tensors)), step.stream());
  }
#endif

  TensorList exp_avgs_, s_ranges_;
  SageArgs args_;
};

}  // namespace

PlanPtr plan_sage(TensorList params, TensorList grads, TensorList exp_avgs, TensorList s_ranges, TensorList steps,
                  SageArgs args, CommonArgs common) {
  return std::make_unique<SagePlan>(std::move(params), std::move(grads), std::move(exp_avgs), std::move(s_ranges),
                                    std::move(steps), args, std::move(common));
}

}  // namespace sage_ext::ops
