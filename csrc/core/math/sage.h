#pragma once

#include "core/macros.h"
#include "core/math/sign.h"

// SAGE, arXiv 2604.07663: Lion's sign direction times a damper H_j <= 1 per column, from the mean |g| of the
// column (s, over rows) and its exponential average (S, bias-corrected).
namespace sage_ext {

struct SageDamper {
  double rms_s;      // sqrt(mean_j s_j^2)
  double rms_s_hat;  // sqrt(mean_j (S_j / (1 - beta2^t))^2)
  double bias_correction;  // 1 - beta2^t
  double eps;
  bool instant;  // take the second term of the minimum
};

SAGE_EXT_HD double sage_ema(double average, double s, double beta2) {
  return beta2 * average + (1.0 - beta2) * s;
}

// rms / (x + eps); 0 / 0 is 0, so that a tensor which is all zero stays put even with eps = 0.
SAGE_EXT_HD double sage_ratio(double rms, double x, double eps) {
  return rms == 0.0 ? 0.0 : rms / (x + eps);
}

// A minimum that keeps NaN, as torch.minimum.
SAGE_EXT_HD double nan_min(double a, double b) { return (a < b || a != a) ? a : b; }

SAGE_EXT_HD double sage_damper(double s_range, double s, const SageDamper& k) {
  const double slow = sage_ratio(k.rms_s_hat, s_range / k.bias_correction, k.eps);
  const double fast = k.instant ? sage_ratio(k.rms_s, s, k.eps) : 1.0;
  return nan_min(nan_min(slow, fast), 1.0);
}

}  // namespace sage_ext
