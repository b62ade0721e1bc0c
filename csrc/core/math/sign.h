#pragma once

#include "core/macros.h"
#include "core/math/common.h"

// Sign rules. Lion: Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv 2302.06675. Sign-SGD and
// Signum: Bernstein et al., "signSGD: Compressed Optimisation for Non-Convex Problems", arXiv 1802.04434.
namespace sage_ext {

// sign(0) = 0 and sign(NaN) = 0, as torch.sign.
SAGE_EXT_HD float sign_of(float x) { return static_cast<float>(x > 0.0f) - static_cast<float>(x < 0.0f); }

struct LionCoefficients {
  float decay;                              // 1 - lr * weight_decay
  float direction_exp_avg, direction_grad;  // the sign is taken of direction_exp_avg * m + direction_grad * g
  float exp_avg_decay, exp_avg_grad;        // m <- exp_avg_decay * m + exp_avg_grad * g
};

// b1 * m + (1 - b1) * g with the old m; `momentum_first` forms the sign from the new m instead, which is
// b1 * (b2 * m + (1 - b2) * g) + (1 - b1) * g: the same expression with other coefficients.
inline LionCoefficients lion_coefficients(double lr, double beta1, double beta2, double weight_decay,
                                          bool momentum_first) {
  const double direction = momentum_first ? beta1 * beta2 : beta1;
  return {decay_factor(lr, weight_decay), static_cast<float>(direction), static_cast<float>(1.0 - direction),
          static_cast<float>(beta2), static_cast<float>(1.0 - beta2)};
}

// One element of Lion with step size `step` (lr), and of SAGE, whose step is lr times the damper.
SAGE_EXT_HD void lion_update(float& param, float& exp_avg, float grad, float step, const LionCoefficients& k) {
  const float direction = k.direction_exp_avg * exp_avg + k.direction_grad * grad;
  param = param * k.decay - step * sign_of(direction);
  exp_avg = k.exp_avg_decay * exp_avg + k.exp_avg_grad * grad;
}

// W <- W * decay - step * sign; of one element, or of a vector of them.
template <typename Value>
SAGE_EXT_HD void step_by_sign(Value& param, const Value& sign, float step, float decay) {
  param = param * decay - step * sign;
}

// One element of Sign-SGD; `decay` is 1 - lr * weight_decay.
SAGE_EXT_HD void sign_sgd_update(float& param, float grad, float step, float decay) {
  step_by_sign(param, sign_of(grad), step, decay);
}

struct SignumCoefficients {
  float decay;  // 1 - lr * weight_decay
  MomentumCoefficients momentum;
};

inline SignumCoefficients signum_coefficients(double lr, double momentum, double weight_decay) {
  return {decay_factor(lr, weight_decay), momentum_coefficients(momentum)};
}

// One element of Signum, which is Sign-SGD with momentum: the sign of the new m, as it is before the store rounds it.
SAGE_EXT_HD void signum_update(float& param, float& exp_avg, float grad, float step, const SignumCoefficients& k) {
  exp_avg = momentum_update(exp_avg, grad, k.momentum);
  sign_sgd_update(param, exp_avg, step, k.decay);
}

}  // namespace sage_ext
