#pragma once

#include <cmath>

#include "cuda/common/step_scalars.h"
#include "support.h"

namespace sage_ext::testing {

// The scalars of a step, on the "device" where a tensor holds them. `grad_factor` is what the CPU's options call so:
// 1 / grad_scale, negated to maximize.
class DeviceScalars {
 public:
  explicit DeviceScalars(double lr, double grad_factor = 1.0, bool lr_tensor = false, float found_inf = 0.0f)
      : lr_(static_cast<float>(lr)),
        grad_scale_(static_cast<float>(1.0 / std::abs(grad_factor))),
        found_inf_(found_inf) {
    scalars_.lr = lr_tensor ? kNaN : lr;  // must not be used then
    scalars_.lr_tensor = lr_tensor ? &lr_ : nullptr;
    scalars_.grad_scale = grad_scale_ == 1.0f ? nullptr : &grad_scale_;
    scalars_.found_inf = &found_inf_;
    scalars_.maximize = grad_factor < 0;
  }
  DeviceScalars(const DeviceScalars&) = delete;
  DeviceScalars& operator=(const DeviceScalars&) = delete;

  const cuda::StepScalars& get() const { return scalars_; }

 private:
  float lr_, grad_scale_, found_inf_;
  cuda::StepScalars scalars_;
};

}  // namespace sage_ext::testing
