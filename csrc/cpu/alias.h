#pragma once

#include <cstdint>
#include <span>

#include "core/dtype.h"
#include "core/math/alias.h"

namespace sage_ext::cpu {

// One parameter with its gradient: dense arrays of `numel` elements in the same order. Of what is kept of the gradient
// before it, a form has one or neither; the other pointer is null:
//   extrema or sum, descent       signs: its bit planes (core/sign_planes.h)
//   extrema or sum, lower bound   nothing
//   base                          prev_grad: all of it, in grad_dtype
struct AliasTensor {
  void* param;
  const void* grad;
  uint32_t* signs;
  void* prev_grad;
  int64_t numel;
  DType param_dtype, grad_dtype;
};

struct AliasStep {
  double lr;           // gamma during warm-up
  double loss;         // looked at in the first step with the gap to the lower bound
  double grad_factor;  // multiplies every gradient on load: 1 / grad_scale, negated to maximize
};

// One ALIAS step over all tensors, on up to `threads` threads.
void alias_step(std::span<const AliasTensor> tensors, const AliasOptions& options, const AliasStep& step,
                AliasScalars& shared, int threads);

}  // namespace sage_ext::cpu
