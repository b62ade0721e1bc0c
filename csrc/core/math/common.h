#pragma once

#include <cmath>

#include "core/macros.h"

// What several rules share.
namespace sage_ext {

// The factor of a parameter under decoupled weight decay.
SAGE_EXT_HD float decay_factor(double lr, double weight_decay) { return static_cast<float>(1.0 - lr * weight_decay); }

// A momentum m <- momentum * m + (1 - momentum) * g.
struct MomentumCoefficients {
  float keep, add;
};

inline MomentumCoefficients momentum_coefficients(double momentum) {
  return {static_cast<float>(momentum), static_cast<float>(1.0 - momentum)};
}

SAGE_EXT_HD float momentum_update(float exp_avg, float grad, const MomentumCoefficients& k) {
  return k.keep * exp_avg + k.add * grad;
}

// Whether an fp32 sum of squares can be trusted: nothing that matters under- or overflowed on the way.
// Otherwise (tiny, huge, zero or not finite) the sum is taken again in fp64.
SAGE_EXT_HD bool squares_are_safe(double sum_sq) { return sum_sq > 1e-30 && sum_sq < 1e37; }

// What an fp32 factor of a row or column may be: room is left above for a rounding.
inline constexpr float kMaxScale = 3.0e38f;

// Larger and smaller, where a NaN wins.
SAGE_EXT_HD double keep_nan_max(double a, double b) { return a > b || a != a ? a : b; }
SAGE_EXT_HD double keep_nan_min(double a, double b) { return a < b || a != a ? a : b; }

// The factor of every gradient on load.
template <typename Real>
SAGE_EXT_HD Real gradient_factor(bool maximize, Real grad_scale) {
  return static_cast<Real>(maximize ? -1 : 1) / grad_scale;
}

// 1 - beta^step, for an exponential average that started at zero; `log_beta` is the logarithm of beta.
SAGE_EXT_HD double bias_correction(double log_beta, double step) { return -expm1(step * log_beta); }

}  // namespace sage_ext
