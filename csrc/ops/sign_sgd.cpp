#include "cpu/sign_sgd.h"

#include "ops/common/rule_plan.h"

#ifdef SAGE_EXT_WITH_CUDA
#include "cuda/sign_sgd.h"
#include "ops/common/cuda_step.h"
#endif

namespace sage_ext::ops {

namespace {

class SignSGDPlan final : public RulePlan<SignSGD> {
 public:
  explicit SignSGDPlan(Call<SignSGD>&& call) : RulePlan(std::move(call)) {
    const Checker checker(params_, Layout::dense, common_.describe, common_.are_known);
    check_common();
    checker.momentum("exp_avgs", arg<"exp_avgs">(), arg<"momentum">());
    grads_ = checker.grads(grads_);
    checker.no_overlap(written(), grads_);
  }

 private:
  void run_cpu() override {
    cpu::sign_sgd_step(tensors<cpu::SignSGDTensor>(), {lr(), arg<"momentum">(), arg<"weight_decay">(), grad_factor()},
                       num_threads());
  }

#ifdef SAGE_EXT_WITH_CUDA
  void run_cuda(CudaStep& step) override {
    cuda::sign_sgd_step(tensors<cuda::SignSGDTensor>(), {arg<"momentum">(), arg<"weight_decay">()}, step.scalars(),
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
      if (!arg<"exp_avgs">().empty()) {
        entry.exp_avg = state<"exp_avgs">(i).mutable_data_ptr();
        entry.exp_avg_dtype = dtype_of(state<"exp_avgs">(i));
      }
      result.push_back(entry);
    }
    return result;
  }
};

}  // namespace

PlanPtr SignSGD::plan(Call<SignSGD>&& call) { return std::make_unique<SignSGDPlan>(std::move(call)); }

}  // namespace sage_ext::ops
