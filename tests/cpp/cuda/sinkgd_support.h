#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "core/launch_plan.h"
#include "cuda/sinkgd.h"
#include "device_scalars.h"
#include "launches.h"
#include "simt/simt.h"
#include "sinkgd_problem.h"

// SinkGD's kernels on the emulator, with the problems and the fp64 results of the CPU tests.
namespace sage_ext::testing {

inline cuda::SinkGDOptions cuda_options(const cpu::SinkGDOptions& o) {
  return {o.alpha, o.eps, o.weight_decay, o.iterations, o.unit};
}

inline std::vector<cuda::SinkGDTensor> cuda_tensors(std::vector<SinkGDProblem>& problems) {
  std::vector<cuda::SinkGDTensor> tensors;
  for (SinkGDProblem& p : problems) {
    tensors.push_back({p.param.data(), p.grad.data(), 1, p.rows, p.cols, p.param.dtype(), p.grad.dtype()});
  }
  return tensors;
}

inline void cuda_sinkgd_step(const std::vector<cuda::SinkGDTensor>& tensors, const cpu::SinkGDOptions& options,
                             const cuda::StepScalars& scalars) {
  const int64_t bytes = cuda::sinkgd_workspace_bytes(tensors);
  Buffer workspace(DType::float32, ceil_div(bytes, 4));
  simt::poison(workspace.data(), static_cast<size_t>(bytes));
  cuda::sinkgd_step(tensors, cuda_options(options), scalars, workspace.data(), nullptr);
}

inline void cuda_sinkgd_step(std::vector<SinkGDProblem>& problems, const cpu::SinkGDOptions& options,
                             bool lr_tensor = false) {
  cuda_sinkgd_step(cuda_tensors(problems), options, DeviceScalars(options.lr, options.grad_factor, lr_tensor).get());
}

inline void cuda_step_and_check(std::vector<SinkGDProblem>& problems, const cpu::SinkGDOptions& options,
                                bool lr_tensor = false) {
  std::vector<Expected> expected;
  std::vector<std::vector<std::byte>> grads;
  for (const SinkGDProblem& problem : problems) {
    expected.push_back(sinkgd_expected(problem, options));
    grads.push_back(problem.grad.bytes());
  }
  cuda_sinkgd_step(problems, options, lr_tensor);
  for (size_t i = 0; i < problems.size(); ++i) {
    SCOPED_TRACE("matrix " + std::to_string(i) + ", " + describe(Shape{problems[i].rows, problems[i].cols}));
    ASSERT_TRUE(matches(problems[i].param, expected[i]));
    ASSERT_EQ(problems[i].grad.bytes(), grads[i]) << "the gradient is only read";
  }
}

// How the launcher cuts matrices whose gradients share a dtype.
struct SinkGDPlans {
  int32_t threads = kSinkhornThreads;
  std::vector<bool> aligned;  // rows start on 16-byte boundaries
  std::vector<SinkhornPlan> plans;

  explicit SinkGDPlans(const std::vector<cuda::SinkGDTensor>& tensors) {
    const int64_t vec = 16 / itemsize(tensors[0].grad_dtype);
    int64_t total = 0;
    for (const cuda::SinkGDTensor& t : tensors) {
      total += t.matrices * t.rows * t.cols;
      aligned.push_back(reinterpret_cast<uintptr_t>(t.grad) % 16 == 0 && t.cols % vec == 0);
      threads = std::max(threads, sinkhorn_threads(t.cols, vec, aligned.back()));
    }
    for (size_t i = 0; i < tensors.size(); ++i) {
      plans.push_back(plan_sinkhorn(tensors[i].rows, tensors[i].cols, vec, aligned[i], threads, total));
    }
  }
};

}  // namespace sage_ext::testing
