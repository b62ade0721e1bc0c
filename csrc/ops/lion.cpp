#include "cpu/lion.h"

#include "ops/common/rule_plan.h"

#ifdef SAGE_EXT_WITH_CUDA
#include "cuda/lion.h"
#include "ops/common/cuda_step.h"
#endif

namespace sage_ext::ops {

namespace {

class LionPlan final : public RulePlan<Lion> {
 public:
  explicit LionPlan(Call<Lion>&& call) : RulePlan(std::move(call)) {
    const Checker checker(params_, Layout::dense, common_.describe, common_.are_known);
    check_common();
    checker.state("exp_avgs", arg<"exp_avgs">());
    grads_ = checker.grads(grads_);
    checker.no_overlap(written(), grads_);
  }

 private:
  void run_cpu() override {
    cpu::lion_step(tensors<cpu::LionTensor>(),
                   {lr(), arg<"beta1">(), arg<"beta2">(), arg<"weight_decay">(), grad_factor()}, num_threads());
  }

#ifdef SAGE_EXT_WITH_CUDA
  void run_cuda(CudaStep& step) override {
    cuda::lion_step(tensors<cuda::LionTensor>(), {arg<"beta1">(), arg<"beta2">(), arg<"weight_decay">()},
                    step.scalars(), step.stream());
  }
#endif

  template <typename Entry>
  std::vector<Entry> tensors() const {
    std::vector<Entry> result;
    result.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      result.push_back({params_[i].mutable_data_ptr(), grads_[i].const_data_ptr(),
                        state<"exp_avgs">(i).mutable_data_ptr(), params_[i].numel(), dtype_of(params_[i]),
                        dtype_of(grads_[i]), dtype_of(state<"exp_avgs">(i))});
    }
    return result;
  }
};

}  // namespace

PlanPtr Lion::plan(Call<Lion>&& call) { return std::make_unique<LionPlan>(std::move(call)); }

}  // namespace sage_ext::ops
