#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"
#include "core/math/common.h"

// ALIAS, arXiv 2506.03725: Sign-SGD that finds its own step size gamma = sqrt(d / eta). eta estimates the smoothness
// from how much the gradient changes over a step, d the distance of the loss to its minimum. Elements move as in
// sign.h's sign_sgd_update(), with gamma in lr's place.
namespace sage_ext {

// What all tensors of a parameter group share: an fp64 tensor of the optimizer's state.
struct AliasScalars {
  double step;          // steps done
  double eta;           // never falls
  double d;             // never falls
  double gap;           // descent: the sum of gamma * <g_t, sign(g_{t-1})>, of which d is the largest so far
  double step_size;     // gamma of the last step
  double grad_max;      // of the gradient that was last recorded; in the form "sum" its 1-norm
  double grad_min;      // in the form "sum" 0
  double displacement;  // of the parameters in the last step: the sum (extrema) or maximum of |dW|
  double grad_factor;   // of the recorded gradient in the base form, which is kept as it came
};

inline constexpr int64_t kAliasScalars = sizeof(AliasScalars) / sizeof(double);

// What a call does. `step` is the whole; with same_batch it is two calls, with the gradient taken anew between them.
enum class AliasPhase : uint8_t {
  step,    // refresh eta and d from this gradient and the last one, record this one, move
  move,    // record this gradient, move
  refresh  // refresh eta and d from this gradient and the recorded one
};

// What eta grows by in a step, and what of the last gradient it takes to know that. All but base are memory-efficient.
enum class AliasForm : uint8_t {
  base,     // ||g - p||_1 / ||dW||_inf: the gradient
  extrema,  // a bound of ||g - p||_inf over ||dW||_1: its largest and smallest element
  sum       // (||g||_1 + ||p||_1) / ||dW||_inf, a bound of the base form's: its 1-norm
};

struct AliasOptions {
  AliasForm form;
  bool descent;  // the gap proxy: descent, or the lower bound
  double lower_bound, max_step, weight_decay;
  int64_t warmup_steps, update_every;
  AliasPhase phase;
};

// What is kept of the gradient: all of it, or its signs, or nothing but numbers.
SAGE_EXT_HD bool alias_keeps_grads(const AliasOptions& o) { return o.form == AliasForm::base; }
SAGE_EXT_HD bool alias_keeps_signs(const AliasOptions& o) { return o.form != AliasForm::base && o.descent; }

// Whether the displacement is the sum of |dW|, or the maximum.
SAGE_EXT_HD bool alias_adds_distances(const AliasOptions& o) { return o.form == AliasForm::extrema; }

// Sums over all elements of a gradient g and the one before it, p. A form fills in what it needs.
struct AliasObservation {
  double grad_max, grad_min;  // extrema
  double inner;               // descent: <g, sign(p)>
  double norm;                // the 1-norm: in base of g - p, in sum of g
};

// The number of the step that this call is about, from 1.
SAGE_EXT_HD double alias_step(const AliasScalars& s, const AliasOptions& o) {
  return o.phase == AliasPhase::refresh ? s.step : s.step + 1.0;
}

// Whether eta and d are brought up to date: in step 2, the first with a gradient before it, and every `update_every`
// steps from there.
SAGE_EXT_HD bool alias_refreshes(double step, const AliasOptions& o) {
  if (o.phase != AliasPhase::step) return o.phase == AliasPhase::refresh;
  return step >= 2.0 && (static_cast<int64_t>(step) - 2) % o.update_every == 0;
}

// Whether the gradient is recorded: before every step that refreshes.
SAGE_EXT_HD bool alias_records(double step, const AliasOptions& o) {
  if (o.phase != AliasPhase::step) return o.phase == AliasPhase::move;
  return (static_cast<int64_t>(step) - 1) % o.update_every == 0;
}

// Whether the gradient has to be looked at before the parameters can move.
SAGE_EXT_HD bool alias_observes(double step, const AliasOptions& o) {
  return alias_refreshes(step, o) || alias_records(step, o);
}

// What eta grows by, times the displacement. The extrema bound the largest difference of any element, the sum of the
// 1-norms that of the difference.
SAGE_EXT_HD double alias_change(const AliasScalars& s, const AliasObservation& seen, const AliasOptions& o) {
  if (o.form == AliasForm::base) return seen.norm;
  if (o.form == AliasForm::sum) return seen.norm + s.grad_max;
  return keep_nan_max(fabs(seen.grad_max - s.grad_min), fabs(s.grad_max - seen.grad_min));
}

SAGE_EXT_HD double alias_step_size(const AliasScalars& s, double lr, const AliasOptions& o) {
  const double found = s.eta == 0.0 ? o.max_step : sqrt(s.d / s.eta);
  return keep_nan_min(s.step <= static_cast<double>(o.warmup_steps) ? lr : found, o.max_step);
}

// Between looking at the gradient and moving the parameters. `lr` is for warm-up; `loss` is looked at in the first
// step, and only if the gap is the one to the lower bound.
SAGE_EXT_HD void alias_advance(AliasScalars& s, const AliasObservation& seen, double lr, double loss,
                               double grad_factor, const AliasOptions& o) {
  const double step = alias_step(s, o);
  if (alias_refreshes(step, o)) {
    // If nothing moved, the change says nothing about the smoothness.
    if (s.displacement != 0.0) s.eta += alias_change(s, seen, o) / s.displacement;
    if (o.descent) {
      s.gap += s.step_size * seen.inner;
      s.d = keep_nan_max(s.gap, s.d);
    }
  }
  if (alias_records(step, o)) {
    s.grad_max = o.form == AliasForm::sum ? seen.norm : seen.grad_max;
    s.grad_min = seen.grad_min;
    s.grad_factor = grad_factor;
  }
  if (o.phase == AliasPhase::refresh) return;
  s.step = step;
  if (!o.descent && step == 1.0) s.d = keep_nan_max(loss - o.lower_bound, 0.0);
  s.step_size = alias_step_size(s, lr, o);
}

}  // namespace sage_ext
