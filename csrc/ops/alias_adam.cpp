#include "cpu/alias_adam.h"

#include "ops/common/rule_plan.h"

#ifdef SAGE_EXT_WITH_CUDA
#include "cuda/alias_adam.h"
#include "ops/common/cuda_step.h"
#endif

namespace sage_ext::ops {

namespace {

class AliasAdamPlan final : public RulePlan<AliasAdam> {
 public:
  explicit AliasAdamPlan(Call<AliasAdam>&& call)
      : RulePlan(std::move(call)), constants_{arg<"beta1">(), arg<"beta2">(), arg<"eps">(), arg<"weight_decay">()} {
    // The sign planes go by the row-major order.
    const Checker checker(params_, Layout::row_major, common_.describe, common_.are_known);
    check_common();
    checker.moments(arg<"exp_avgs">(), arg<"exp_avg_sqs">());
    checker.signs("signs", arg<"signs">());
    checker.scalars("scalars", arg<"scalars">(), kAliasAdamScalars);
    grads_ = checker.grads(grads_);
    checker.no_overlap(written(), grads_);
  }

 private:
  void run_cpu() override {
    cpu::alias_adam_step(tensors<cpu::AliasAdamTensor>(), lr(), constants_, grad_factor(), num_threads());
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
      result.push_back({params_[i].mutable_data_ptr(), grads_[i].const_data_ptr(),
                        state<"exp_avgs">(i).mutable_data_ptr(), state<"exp_avg_sqs">(i).mutable_data_ptr(),
                        static_cast<uint32_t*>(state<"signs">(i).mutable_data_ptr()),
                        static_cast<AliasAdamScalars*>(state<"scalars">(i).mutable_data_ptr()), params_[i].numel(),
                        dtype_of(params_[i]), dtype_of(grads_[i]), dtype_of(state<"exp_avgs">(i))});
    }
    return result;
  }

  AliasAdamConstants constants_;
};

}  // namespace

PlanPtr AliasAdam::plan(Call<AliasAdam>&& call) { return std::make_unique<AliasAdamPlan>(std::move(call)); }

}  // namespace sage_ext::ops
