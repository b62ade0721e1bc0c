#include "cpu/alias.h"

#include <stdexcept>

#include "core/sign_planes.h"
#include "ops/common/rule_plan.h"

#ifdef SAGE_EXT_WITH_CUDA
#include "cuda/alias.h"
#include "ops/common/cuda_step.h"
#endif

namespace sage_ext::ops {

namespace {

AliasPhase phase_of(const std::string& name) {
  if (name == "move") return AliasPhase::move;
  return name == "refresh" ? AliasPhase::refresh : AliasPhase::step;
}

AliasForm form_of(bool memory_efficient, const std::string& smoothness) {
  if (memory_efficient) return smoothness == "sum" ? AliasForm::sum : AliasForm::extrema;
  if (smoothness != "sum") return AliasForm::base;
  throw std::invalid_argument(
      "smoothness is 'sum', which is for memory_efficient=True: the base form has the difference of the gradients "
      "itself; pass 'extrema' with memory_efficient=False");
}

class AliasPlan final : public RulePlan<Alias> {
 public:
  explicit AliasPlan(Call<Alias>&& call)
      : RulePlan(std::move(call)),
        options_{form_of(arg<"memory_efficient">(), arg<"smoothness">()),
                 arg<"gap">() == "descent",
                 arg<"lower_bound">(),
                 arg<"max_step">(),
                 arg<"weight_decay">(),
                 arg<"warmup_steps">(),
                 arg<"update_every">(),
                 phase_of(arg<"phase">())},
        loss_(arg<"loss">()) {
    // The sign planes go by the row-major order.
    const Checker checker(params_, Layout::row_major, common_.describe, common_.are_known);
    check_common();
    if (alias_keeps_signs(options_)) {
      checker.signs("signs", arg<"signs">());
    } else {
      check_none("signs", arg<"signs">());
    }
    if (alias_keeps_grads(options_)) {
      checker.state("prev_grads", arg<"prev_grads">());
    } else {
      check_none("prev_grads", arg<"prev_grads">());
    }
    checker.shared_scalars("scalars", arg<"scalars">(), kAliasScalars);
    grads_ = checker.grads(grads_);
    for (size_t i = 0; i < arg<"prev_grads">().size(); ++i) {
      if (state<"prev_grads">(i).scalar_type() != grads_[i].scalar_type()) {
        checker.fail("prev_grads", i, state<"prev_grads">(i),
                     std::string("it must have the gradient's dtype, which is ") + name(dtype_of(grads_[i])) +
                         "; if that has changed, clear the optimizer's state for this parameter");
      }
    }
    checker.no_overlap(written(), grads_);
    check_loss();
  }

 private:
  static void check_none(const char* name, const TensorList& list) {
    if (list.empty()) return;
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(list.size()) +
                                " tensors, but this form of ALIAS keeps none; pass an empty list");
  }

  // Where the host knows that this is the first step, which with the lower bound needs the loss. On a GPU it does not:
  // there a loss that is missing is NaN, and so are d and the parameters.
  void check_loss() {
    if (loss_.has_value()) {
      if (const auto* tensor = std::get_if<at::Tensor>(&*loss_)) {
        check_scalar("loss", "a number", *tensor);
        if (tensor->is_cpu() || !on_cuda()) loss_ = tensor->item().toDouble();
      }
      return;
    }
    if (params_.empty() || options_.descent || options_.phase == AliasPhase::refresh || on_cuda()) return;
    if (shared()->step == 0.0) {
      throw std::invalid_argument(
          "loss is None, but the first step with gap='lower_bound' needs it: call step(closure) or step(loss=...)");
    }
  }

  AliasScalars* shared() const { return static_cast<AliasScalars*>(state<"scalars">(0).mutable_data_ptr()); }

  void run_cpu() override {
    const double loss = loss_.has_value() ? std::get<double>(*loss_) : 0.0;
    cpu::alias_step(tensors<cpu::AliasTensor>(), options_, {lr(), loss, grad_factor()}, *shared(), num_threads());
  }

#ifdef SAGE_EXT_WITH_CUDA
  void run_cuda(CudaStep& step) override {
    cuda::AliasLoss loss;
    if (loss_.has_value()) {
      if (const auto* number = std::get_if<double>(&*loss_)) {
        loss.value = *number;
      } else {
        loss.tensor = step.on_device(std::get<at::Tensor>(*loss_));
      }
    }
    const std::vector<cuda::AliasTensor> list = tensors<cuda::AliasTensor>();
    cuda::alias_step(list, options_, loss, step.scalars(), shared(), step.workspace(cuda::alias_workspace_bytes(list)),
                     step.stream());
  }
#endif

  template <typename Entry>
  std::vector<Entry> tensors() const {
    std::vector<Entry> result;
    result.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      result.push_back({params_[i].mutable_data_ptr(), grads_[i].const_data_ptr(),
                        arg<"signs">().empty() ? nullptr : static_cast<uint32_t*>(state<"signs">(i).mutable_data_ptr()),
                        arg<"prev_grads">().empty() ? nullptr : state<"prev_grads">(i).mutable_data_ptr(),
                        params_[i].numel(), dtype_of(params_[i]), dtype_of(grads_[i])});
    }
    return result;
  }

  AliasOptions options_;
  std::optional<Number> loss_;
};

}  // namespace

PlanPtr Alias::plan(Call<Alias>&& call) { return std::make_unique<AliasPlan>(std::move(call)); }

}  // namespace sage_ext::ops
