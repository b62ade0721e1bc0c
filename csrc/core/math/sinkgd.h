#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"
#include "core/math/common.h"

// SinkGD, arXiv 2502.06742 (SR-Sinkhorn), in scale-vector form: every iterate is diag(row_scale) G
// diag(col_scale), and only the two vectors are kept.
namespace sage_ext {

// What the processes that have the pieces of a matrix add up, each over its own: sums of squares of the iterate. After
// the first iteration the columns are about as large as each other, and fp32 holds their sums.
struct SinkGDSums {
  double* rows;           // [rows]
  double* first_columns;  // [cols], in the first iteration
  float* columns;         // [cols], in the others
};

// The two normalisations. "unit" takes every norm to 1; its iterate X is held as Y = f X, with a number f that is known
// at every half of an iteration. Any f gives the same X, if eps is f times as large where norms of Y are taken. This f
// keeps the scales where they are: a matrix whose entries all have the same size then is a fixed point of either half.
// With f = 1 the row scales would grow by sqrt(rows / cols) in every iteration, and the column scales shrink by it,
// until fp32 has neither.
struct SinkGDForm {
  bool unit;
  double eps;
};

// What a half of an iteration does to every row (or column): its norm goes to `target`, and `eps` is added to it.
struct SinkGDNorm {
  double target, eps;
};

// The norm that rows (or columns) of `length` entries are brought to, where there are `count` of them; in the unit form
// also f.
SAGE_EXT_HD double sinkgd_target(const SinkGDForm& form, int64_t length, int64_t count) {
  const double target = std::sqrt(static_cast<double>(length));
  if (!form.unit) return target;
  // With an eps of 1 and more nothing is at rest: X itself shrinks, and both scales with it.
  return target + (form.eps < 1.0 ? form.eps : 1.0) * std::sqrt(static_cast<double>(count));
}

// Of the rows. Before the first iteration f is 1.
SAGE_EXT_HD SinkGDNorm sinkgd_row_norm(const SinkGDForm& form, int64_t rows, int64_t cols, bool is_first) {
  const double f = form.unit && !is_first ? sinkgd_target(form, rows, cols) : 1.0;
  return {sinkgd_target(form, cols, rows), form.eps * f};
}

// Of the columns. The last iteration ends with X itself.
SAGE_EXT_HD SinkGDNorm sinkgd_col_norm(const SinkGDForm& form, int64_t rows, int64_t cols, bool is_last) {
  if (!form.unit) return {sinkgd_target(form, rows, cols), form.eps};
  return {is_last ? 1.0 : sinkgd_target(form, rows, cols), form.eps * sinkgd_target(form, cols, rows)};
}

// The new scale of a row (or column) of this norm: scale * target / (norm + eps). A zero row keeps scale 0, so that it
// stays put and never makes a NaN; NaN and infinity go through, as in the eager form.
template <typename Real>
SAGE_EXT_HD Real sinkgd_rescale_by(Real norm, Real scale, Real target, Real eps) {
  if (norm == 0) return 0;
  const Real rescaled = scale * target / (norm + eps);
  // fp32 holds the scales: keep them finite when a row of fp32's smallest numbers is scaled up.
  return rescaled > kMaxScale ? kMaxScale : (rescaled < -kMaxScale ? -kMaxScale : rescaled);
}

// The same where the entries G_ij * other_scale have the sum of squares `sum_sq`.
template <typename Real>
SAGE_EXT_HD Real sinkgd_rescale(Real scale, Real sum_sq, Real target, Real eps) {
  return sinkgd_rescale_by((scale < 0 ? -scale : scale) * std::sqrt(sum_sq), scale, target, eps);
}

// Whether fp32 has room for sinkgd_rescale() of this scale with a sum that is safe.
SAGE_EXT_HD bool sinkgd_scale_is_safe(float scale) {
  const float size = scale < 0.0f ? -scale : scale;
  return size > 1e-15f && size < 1e15f;
}

// `step` is lr * alpha * row_scale, `decay` is 1 - lr * weight_decay.
SAGE_EXT_HD float sinkgd_change(float grad, float step, float col_scale) { return step * (grad * col_scale); }
SAGE_EXT_HD float sinkgd_moved(float param, float change, float decay) { return param * decay - change; }
SAGE_EXT_HD float sinkgd_update(float param, float grad, float step, float col_scale, float decay) {
  return sinkgd_moved(param, sinkgd_change(grad, step, col_scale), decay);
}

}  // namespace sage_ext
