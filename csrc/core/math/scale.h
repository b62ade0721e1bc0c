#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"
#include "core/math/common.h"

// SCALE, arXiv 2506.16659: x, which is the gradient or its momentum, over the norm of the row or column it is in.
namespace sage_ext {

// What the sum of squares of `length` entries is multiplied by under the root: the rms norm has their mean.
inline double scale_mean_factor(bool rms, int64_t length) { return rms ? 1.0 / static_cast<double>(length) : 1.0; }

// 1 / max(norm, eps) of a row or column whose entries have this sum of squares. 0 for 0 / 0, so that what is all zero
// stays put without eps too; a NaN stays one.
SAGE_EXT_HD float scale_inverse(double sum_sq, double mean_factor, double eps) {
  const double norm = std::sqrt(sum_sq * mean_factor);
  const double denominator = norm < eps ? eps : norm;
  if (denominator == 0.0) return 0.0f;
  const double inverse = 1.0 / denominator;
  return inverse > static_cast<double>(kMaxScale) ? kMaxScale : static_cast<float>(inverse);
}

// `decay` is 1 - lr * weight_decay. Values are floats or vectors of them.
template <typename Values>
SAGE_EXT_HD Values scale_update(const Values& param, const Values& x, float lr, float inverse, float decay) {
  return param * decay - lr * (x * inverse);
}

}  // namespace sage_ext
