#pragma once

#include <cmath>

#include "core/macros.h"
#include "core/math/common.h"

// AdamW (Loshchilov & Hutter, arXiv 1711.05101) with PyTorch's placement of eps.
namespace sage_ext {

struct AdamWCoefficients {
  float decay;  // 1 - lr * weight_decay
  float beta1, one_minus_beta1, beta2, one_minus_beta2, eps;
  float step_size;             // lr / (1 - beta1^t)
  float inv_sqrt_correction2;  // 1 / sqrt(1 - beta2^t)
};

// What stays the same for a whole run.
struct AdamWConstants {
  double beta1, beta2, eps, weight_decay, log_beta1, log_beta2;
};

inline AdamWConstants adamw_constants(double beta1, double beta2, double eps, double weight_decay) {
  return {beta1, beta2, eps, weight_decay, std::log(beta1), std::log(beta2)};
}

// `step` counts from 1.
SAGE_EXT_HD AdamWCoefficients adamw_coefficients(double lr, const AdamWConstants& c, double step) {
  return {decay_factor(lr, c.weight_decay),
          static_cast<float>(c.beta1),
          static_cast<float>(1.0 - c.beta1),
          static_cast<float>(c.beta2),
          static_cast<float>(1.0 - c.beta2),
          static_cast<float>(c.eps),
          static_cast<float>(lr / bias_correction(c.log_beta1, step)),
          static_cast<float>(1.0 / sqrt(bias_correction(c.log_beta2, step)))};
}

SAGE_EXT_HD void adamw_update(float& param, float& exp_avg, float& exp_avg_sq, float grad, const AdamWCoefficients& k) {
  exp_avg = k.beta1 * exp_avg + k.one_minus_beta1 * grad;
  exp_avg_sq = k.beta2 * exp_avg_sq + k.one_minus_beta2 * (grad * grad);
  const float denominator = sqrtf(exp_avg_sq) * k.inv_sqrt_correction2 + k.eps;
  // With eps = 0 an element that never had a gradient is 0 / 0: it stays put.
  const float ratio = denominator == 0.0f ? 0.0f : exp_avg / denominator;
  param = param * k.decay - k.step_size * ratio;
}

}  // namespace sage_ext
