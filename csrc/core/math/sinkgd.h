#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"
#include "core/math/common.h"

// SinkGD, arXiv 2502.06742 (SR-Sinkhorn), in scale-vector form: every iterate is diag(row_scale) G
// diag(col_scale), and only the two vectors are kept.
namespace sage_ext {

// The norm that rows (or columns) of `length` entries are brought to.
SAGE_EXT_HD double sinkgd_target(bool unit, int64_t length) {
  return unit ? 1.0 : std::sqrt(static_cast<double>(length));
}

// The new scale of a row (or column) whose entries G_ij * other_scale have the sum of squares `sum_sq`:
// scale * target / (|scale| * sqrt(sum_sq) + eps). A zero row keeps scale 0, so that it stays put and never
// makes a NaN; NaN and infinity go through, as in the eager form.
template <typename Real>
SAGE_EXT_HD Real sinkgd_rescale(Real scale, Real sum_sq, Real target, Real eps) {
  const Real norm = (scale < 0 ? -scale : scale) * std::sqrt(sum_sq);
  if (norm == 0) return 0;
  const Real rescaled = scale * target / (norm + eps);
  // fp32 holds the scales: keep them finite when a row of fp32's smallest numbers is scaled up.
  return rescaled > kMaxScale ? kMaxScale : (rescaled < -kMaxScale ? -kMaxScale : rescaled);
}

// Whether fp32 has room for sinkgd_rescale() of this scale with a sum that is safe.
SAGE_EXT_HD bool sinkgd_scale_is_safe(float scale) {
  const float size = scale < 0.0f ? -scale : scale;
  return size > 1e-15f && size < 1e15f;
}

// `step` is lr * alpha * row_scale, `decay` is 1 - lr * weight_decay.
SAGE_EXT_HD float sinkgd_update(float param, float grad, float step, float col_scale, float decay) {
  return param * decay - step * (grad * col_scale);
}

}  // namespace sage_ext
