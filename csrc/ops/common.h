#pragma once

#include "ops/ops.h"

// What the rules' plans share.
namespace sage_ext::ops {

// Checks lr, weight_decay, grad_scale and found_inf.
void check_common(const CommonArgs& args);

// Whether found_inf says to skip the step.
bool skips_step(const CommonArgs& args);

// The factor of every gradient on load: 1 / grad_scale, negated to maximize.
double grad_factor(const CommonArgs& args);

// The number of threads that torch would use now (torch.set_num_threads).
int num_threads();

float& step_count(const at::Tensor& step);
void advance(const TensorList& steps);

// Tells autograd that these tensors were written, as an in-place operation does.
void bump_versions(const TensorList& tensors);

}  // namespace sage_ext::ops
