#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "ops/common/checks.h"

// The rules over tensors. plan_*() checks every argument and changes nothing; the plan that it returns holds
// the tensors, and run() carries it out. Several plans can so be checked before the first one runs.
//
// All tensors of a plan are on one device. On a CUDA device run() enqueues kernels on that device's current stream
// and returns: the host reads no value there and waits for nothing, so a CUDA graph can capture it.
namespace sage_ext::ops {

// What every rule takes.
struct CommonArgs {
  std::variant<double, at::Tensor> lr = 0.0;  // a tensor has one element
  double weight_decay = 0.0;
  bool maximize = false;
  std::optional<at::Tensor> grad_scale;  // one element; gradients are divided by it on load
  std::optional<at::Tensor> found_inf;   // one element; when it is not 0, the step changes nothing
  Describe describe;
};

struct SageArgs {
  double beta1, beta2, eps;
  bool momentum_first = false;
  bool instant_damper = true;
};

struct SinkGDArgs {
  int64_t iterations;
  double alpha, eps;
  std::string normalization = "sqrt";
};

struct LionArgs {
  double beta1, beta2;
};

struct SignSGDArgs {
  double momentum;
};

struct ScaleArgs {
  double momentum;
  int64_t dim;  // 1: a norm for every row, over the last dimension; 0: a norm for every column
  double eps;
  std::string normalization = "rms";
};

struct AdamWArgs {
  double beta1, beta2, eps;
};

struct AliasArgs {
  bool memory_efficient;
  std::string gap;  // "descent" or "lower_bound"
  double lower_bound, max_step;
  int64_t warmup_steps, update_every;
  std::optional<std::variant<double, at::Tensor>> loss;  // of the first step, for the lower bound
  std::string phase = "step";                            // or "move" or "refresh"
};

struct AliasAdamArgs {
  double beta1, beta2, eps;
};

class Plan {
 public:
  virtual ~Plan() = default;
  virtual void run() = 0;
};
using PlanPtr = std::unique_ptr<Plan>;

PlanPtr plan_sage(TensorList params, TensorList grads, TensorList exp_avgs, TensorList s_ranges, TensorList steps,
                  SageArgs args, CommonArgs common);
PlanPtr plan_sinkgd(TensorList params, TensorList grads, SinkGDArgs args, CommonArgs common);
PlanPtr plan_lion(TensorList params, TensorList grads, TensorList exp_avgs, LionArgs args, CommonArgs common);
// Without momentum, `exp_avgs` is empty.
PlanPtr plan_sign_sgd(TensorList params, TensorList grads, TensorList exp_avgs, SignSGDArgs args, CommonArgs common);
// Without momentum, `exp_avgs` is empty.
PlanPtr plan_scale(TensorList params, TensorList grads, TensorList exp_avgs, ScaleArgs args, CommonArgs common);
PlanPtr plan_adamw(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs, TensorList steps,
                   AdamWArgs args, CommonArgs common);
// `signs` and `prev_grads` are empty in the forms that do not keep them; `scalars` has one tensor.
PlanPtr plan_alias(TensorList params, TensorList grads, TensorList signs, TensorList prev_grads, TensorList scalars,
                   AliasArgs args, CommonArgs common);
PlanPtr plan_alias_adam(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
                        TensorList signs, TensorList scalars, AliasAdamArgs args, CommonArgs common);

}  // namespace sage_ext::ops
