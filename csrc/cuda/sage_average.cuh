#pragma once

#include "core/math/sage.h"
#include "cuda/common/column_slots.cuh"
#include "cuda/common/elements.cuh"
#include "cuda/common/multi_tensor.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/step_scalars.cuh"

// The second launch of SAGE: from partial sums of |g| to the step size of every column.
namespace sage_ext::cuda {

inline constexpr int kAverageThreads = kSlotThreads;
static_assert(kAverageThreads == kMapThreads);

// Sums over columns of s^2 and of (S / (1 - beta2^t))^2.
struct Squares {
  double s, s_hat;
};

struct AverageEntry {
  float* sums;
  float* s_range;
  float* step;
  unsigned* finished;
  Squares* squares;  // one for each block
  int64_t rows, cols, slots;
  uint32_t blocks, block_cols;
};

struct AverageCommon {
  double beta2, log_beta2;
  float eps;
  bool instant_damper;
  StepScalars scalars;
};

using AverageTable = TensorTable<AverageCommon, AverageEntry>;

struct AverageScalars {
  float step;
  double mean_factor, inv_correction;
};

// s and the average S of the block's columns; their sums of squares, of which thread 0 has all.
__device__ __forceinline__ Squares average_columns(const AverageEntry& t, int64_t block, double beta2,
                                                   const AverageScalars& k) {
  double squares[2] = {0.0, 0.0};
  for_column_totals({t.sums, t.slots, t.cols}, block, static_cast<int>(t.block_cols),
                    [&](int64_t column, double total) {
                      const double s = total * k.mean_factor;
                      const double average = sage_ema(static_cast<double>(load_one(t.s_range + column)), s, beta2);
                      const double s_hat = average * k.inv_correction;
                      store_one(t.s_range + column, static_cast<float>(average));
                      store_one(t.sums + column, static_cast<float>(s));
                      squares[0] += s * s;
                      squares[1] += s_hat * s_hat;
                    });
  block_sum<kAverageThreads>(squares);
  return {squares[0], squares[1]};
}

// Adds up what all blocks left in `squares`.
__device__ __forceinline__ Squares add_squares_of_blocks(const AverageEntry& t) {
  double total[2] = {0.0, 0.0};
  for (uint32_t i = threadIdx.x; i < t.blocks; i += kAverageThreads) {
    total[0] += load_one(&t.squares[i].s);
    total[1] += load_one(&t.squares[i].s_hat);
  }
  block_sum<kAverageThreads>(total);
  return {total[0], total[1]};
}

// Turns s into lr * H in all columns; `total` is over `cols` columns, of which this process may have some.
__device__ __forceinline__ void write_steps(const AverageEntry& t, const AverageCommon& common, double inv_correction,
                                            const Squares& total, int64_t cols) {
  const SageDamper damper{static_cast<float>(root_mean_square(total.s, cols)),
                          static_cast<float>(root_mean_square(total.s_hat, cols)), static_cast<float>(inv_correction),
                          common.eps};
  const auto lr = static_cast<float>(learning_rate(common.scalars));
  constexpr int kN = kGroupSize<float>;
  constexpr int kU = 4;
  constexpr int64_t kRange = int64_t{1} << 30;  // a range's places are 32-bit
  for (int64_t begin = 0; begin < t.cols; begin += kRange) {
    const int64_t left = t.cols - begin;
    update_elements<kN, kU>(
        BlockElements{begin, static_cast<int>(left < kRange ? left : kRange), 0},
        [&](float& s, float s_range) {
          s = lr *
              (common.instant_damper ? sage_damper<true>(s_range, s, damper) : sage_damper<false>(s_range, s, damper));
        },
        ArrayOperand<float, kN, kU>(t.sums + begin), ArrayOperand<const float, kN, kU>(t.s_range + begin));
  }
}

// The step that the counter is about to reach, and what comes of it.
__device__ __forceinline__ AverageScalars average_scalars(const AverageEntry& t, const AverageCommon& common) {
  const float step = load_uniform(t.step) + 1.0f;
  return {step, fabs(static_cast<double>(grad_factor(common.scalars))) / static_cast<double>(t.rows),
          1.0 / bias_correction(common.log_beta2, step)};
}

// Launch 2: adds up the slots, averages, and gives every column its step.
__global__ void __launch_bounds__(kAverageThreads, 2) sage_average_kernel(const AverageTable __grid_constant__ table) {
  const AverageCommon& common = table.common;
  if (skips_step(common.scalars)) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const AverageEntry& t = table.tensors[index];
  SAGE_EXT_SHARED(AverageScalars, shared_scalars);
  if (threadIdx.x == 0) {  // fp64 functions: once a block is enough
    shared_scalars = average_scalars(t, common);
    // An empty parameter has one block, and only steps.
    if (t.slots == 0) store_one(t.step, shared_scalars.step);
  }
  if (t.slots == 0) return;
  __syncthreads();
  const AverageScalars k = shared_scalars;

  const Squares squares = average_columns(t, block, common.beta2, k);
  if (threadIdx.x == 0) {
    store_one(&t.squares[block].s, squares.s);
    store_one(&t.squares[block].s_hat, squares.s_hat);
  }
  // The barriers of the sum are behind all threads' stores of their columns.
  if (!is_last_block(t.finished, t.blocks)) return;
  write_steps(t, common, k.inv_correction, add_squares_of_blocks(t), t.cols);
  // Every block has read the counter before it reported.
  if (threadIdx.x == 0) store_one(t.step, k.step);
}

}  // namespace sage_ext::cuda
