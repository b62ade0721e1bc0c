#include "cpu/alias.h"

#include <cmath>
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
  if (name == "step") return AliasPhase::step;
  if (name == "move") return AliasPhase::move;
  if (name == "refresh") return AliasPhase::refresh;
  throw std::invalid_argument("phase is '" + name + "'; it may be 'step', 'move' or 'refresh'");
}

AliasOptions options_of(const AliasArgs& args, double weight_decay) {
  if (args.gap != "descent" && args.gap != "lower_bound") {
    throw std::invalid_argument("gap is '" + args.gap + "'; it may be 'descent' or 'lower_bound'");
  }
  if (!std::isfinite(args.lower_bound)) throw std::invalid_argument("lower_bound must be finite");
  check_not_negative("max_step", args.max_step);
  if (args.warmup_steps < 0) throw std::invalid_argument("warmup_steps must be at least 0");
  if (args.update_every < 1) throw std::invalid_argument("update_every must be at least 1");
  return {args.memory_efficient, args.gap == "descent", args.lower_bound,  args.max_step,
          weight_decay,          args.warmup_steps,     args.update_every, phase_of(args.phase)};
}

class AliasPlan final : public RulePlan {
 public:
  AliasPlan(TensorList params, TensorList grads, TensorList signs, TensorList prev_grads, TensorList scalars,
            AliasArgs args, CommonArgs common)
      : RulePlan(std::move(params), {}, std::move(common)),
        signs_(std::move(signs)),
        prev_grads_(std::move(prev_grads)),
        scalars_(std::move(scalars)),
        options_(options_of(args, common_.weight_decay)),
        loss_(std::move(args.loss)) {
    // The sign planes go by the row-major order.
    const Checker checker(params_, Layout::row_major, common_.describe);
    check_common();
    if (keeps_signs()) {
      checker.signs("signs", signs_);
    } else {
      check_none("signs", signs_);
    }
    if (options_.memory_efficient) {
      check_none("prev_grads", prev_grads_);
    } else {
      checker.state("prev_grads", prev_grads_);
    }
    checker.shared_scalars("scalars", scalars_, kAliasScalars);
    grads_ = checker.grads(grads);
    for (size_t i = 0; i < prev_grads_.size(); ++i) {
      if (prev_grads_[i].scalar_type() != grads_[i].scalar_type()) {
        checker.fail("prev_grads", i, prev_grads_[i],
                     std::string("it must have the gradient's dtype, which is ") + name(dtype_of(grads_[i])) +
                         "; if that has changed, clear the optimizer's state for this parameter");
      }
    }
    checker.no_overlap(written(), grads_);
    check_loss();
  }

 private:
  bool keeps_signs() const { return options_.memory_efficient && options_.descent; }

  static void check_none(const char* name, const TensorList& list) {
    if (list.empty()) return;
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(list.size()) +
                                " tensors, but this form of ALIAS keeps none; pass an empty list");
  }

  // Where the host knows that this is the first step, which with the lower bound needs the loss.
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

  Lists written() const override { return {&params_, &signs_, &prev_grads_, &scalars_}; }

  AliasScalars* shared() const { return static_cast<AliasScalars*>(scalars_[0].mutable_data_ptr()); }

  void run_cpu() override {
    const double loss = loss_.has_value() ? std::get<double>(*loss_) : 0.0;
    cpu::alias_step(tensors<cpu::AliasTensor>(), options_, {lr(), loss, grad_factor(common_)}, *shared(),
                    num_threads());
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
                        signs_.empty() ? nullptr : static_cast<uint32_t*>(signs_[i].mutable_data_ptr()),
                        prev_grads_.empty() ? nullptr : prev_grads_[i].mutable_data_ptr(), params_[i].numel(),
                        dtype_of(params_[i]), dtype_of(grads_[i])});
    }
    return result;
  }

  TensorList signs_, prev_grads_, scalars_;
  AliasOptions options_;
  std::optional<std::variant<double, at::Tensor>> loss_;
};

}  // namespace

PlanPtr plan_alias(TensorList params, TensorList grads, TensorList signs, TensorList prev_grads, TensorList scalars,
                   AliasArgs args, CommonArgs common) {
  return std::make_unique<AliasPlan>(std::move(params), std::move(grads), std::move(signs), std::move(prev_grads),
                                     std::move(scalars), std::move(args), std::move(common));
}

}  // namespace sage_ext::ops
