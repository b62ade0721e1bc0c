#pragma once

#include <cmath>

#include "core/macros.h"

// What several rules share.
namespace sage_ext {

// The factor of a parameter under decoupled weight decay.
SAGE_EXT_HD float decay_factor(double lr, double weight_decay) { return static_cast<float>(1.0 - lr * weight_decay); }

// 1 - beta^step, for an exponential average that started at zero; `log_beta` is the logarithm of beta.
SAGE_EXT_HD double bias_correction(double log_beta, double step) { return -expm1(step * log_beta); }

}  // namespace sage_ext
