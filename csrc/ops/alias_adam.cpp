#include "cpu/alias_adam.h"

#include "ops/common/rule_plan.h"

#ifdef SAGE_EXT_WITH_CUDA
#include "cuda/alias_adam.h"
#include "ops/common/cuda_step.h"
#endif

namespace sage_ext::ops {

namespace {

class AliasAdamPlan final : public RulePlan {
 public:
  AliasAdamPlan(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs, TensorList signs,
                TensorList scalars, AliasAdamArgs args, CommonArgs common)
      : RulePlan(std::move(params), {}, std::move(common)),
        exp_avgs_(std::move(exp_avgs)),
        exp_avg_sqs_(std::move(exp_avg_sqs)),
        signs_(std::move(signs)),
        scalars_(std::move(scalars)),
        constants_{args.beta1, args.beta2, args.eps, common_.weight_decay} {
    check_beta("beta1", args.beta1);
    check_beta("beta2", args.beta2);
    check_not_negative("eps", args.eps);
    // The sign planes go by the row-major order.
    const Checker checker(params_, Layout::row_major, common_.describe);
    check_common();
    checker.moments(exp_avgs_, exp_avg_sqs_);
    checker.signs("signs", signs_);
    checker.scalars("scalars", scalars_, kAliasAdamScalars);
    grads_ = checker.grads(grads);
    checker.no_overlap(written(), grads_);
  }

 private:
  Lists written() const override { return {&params_, &exp_avgs_, &exp_avg_sqs_, &signs_, &scalars_}; }

  void run_cpu() override {
    cpu::alias_adam_step(tensors<cpu::AliasAdamTensor>(), lr(), constants_, grad_factor(common_), num_threads());
  }

#ifdef SAGE_EXT_WITH_CUDA
  void run_cuda(CudaStep& step) override {
    const std::vector<cuda::AliasAdamTensor> list = tensors<cuda::AliasAdamTensor>();
    cuda::alias_adam_step(list, constants_, step.scalars(), step.workspace(cuda::alias_adam_workspace_bytes(list)),
                          step.stream());
  }
#endif

  template <typename Entry>
  std::vector<Entry> tensors() const {
    std::vector<Entry> result;
    result.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      result.push_back({params_[i].mutable_data_ptr(), grads_[i].const_data_ptr(), exp_avgs_[i].mutable_data_ptr(),
                        exp_avg_sqs_[i].mutable_data_ptr(), static_cast<uint32_t*>(signs_[i].mutable_data_ptr()),
                        static_cast<AliasAdamScalars*>(scalars_[i].mutable_data_ptr()), params_[i].numel(),
                        dtype_of(params_[i]), dtype_of(grads_[i]), dtype_of(exp_avgs_[i])});
    }
    return result;
  }

  TensorList exp_avgs_, exp_avg_sqs_, signs_, scalars_;
  AliasAdamConstants constants_;
};

}  // namespace

PlanPtr plan_alias_adam(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
                        TensorList signs, TensorList scalars, AliasAdamArgs args, CommonArgs common) {
  return std::make_unique<AliasAdamPlan>(std::move(params), std::move(grads), std::move(exp_avgs),
                                         std::move(exp_avg_sqs), std::move(signs), std::move(scalars), args,
                                         std::move(common));
}

}  // namespace sage_ext::ops
