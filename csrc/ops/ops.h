#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ops/checks.h"

// The rules over tensors. plan_*() checks every argument and changes nothing; the plan that it returns holds
// the tensors, and run() carries it out. Several plans can so be checked before the first one runs.
namespace sage_ext::ops {

// What every rule takes.
struct CommonArgs {
  double lr = 0.0;
  double weight_decay = 0.0;
  bool maximize = false;
  std::optional<at::Tensor> grad_scale;  // one element; gradients are divided by it on load
  std::optional<at::Tensor> found_inf;   // one element; when it is not 0, run() changes nothing
  Describe describe;
};

struct SageArgs {
  double beta1, beta2, eps;
  bool momentum_first = false;
  bool instant_damper = true;
  CommonArgs common = {};
};

struct SinkGDArgs {
  int64_t iterations;
  double alpha, eps;
  std::string normalization = "sqrt";
  CommonArgs common = {};
};

struct LionArgs {
  double beta1, beta2;
  CommonArgs common = {};
};

struct AdamWArgs {
  double beta1, beta2, eps;
  CommonArgs common = {};
};

class Plan {
 public:
  virtual ~Plan() = default;
  virtual void run() = 0;
};
using PlanPtr = std::unique_ptr<Plan>;

PlanPtr plan_sage(TensorList params, TensorList grads, TensorList exp_avgs, TensorList s_ranges, TensorList steps,
                  SageArgs args);
PlanPtr plan_sinkgd(TensorList params, TensorList grads, SinkGDArgs args);
PlanPtr plan_lion(TensorList params, TensorList grads, TensorList exp_avgs, LionArgs args);
PlanPtr plan_adamw(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs, TensorList steps,
                   AdamWArgs args);

}  // namespace sage_ext::ops
