#pragma once

#include <vector>

#include "alias_problem.h"
#include "cuda/alias.h"
#include "device_scalars.h"
#include "launches.h"

// ALIAS's kernels on the emulator, with the problems and the fp64 results of the CPU tests.
namespace sage_ext::testing {

inline void cuda_alias_step(AliasProblem& problem, const cuda::AliasLoss& loss, const cuda::StepScalars& scalars) {
  const auto tensors = problem.views<cuda::AliasTensor>();
  const int64_t bytes = cuda::alias_workspace_bytes(tensors);
  Buffer workspace(DType::float32, ceil_div(bytes, 4));
  simt::poison(workspace.data(), static_cast<size_t>(bytes));
  cuda::alias_step(tensors, problem.options, loss, scalars, &problem.shared(), workspace.data(), nullptr);
}

// With `as_tensors` learning rate and loss are on the device.
inline void cuda_alias_step(AliasProblem& problem, const AliasInputs& inputs = {}, bool as_tensors = false) {
  const auto loss = static_cast<float>(inputs.loss);
  const cuda::AliasLoss value{inputs.loss, nullptr}, tensor{kNaN, &loss};
  cuda_alias_step(problem, as_tensors ? tensor : value, DeviceScalars(inputs.lr, inputs.grad_factor, as_tensors).get());
}

// Takes one step and compares everything it wrote with fp64.
inline void cuda_step_and_check(AliasProblem& problem, const AliasInputs& inputs = {}, bool as_tensors = false) {
  const AliasExpected expected(problem, inputs);
  cuda_alias_step(problem, inputs, as_tensors);
  expected.check(problem);
}

// Some steps, each with gradients of its own.
inline void cuda_steps_and_check(AliasProblem& problem, int steps, const AliasInputs& inputs = {}) {
  // Other gradients in every call.
  Random random(3 * static_cast<uint64_t>(problem.shared().step) + static_cast<uint64_t>(problem.options.phase));
  for (int step = 1; step <= steps; ++step) {
    SCOPED_TRACE("step " + std::to_string(step));
    problem.fill_grads(random);
    ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problem, inputs));
  }
}

}  // namespace sage_ext::testing
