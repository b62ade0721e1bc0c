#pragma once

#include "ops/rules.h"

// What the rules' plans share.
namespace sage_ext::ops {

class CudaStep;

// A plan over parameters on one device. A rule's constructor checks its tensors and numbers, run() does the rest.
class RulePlan : public Plan {
 public:
  void run() final;

 protected:
  using Lists = std::vector<const TensorList*>;

  RulePlan(TensorList params, TensorList steps, CommonArgs common)
      : params_(std::move(params)), steps_(std::move(steps)), common_(std::move(common)) {}

  // Checks lr, weight_decay, grad_scale and found_inf, for parameters that have been checked.
  void check_common();

  // Every list that a step writes.
  virtual Lists written() const = 0;

  // The step on the CPU, but for the step counters and for steps that found_inf skips.
  virtual void run_cpu() = 0;
#ifdef SAGE_EXT_WITH_CUDA
  // Enqueues the whole step.
  virtual void run_cuda(CudaStep& step) = 0;
#endif

  // The learning rate of a step on the CPU, where check_common() has read it.
  double lr() const { return std::get<double>(common_.lr); }

  bool on_cuda() const { return !params_.empty() && params_[0].is_cuda(); }

  TensorList params_, grads_, steps_;
  CommonArgs common_;
};

// A floating tensor with one element; `otherwise` says in messages what may be there in its place.
void check_scalar(const char* name, const char* otherwise, const at::Tensor& tensor);

// The factor of every gradient on load, on the CPU: 1 / grad_scale, negated to maximize.
double grad_factor(const CommonArgs& args);

// The number of threads that torch would use now (torch.set_num_threads).
int num_threads();

// A step counter on the CPU.
float& step_count(const at::Tensor& step);

}  // namespace sage_ext::ops
