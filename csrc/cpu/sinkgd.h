#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "core/dtype.h"
#include "core/launch_plan.h"

namespace sage_ext::cpu {

// One contiguous [rows, cols] matrix with its gradient. A tensor of more dimensions is one of these for every
// trailing matrix. It may be a piece of a matrix that lies on several processes.
struct SinkGDMatrix {
  void* param;
  const void* grad;
  int64_t rows, cols;
  DType param_dtype, grad_dtype;
  WholeSize whole = {};
};

struct SinkGDOptions {
  double lr, alpha, eps, weight_decay;
  int iterations;
  bool unit;           // leave out the factors sqrt(rows) and sqrt(cols)
  double grad_factor;  // multiplies every gradient: 1 / grad_scale, negated to maximize
};

// One SinkGD step over all matrices. The gradient is read once an iteration and never written.
//
// Where there are several matrices a thread, each one is a single thread's from the first iteration to the
// update: no thread waits for another, and the gradient stays in that core's cache if it fits. Matrices that are
// too large a share of the whole for that are cut into blocks of rows and go in waves: as many at a time as the
// threads' caches hold, all iterations and the update of one wave before the next. Blocks, and with them the
// order of every sum, depend on the shape only; waves and threads decide who does what when.
class SinkGDStep {
 public:
  SinkGDStep(std::vector<SinkGDMatrix> matrices, const SinkGDOptions& options);

  void run(int threads);

 private:
  void run_solo(std::vector<SinkGDMatrix> matrices, int threads) const;
  void run_shared(std::span<const SinkGDMatrix> matrices, int threads) const;

  std::vector<SinkGDMatrix> matrices_;
  SinkGDOptions options_;
};

}  // namespace sage_ext::cpu
