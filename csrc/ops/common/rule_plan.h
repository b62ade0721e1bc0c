#pragma once

#include <ATen/core/Tensor.h>

#include "core/launch_plan.h"
#include "ops/common/checks.h"
#include "ops/rules.h"

// What the rules' plans share.
namespace sage_ext::ops {

class CudaStep;

// A plan over parameters on one device, as far as it needs to know no rule.
class AnyRulePlan : public Plan {
 public:
  void run() final;
  void begin(Cut&& cut) final;
  std::optional<Exchange> proceed() final;

 protected:
  using Lists = std::vector<const TensorList*>;

  explicit AnyRulePlan(CommonCall&& call)
      : params_(std::move(value_of<"params">(call))),
        grads_(std::move(value_of<"grads">(call))),
        common_(std::move(call)) {}

  // Checks what every rule takes beside tensors, for parameters that have been checked.
  void check_common();

  // Every list that a step writes.
  virtual Lists written() const = 0;

  // One more step, where the rule counts them. On a CUDA device the kernels do it.
  virtual void count_step() = 0;

  // The step on the CPU, but for the step counters and for steps that found_inf skips.
  virtual void run_cpu() = 0;
  // The same up to the next exchange; the rules that have none are not asked.
  virtual std::optional<Exchange> proceed_cpu() { return {}; }
#ifdef SAGE_EXT_WITH_CUDA
  // Enqueues the whole step.
  virtual void run_cuda(CudaStep& step) = 0;
  virtual std::optional<Exchange> proceed_cuda(CudaStep&) { return {}; }
#endif

  // The size of a whole parameter, as a matrix of its first dimension and the others; as matrices of its last two.
  virtual WholeSize whole_size(const std::vector<int64_t>&) const { return {}; }
  WholeSize whole(size_t i) const { return cut_ ? whole_size(cut_->shapes[i]) : WholeSize{}; }
  static WholeSize size_of_last_two(const std::vector<int64_t>& shape) {
    return {shape[shape.size() - 2], shape[shape.size() - 1]};
  }

  // A buffer beside parameter i. Zeros where this process has nothing of the parameter.
  at::Tensor buffer(size_t i, at::IntArrayRef shape, at::ScalarType dtype) const;
  // Scratch on the parameters' device.
  at::Tensor buffer_of(int64_t bytes) const;

  // The learning rate of a step on the CPU, where check_common() has read it.
  double lr() const { return std::get<double>(value_of<"lr">(common_)); }

  // The factor of every gradient on load, on the CPU: 1 / grad_scale, negated to maximize.
  double grad_factor() const;

  bool on_cuda() const { return !params_.empty() && params_[0].is_cuda(); }

  TensorList params_, grads_;
  CommonCall common_;
  std::optional<Cut> cut_;
};

// The number of threads that torch would use now (torch.set_num_threads).
int num_threads();

// A step counter on the CPU.
float& step_count(const at::Tensor& step);

// A plan of `Rule`. Its constructor checks the tensors, those of the numbers have been by then; run_cpu() and
// run_cuda() do the rest.
template <typename Rule>
class RulePlan : public AnyRulePlan {
 protected:
  explicit RulePlan(Call<Rule>&& call) : AnyRulePlan(std::move(call.common)), own_(std::move(call.own)) {
    check_arguments(own_, typename Rule::Arguments());
  }

  // An argument or list by name.
  template <Text Name>
  const auto& arg() const {
    if constexpr (has_value<decltype(own_), Name>) {
      return value_of<Name>(own_);
    } else {
      return value_of<Name>(common_);
    }
  }

  // The state of parameter i in a list.
  template <Text Name>
  const at::Tensor& state(size_t i) const {
    return value_of<Name>(own_)[i];
  }

  Lists written() const final { return written_in(typename Rule::States()); }

 private:
  template <typename... States>
  Lists written_in(Types<States...>) const {
    return {&params_, &value_of<States::text>(own_)...};
  }

  void count_step() final {
    if constexpr (has_value<decltype(own_), "steps">) {
      for (const at::Tensor& step : value_of<"steps">(own_)) step_count(step) += 1.0f;
    }
  }

  Values<Joined<typename Rule::States, typename Rule::Arguments>> own_;
};

}  // namespace sage_ext::ops
