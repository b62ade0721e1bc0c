#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/dtype.h"
#include "core/launch_plan.h"
#include "core/math/common.h"
#include "cpu/common/columns.h"

namespace sage_ext::cpu {

// One contiguous [rows, cols] matrix with its gradient and, with momentum, its exp_avg (else null, its dtype not
// looked at). A tensor of more dimensions is one of these for every trailing matrix, or, where rows are normalised, a
// single one of all its rows. It may be a piece of a matrix that lies on several processes.
struct ScaleMatrix {
  void* param;
  const void* grad;
  void* exp_avg;
  int64_t rows, cols;
  DType param_dtype, grad_dtype, exp_avg_dtype;
  WholeSize whole = {};
};

struct ScaleOptions {
  double lr, momentum, eps, weight_decay;
  bool rms;            // else the l2 norm
  bool columns;        // a norm for every column (dim 0), else for every row (dim 1)
  double grad_factor;  // multiplies every gradient on load: 1 / grad_scale, negated to maximize
};

// One SCALE step over all matrices. x is the gradient, or the momentum as it is stored.
//
// Rows: one pass. A row's momentum and sum of squares are taken while the row before it is updated, and its update
// follows while it is in the cache, so the gradient comes from memory once. Columns: partial sums of squares by blocks
// of rows (and the momentum on the way), the norms, the update. Sums are fp32 over stretches that depend on the shape
// only, and fp64 beyond; where an fp32 sum is not safe, it is taken again in fp64.
//
// Pieces whose rows (or columns) are cut leave the sums of squares of theirs with put_sums(); when the processes have
// added them up, update() takes them. The gradient, or the momentum, is read twice then, also for rows.
class ScaleStep {
 public:
  ScaleStep(std::vector<ScaleMatrix> matrices, const ScaleOptions& options);

  void run(int threads);

  // sums[i] is of matrix i, [rows] or [cols].
  void put_sums(int threads, std::span<double* const> sums);
  void update(int threads, std::span<double* const> sums);

  // What kernels need beside the matrix.
  struct Scalars {
    float lr, decay, grad_factor;
    float factor;  // of x on load: grad_factor, or 1 with momentum
    MomentumCoefficients momentum;
  };

 private:
  struct Layout {
    ColumnTiling tiling;
    int64_t sums_begin;  // [row_blocks, width] floats in sums_, whose first row becomes 1 / norm
  };
  float* sums(size_t matrix) { return sums_.get() + layouts_[matrix].sums_begin; }

  void plan_columns();
  void run_rows(int threads);
  // body(index, rows, chunk) for all chunks of rows.
  template <typename Body>
  void for_row_chunks(int threads, const Body& body);
  void sum_columns(int threads);
  // body(index, first column, totals, count) for all columns, tile by tile.
  template <typename Body>
  void for_column_totals(int threads, const Body& body);
  void invert_tile(size_t matrix, int64_t first, const double* totals, int64_t count);
  void update_columns(int threads);

  std::vector<ScaleMatrix> matrices_;
  ScaleOptions options_;
  Scalars scalars_;
  std::vector<Layout> layouts_;
  std::unique_ptr<float[]> sums_;
  ChunkPlan row_plan_;  // chunk: range of rows
  ColumnPlans plans_;
  ChunkPlan update_plan_;  // chunk: range of elements
};

}  // namespace sage_ext::cpu
