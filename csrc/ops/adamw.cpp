#include "cpu/adamw.h"

#include "core/math/adamw.h"
#include "ops/common.h"

namespace sage_ext::ops {

namespace {

class AdamWPlan final : public Plan {
 public:
  AdamWPlan(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs, TensorList steps,
            AdamWArgs args)
      : params_(std::move(params)),
        exp_avgs_(std::move(exp_avgs)),
        exp_avg_sqs_(std::move(exp_avg_sqs)),
        steps_(std::move(steps)),
        args_(std::move(args)) {
    check_beta("beta1", args_.beta1);
    check_beta("beta2", args_.beta2);
    check_not_negative("eps", args_.eps);
    check_common(args_.common);
    const Checker checker(params_, Layout::dense, args_.common.describe);
    checker.state("exp_avgs", exp_avgs_);
    checker.state("exp_avg_sqs", exp_avg_sqs_);
    for (size_t i = 0; i < params_.size(); ++i) {
      if (exp_avgs_[i].scalar_type() != exp_avg_sqs_[i].scalar_type()) {
        checker.fail("exp_avg_sqs", i, exp_avg_sqs_[i], "exp_avg and exp_avg_sq of a parameter must share a dtype");
      }
    }
    checker.steps(steps_);
    grads_ = checker.grads(grads);
    checker.no_overlap({&params_, &exp_avgs_, &exp_avg_sqs_, &steps_}, grads_);
  }

  void run() override {
    if (skips_step(args_.common)) return;
    std::vector<cpu::AdamWTensor> tensors;
    tensors.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      tensors.push_back(
          {params_[i].mutable_data_ptr(), grads_[i].const_data_ptr(), exp_avgs_[i].mutable_data_ptr(),
           exp_avg_sqs_[i].mutable_data_ptr(), params_[i].numel(), dtype_of(params_[i]), dtype_of(grads_[i]),
           dtype_of(exp_avgs_[i]),
           adamw_coefficients(args_.common.lr, args_.beta1, args_.beta2, args_.eps, args_.common.weight_decay,
                              static_cast<double>(step_count(steps_[i])) + 1.0)});
    }
    cpu::adamw_step(tensors, grad_factor(args_.common), num_threads());
    advance(steps_);
    for (const TensorList* list : {&params_, &exp_avgs_, &exp_avg_sqs_}) bump_versions(*list);
  }

 private:
  TensorList params_, grads_, exp_avgs_, exp_avg_sqs_, steps_;
  AdamWArgs args_;
};

}  // namespace

PlanPtr plan_adamw(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs, TensorList steps,
                   AdamWArgs args) {
  return std::make_unique<AdamWPlan>(std::move(params), std::move(grads), std::move(exp_avgs), std::move(exp_avg_sqs),
                                     std::move(steps), std::move(args));
}

}  // namespace sage_ext::ops
