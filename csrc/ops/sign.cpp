#include "cpu/sign.h"

#include "ops/common.h"

namespace sage_ext::ops {

namespace {

class LionPlan final : public Plan {
 public:
  LionPlan(TensorList params, TensorList grads, TensorList exp_avgs, LionArgs args)
      : params_(std::move(params)), exp_avgs_(std::move(exp_avgs)), args_(std::move(args)) {
    check_beta("beta1", args_.beta1);
    check_beta("beta2", args_.beta2);
    check_common(args_.common);
    const Checker checker(params_, Layout::dense, args_.common.describe);
    checker.state("exp_avgs", exp_avgs_);
    grads_ = checker.grads(grads);
    checker.no_overlap({&params_, &exp_avgs_}, grads_);
  }

  void run() override {
    if (skips_step(args_.common)) return;
    std::vector<cpu::LionTensor> tensors;
    tensors.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      tensors.push_back({params_[i].mutable_data_ptr(), grads_[i].const_data_ptr(), exp_avgs_[i].mutable_data_ptr(),
                         params_[i].numel(), dtype_of(params_[i]), dtype_of(grads_[i]), dtype_of(exp_avgs_[i])});
    }
    cpu::lion_step(tensors,
                   {args_.common.lr, args_.beta1, args_.beta2, args_.common.weight_decay, grad_factor(args_.common)},
                   num_threads());
    for (const TensorList* list : {&params_, &exp_avgs_}) bump_versions(*list);
  }

 private:
  TensorList params_, grads_, exp_avgs_;
  LionArgs args_;
};

}  // namespace

PlanPtr plan_lion(TensorList params, TensorList grads, TensorList exp_avgs, LionArgs args) {
  return std::make_unique<LionPlan>(std::move(params), std::move(grads), std::move(exp_avgs), std::move(args));
}

}  // namespace sage_ext::ops
