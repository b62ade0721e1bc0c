#pragma once

#include <span>
#include <string>
#include <vector>

#include "cuda/sage.h"
#include "device_scalars.h"
#include "sage_problem.h"
#include "simt/simt.h"

// SAGE's kernels on the emulator, with the problems and the fp64 results of the CPU tests. Options are the CPU's as
// well: what a GPU reads from the device comes from them.
namespace sage_ext::testing {

inline cuda::SageOptions cuda_options(const cpu::SageOptions& o) {
  return {o.beta1, o.beta2, o.eps, o.weight_decay, o.momentum_first, o.instant_damper};
}

// One step on the emulator; `counters` are the problems' step counters.
inline void cuda_sage_step(std::vector<SageProblem>& problems, const cpu::SageOptions& options,
                           const cuda::StepScalars& scalars, Buffer& counters) {
  std::vector<cuda::SageTensor> tensors;
  for (size_t i = 0; i < problems.size(); ++i) {
    SageProblem& p = problems[i];
    tensors.push_back({p.param.data(), p.grad.data(), p.exp_avg.data(), p.s_range.floats(), counters.floats() + i,
                       p.rows, p.cols, p.param.dtype(), p.grad.dtype(), p.exp_avg.dtype()});
  }
  const int64_t bytes = cuda::sage_workspace_bytes(tensors);
  Buffer workspace(DType::float32, ceil_div(bytes, 4));
  simt::poison(workspace.data(), static_cast<size_t>(bytes));
  cuda::sage_step(tensors, cuda_options(options), scalars, workspace.data(), nullptr);
}

// The same with the counters of the problems, which have to advance by one.
inline void cuda_sage_step(std::vector<SageProblem>& problems, const cpu::SageOptions& options,
                           bool lr_tensor = false) {
  Buffer counters(DType::float32, static_cast<int64_t>(problems.size()));
  for (size_t i = 0; i < problems.size(); ++i) counters.set(static_cast<int64_t>(i), problems[i].step - 1);
  cuda_sage_step(problems, options, DeviceScalars(options.lr, options.grad_factor, lr_tensor).get(), counters);
  for (size_t i = 0; i < problems.size(); ++i) {
    ASSERT_EQ(counters[static_cast<int64_t>(i)], problems[i].step) << "tensor " << i;
  }
}

// Takes one step and compares everything it wrote with fp64.
inline void cuda_step_and_check(std::vector<SageProblem>& problems, const cpu::SageOptions& options,
                                bool lr_tensor = false) {
  std::vector<SageExpected> expected;
  for (SageProblem& problem : problems) {
    ++problem.step;
    expected.emplace_back(problem, options);
  }
  ASSERT_NO_FATAL_FAILURE(cuda_sage_step(problems, options, lr_tensor));
  expect_matches(problems, expected);
}

}  // namespace sage_ext::testing
