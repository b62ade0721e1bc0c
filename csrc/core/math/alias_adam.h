#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"
#include "core/math/adamw.h"
#include "core/math/common.h"

// ALIAS-Adam, from the code of the authors of ALIAS (arXiv 2506.03725): Adam on d * g, where d comes from the inner
// products of every gradient with the signs of the one before it. All of it is a tensor's own.
namespace sage_ext {

// A tensor's scalars: an fp64 tensor of its state.
struct AliasAdamScalars {
  double r;  // exponential average of d * <g_t, sign(g_{t-1})>
  double d;  // never falls
};

inline constexpr int64_t kAliasAdamScalars = sizeof(AliasAdamScalars) / sizeof(double);

// `inner` is <g_t, sign(g_{t-1})>.
SAGE_EXT_HD void alias_adam_advance(AliasAdamScalars& s, double inner, double beta2) {
  const double root = sqrt(beta2);
  s.r = root * s.r + (1.0 - root) * (s.d * inner);
  s.d = keep_nan_max(s.r, s.d);
}

struct AliasAdamConstants {
  double beta1, beta2, eps, weight_decay;
};

// AdamW's update with lr * d for its step size and no bias corrected, of gradients times d.
struct AliasAdamCoefficients {
  AdamWCoefficients adamw;
  float grad_factor;  // d, times the factor of every gradient on load
};

SAGE_EXT_HD AliasAdamCoefficients alias_adam_coefficients(double lr, double d, double grad_factor,
                                                          const AliasAdamConstants& c) {
  return {{decay_factor(lr, c.weight_decay), static_cast<float>(c.beta1), static_cast<float>(1.0 - c.beta1),
           static_cast<float>(c.beta2), static_cast<float>(1.0 - c.beta2), static_cast<float>(c.eps),
           static_cast<float>(lr * d), /*inv_sqrt_correction2=*/1.0f},
          static_cast<float>(d * grad_factor)};
}

// `grad` as it was loaded, without any factor.
SAGE_EXT_HD void alias_adam_update(float& param, float& exp_avg, float& exp_avg_sq, float grad,
                                   const AliasAdamCoefficients& k) {
  adamw_update(param, exp_avg, exp_avg_sq, grad * k.grad_factor, k.adamw);
}

}  // namespace sage_ext
