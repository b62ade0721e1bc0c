#pragma once

#include <vector>

#include "cuda/scale.h"
#include "device_scalars.h"
#include "launches.h"
#include "scale_problem.h"

// SCALE's kernels on the emulator, with the problems and the fp64 results of the CPU tests.
namespace sage_ext::testing {

inline void cuda_scale_step(std::vector<ScaleProblem>& problems, const cpu::ScaleOptions& o,
                            const cuda::StepScalars& scalars) {
  std::vector<cuda::ScaleTensor> tensors;
  for (ScaleProblem& p : problems) {
    tensors.push_back({p.param.data(), p.grad.data(), o.momentum == 0.0 ? nullptr : p.exp_avg.data(), p.matrices,
                       p.rows, p.cols, p.param.dtype(), p.grad.dtype(), p.exp_avg.dtype()});
  }
  const cuda::ScaleOptions options{o.momentum, o.eps, o.weight_decay, o.rms, o.columns};
  const int64_t bytes = cuda::scale_workspace_bytes(tensors, options);
  Buffer workspace(DType::float32, ceil_div(bytes, 4));
  simt::poison(workspace.data(), static_cast<size_t>(bytes));
  cuda::scale_step(tensors, options, scalars, workspace.data(), nullptr);
}

inline void cuda_scale_step(std::vector<ScaleProblem>& problems, const cpu::ScaleOptions& options,
                            bool lr_tensor = false) {
  cuda_scale_step(problems, options, DeviceScalars(options.lr, options.grad_factor, lr_tensor).get());
}

// Takes one step and compares everything it wrote with fp64.
inline void cuda_step_and_check(std::vector<ScaleProblem>& problems, const cpu::ScaleOptions& options,
                                bool lr_tensor = false) {
  std::vector<ScaleExpected> expected;
  for (const ScaleProblem& problem : problems) expected.emplace_back(problem, options);
  cuda_scale_step(problems, options, lr_tensor);
  expect_matches(problems, expected);
}

}  // namespace sage_ext::testing
