#include <cmath>

#include "cpu/sage.h"
#include "ops/common.h"

namespace sage_ext::ops {

namespace {

std::vector<int64_t> s_range_shape(const at::Tensor& param) {
  const at::IntArrayRef shape = param.sizes();
  return param.dim() >= 2 ? shape.slice(1).vec() : shape.vec();
}

class SagePlan final : public Plan {
 public:
  SagePlan(TensorList params, TensorList grads, TensorList exp_avgs, TensorList s_ranges, TensorList steps,
           SageArgs args)
      : params_(std::move(params)),
        exp_avgs_(std::move(exp_avgs)),
        s_ranges_(std::move(s_ranges)),
        steps_(std::move(steps)),
        args_(std::move(args)) {
    check_beta("beta1", args_.beta1);
    check_beta("beta2", args_.beta2);
    check_not_negative("eps", args_.eps);
    check_common(args_.common);
    const Checker checker(params_, Layout::row_major, args_.common.describe);
    checker.state("exp_avgs", exp_avgs_);
    checker.fp32_state("s_ranges", s_ranges_, s_range_shape);
    checker.steps(steps_);
    grads_ = checker.grads(grads);
    checker.no_overlap({&params_, &exp_avgs_, &s_ranges_, &steps_}, grads_);
  }

  void run() override {
    if (skips_step(args_.common)) return;
    std::vector<cpu::SageTensor> tensors;
    tensors.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      const at::Tensor& param = params_[i];
      const int64_t rows = param.dim() >= 2 ? param.size(0) : 1;
      const double t = static_cast<double>(step_count(steps_[i])) + 1.0;
      tensors.push_back({param.mutable_data_ptr(), grads_[i].const_data_ptr(), exp_avgs_[i].mutable_data_ptr(),
                         static_cast<float*>(s_ranges_[i].mutable_data_ptr()), rows, s_ranges_[i].numel(),
                         dtype_of(param), dtype_of(grads_[i]), dtype_of(exp_avgs_[i]), 1.0 - std::pow(args_.beta2, t)});
    }
    cpu::SageStep step(std::move(tensors),
                       {args_.common.lr, args_.beta1, args_.beta2, args_.eps, args_.common.weight_decay,
                        args_.momentum_first, args_.instant_damper, grad_factor(args_.common)});
    step.run(num_threads());
    advance(steps_);
    for (const TensorList* list : {&params_, &exp_avgs_, &s_ranges_}) bump_versions(*list);
  }

 private:
  TensorList params_, grads_, exp_avgs_, s_ranges_, steps_;
  SageArgs args_;
};

}  // namespace

PlanPtr plan_sage(TensorList params, TensorList grads, TensorList exp_avgs, TensorList s_ranges, TensorList steps,
                  SageArgs args) {
  return std::make_unique<SagePlan>(std::move(params), std::move(grads), std::move(exp_avgs), std::move(s_ranges),
                                    std::move(steps), std::move(args));
}

}  // namespace sage_ext::ops
