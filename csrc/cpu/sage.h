#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/dtype.h"
#include "core/launch_plan.h"
#include "core/math/sage.h"
#include "cpu/common/columns.h"

namespace sage_ext::cpu {

// One contiguous parameter seen as [rows, cols] (a 1-D tensor is one row), with its gradient, its momentum of
// the same shape and its s_range [cols]. It may be a piece of a tensor that lies on several processes.
struct SageTensor {
  void* param;
  const void* grad;
  void* exp_avg;
  float* s_range;
  int64_t rows, cols;
  DType param_dtype, grad_dtype, exp_avg_dtype;
  double bias_correction;  // 1 - beta2^t, t counting this step
  WholeSize whole = {};
};

struct SageOptions {
  double lr, beta1, beta2, eps, weight_decay;
  bool momentum_first, instant_damper;
  double grad_factor;  // multiplies every gradient on load: 1 / grad_scale, negated to maximize
};

// One SAGE step over all tensors, pass by pass. Between the passes lives one small fp32 buffer a tensor: the
// column sums, then s, then the step size lr * H of every column.
//
// Pieces go through the same passes. After put_columns() the processes whose pieces have the same columns add up
// `columns`, and after put_squares() those whose pieces have the same rows add up `squares`.
class SageStep {
 public:
  SageStep(std::vector<SageTensor> tensors, const SageOptions& options);

  void run(int threads);

  void sum_columns(int threads);  // partial sums of |g| for every block of rows
  void put_columns(int threads, std::span<const SageSums> sums);
  void average(int threads);                                      // s, the average S, and both root mean squares
  void put_squares(int threads, std::span<const SageSums> sums);  // the same from `columns`, but for the roots
  void take_squares(std::span<const SageSums> sums);              // the roots
  void compute_steps(int threads);                                // lr * H
  void update(int threads);                                       // W and exp_avg

  // Sums over columns of s^2 and of (S / (1 - beta2^t))^2.
  struct Squares {
    double s, s_hat;
  };

 private:
  struct Layout {
    ColumnTiling tiling;
    int64_t sums_begin;     // [row_blocks, width] floats in sums_
    int64_t squares_begin;  // [tiles of the columns] in squares_
    double rms_s, rms_s_hat;
  };
  float* sums(size_t tensor) { return sums_.get() + layouts_[tensor].sums_begin; }
  // Calls body(tensor, first column, totals, count) for all columns, tile by tile.
  template <typename Body>
  void for_column_totals(int threads, const Body& body);
  void average_tile(size_t tensor, int64_t first, const double* totals, int64_t count);
  Squares squares_of(size_t tensor) const;

  std::vector<SageTensor> tensors_;
  SageOptions options_;
  std::vector<Layout> layouts_;
  std::unique_ptr<float[]> sums_;
  std::vector<Squares> squares_;
  ColumnPlans plans_;
  ChunkPlan update_plan_;  // chunk: range of elements
};

}  // namespace sage_ext::cpu
