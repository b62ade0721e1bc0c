#pragma once

#include "core/launch_plan.h"
#include "cuda/common/shared.cuh"
#include "cuda/common/vec128.cuh"

// Sums over the columns of a matrix in two launches. Here the second: adds up what column_sums.cuh left in the slots.
namespace sage_ext::cuda {

inline constexpr int kSlotThreads = static_cast<int>(kColumnThreads);

// Partial sums of the columns: [slots, cols].
struct ColumnSlots {
  const float* sums;
  int64_t slots, cols;
};

// The sum of a column's slots `part`, part + split, ...
__device__ __forceinline__ double sum_slots(const ColumnSlots& t, int64_t column, int part, int split) {
  constexpr int kInFlight = 8;
  const float* const sums = t.sums + column;
  double total = 0.0;
  for (int64_t slot = part; slot < t.slots; slot += kInFlight * split) {
    float values[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      values[u] = slot + u * split < t.slots ? load_one(sums + (slot + u * split) * t.cols) : 0.0f;
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) total += static_cast<double>(values[u]);
  }
  return total;
}

// Calls body(column, total) in one thread for every column of this block, which has `block_cols` of them, a power of
// two. The column's slots may be overwritten then. All threads of the block call it.
template <typename Body>
__device__ __forceinline__ void for_column_totals(const ColumnSlots& t, int64_t block, int block_cols,
                                                  const Body& body) {
  using Totals = double[kSlotThreads];
  SAGE_EXT_SHARED(Totals, totals);
  const auto thread = static_cast<int>(threadIdx.x);
  const int stride = block_cols < kSlotThreads ? block_cols : kSlotThreads;
  const int split = kSlotThreads / stride;  // threads of a column
  const int part = thread / stride;
  for (int i = thread - part * stride; i < block_cols; i += stride) {
    const int64_t column = block * block_cols + i;
    const bool exists = column < t.cols;
    double total = exists ? sum_slots(t, column, part, split) : 0.0;
    if (split > 1) {  // then this loop has one round
      totals[thread] = total;
      for (int half = split / 2; half > 0; half /= 2) {
        __syncthreads();
        if (part < half) totals[thread] += totals[thread + half * stride];
      }
      total = totals[thread];
    }
    if (exists && part == 0) body(column, total);
  }
}

}  // namespace sage_ext::cuda
