#include "cpu/lion.h"

#include "ops/common/rule_plan.h"

#ifdef SAGE_EXT_WITH_CUDA
#include "cuda/lion.h"
#include "ops/common/cuda_step.h"
#endif

namespace sage_ext::ops {

namespace {

class LionPlan final : public RulePlan {
 public:
  LionPlan(TensorList params, TensorList grads, TensorList exp_avgs, LionArgs args, CommonArgs common)
      : RulePlan(std::move(params), {}, std::move(common)), exp_avgs_(std::move(exp_avgs)), args_(args) {
    check_beta("beta1", args_.beta1);
    check_beta("beta2", args_.beta2);
    const Checker checker(params_, Layout::dense, common_.describe);
    check_common();
    checker.state("exp_avgs", exp_avgs_);
    grads_ = checker.grads(grads);
    checker.no_overlap(written(), grads_);
  }

 private:
  Lists written() const override { return {&params_, &exp_avgs_}; }

  void run_cpu() override {
    cpu::lion_step(tensors<cpu::LionTensor>(),
                   {lr(), args_.beta1, args_.beta2, common_.weight_decay, grad_factor(common_)}, num_threads());
  }

#ifdef SAGE_EXT_WITH_CUDA
  void run_cuda(CudaStep& step) override {
    cuda::lion_step(tensors<cuda::LionTensor>(), {args_.beta1, args_.beta2, common_.weight_decay}, step.scalars(),
                    step.stream());
  }
#endif

  template <typename Entry>
  std::vector<Entry> tensors() const {
    std::vector<Entry> result;
    result.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      result.push_back({params_[i].mutable_data_ptr(), grads_[i].const_data_ptr(), exp_avgs_[i].mutable_data_ptr(),
                        params_[i].numel(), dtype_of(params_[i]), dtype_of(grads_[i]), dtype_of(exp_avgs_[i])});
    }
    return result;
  }

  TensorList exp_avgs_;
  LionArgs args_;
};

}  // namespace

PlanPtr plan_lion(TensorList params, TensorList grads, TensorList exp_avgs, LionArgs args, CommonArgs common) {
  return std::make_unique<LionPlan>(std::move(params), std::move(grads), std::move(exp_avgs), args, std::move(common));
}

}  // namespace sage_ext::ops
