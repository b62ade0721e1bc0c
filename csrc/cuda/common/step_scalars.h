#pragma once

// What a training loop may change between two steps without the host looking: one element on the device each,
// or null. Kernels read them, so that a step never waits for the GPU and a captured graph sees new values.
namespace sage_ext::cuda {

struct StepScalars {
  double lr = 0.0;                    // used where lr_tensor is null
  const float* lr_tensor = nullptr;   // takes the place of lr
  const float* grad_scale = nullptr;  // gradients are divided by it on load
  const float* found_inf = nullptr;   // not 0: the step changes nothing
  bool maximize = false;              // negates gradients on load
};

}  // namespace sage_ext::cuda
