#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"
#include "core/math/common.h"
#include "core/math/sign.h"

// SAGE, arXiv 2604.07663: Lion's sign direction times a damper H_j <= 1 per column, from the mean |g| of the
// column (s, over rows) and its exponential average (S, bias-corrected).
namespace sage_ext {

// What the processes that have the pieces of a tensor add up between the passes, each over its own.
struct SageSums {
  float* columns;   // [cols]: of |g|
  double* squares;  // [2]: over the columns, of s^2 and of (S / (1 - beta2^t))^2
};

struct SageDamper {
  float rms_s;                // sqrt(mean_j s_j^2)
  float rms_s_hat;            // sqrt(mean_j (S_j / (1 - beta2^t))^2)
  float inv_bias_correction;  // 1 / (1 - beta2^t)
  float eps;
};

// Of `count` numbers whose squares have this sum.
SAGE_EXT_HD double root_mean_square(double sum_sq, int64_t count) {
  return std::sqrt(sum_sq / static_cast<double>(count));
}

SAGE_EXT_HD double sage_ema(double average, double s, double beta2) { return beta2 * average + (1.0 - beta2) * s; }

// rms / (x + eps); 0 / 0 is 0, so that a tensor which is all zero stays put even with eps = 0. No branch, so that
// loops over columns vectorise: a denominator of zero becomes the smallest number.
SAGE_EXT_HD float sage_ratio(float rms, float x, float eps) {
  const float denominator = x + eps;
  return rms / (denominator == 0.0f ? 0x1p-126f : denominator);
}

// A minimum that keeps NaN, as torch.minimum.
SAGE_EXT_HD float nan_min(float a, float b) {
  const float smaller = b < a ? b : a;  // a, unless b is smaller: a NaN in a stays
  return b != b ? b : smaller;
}

// H_j; without `kInstant` the second term of the minimum is left out.
template <bool kInstant>
SAGE_EXT_HD float sage_damper(float s_range, float s, const SageDamper& k) {
  const float slow = sage_ratio(k.rms_s_hat, s_range * k.inv_bias_correction, k.eps);
  if constexpr (!kInstant) return nan_min(slow, 1.0f);
  return nan_min(nan_min(slow, sage_ratio(k.rms_s, s, k.eps)), 1.0f);
}

}  // namespace sage_ext
