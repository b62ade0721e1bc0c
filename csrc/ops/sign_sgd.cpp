#include "cpu/sign_sgd.h"

#include <stdexcept>

#include "ops/common/rule_plan.h"

#ifdef SAGE_EXT_WITH_CUDA
#include "cuda/sign_sgd.h"
#include "ops/common/cuda_step.h"
#endif

namespace sage_ext::ops {

namespace {

class SignSGDPlan final : public RulePlan {
 public:
  SignSGDPlan(TensorList params, TensorList grads, TensorList exp_avgs, SignSGDArgs args, CommonArgs common)
      : RulePlan(std::move(params), {}, std::move(common)), exp_avgs_(std::move(exp_avgs)), args_(args) {
    check_beta("momentum", args_.momentum);
    const Checker checker(params_, Layout::dense, common_.describe);
    check_common();
    checker.momentum("exp_avgs", exp_avgs_, args_.momentum);
    grads_ = checker.grads(grads);
    checker.no_overlap(written(), grads_);
  }

 private:
  Lists written() const override { return {&params_, &exp_avgs_}; }

  void run_cpu() override {
    cpu::sign_sgd_step(tensors<cpu::SignSGDTensor>(),
                       {lr(), args_.momentum, common_.weight_decay, grad_factor(common_)}, num_threads());
  }

#ifdef SAGE_EXT_WITH_CUDA
  void run_cuda(CudaStep& step) override {
    cuda::sign_sgd_step(tensors<cuda::SignSGDTensor>(), {args_.momentum, common_.weight_decay}, step.scalars(),
                        step.stream());
  }
#endif

  template <typename Entry>
  std::vector<Entry> tensors() const {
    std::vector<Entry> result;
    result.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      Entry entry{params_[i].mutable_data_ptr(), grads_[i].const_data_ptr(), nullptr,       params_[i].numel(),
                  dtype_of(params_[i]),          dtype_of(grads_[i]),        DType::float32};
      if (!exp_avgs_.empty()) {
        entry.exp_avg = exp_avgs_[i].mutable_data_ptr();
        entry.exp_avg_dtype = dtype_of(exp_avgs_[i]);
      }
      result.push_back(entry);
    }
    return result;
  }

  TensorList exp_avgs_;
  SignSGDArgs args_;
};

}  // namespace

PlanPtr plan_sign_sgd(TensorList params, TensorList grads, TensorList exp_avgs, SignSGDArgs args, CommonArgs common) {
  return std::make_unique<SignSGDPlan>(std::move(params), std::move(grads), std::move(exp_avgs), args,
                                       std::move(common));
}

}  // namespace sage_ext::ops
