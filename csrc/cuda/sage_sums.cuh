#pragma once

#include "cuda/multi_tensor.cuh"
#include "cuda/shared.cuh"
#include "cuda/step_scalars.cuh"

// The first launch of SAGE: partial sums of |g| over blocks of rows.
namespace sage_ext::cuda {

inline constexpr int kSumThreads = static_cast<int>(kColumnThreads);

struct SumEntry {
  const void* grad;
  float* sums;
  unsigned* finished;
  int64_t numel, width, panel_rows;
  int64_t slot_size;  // floats that a block of rows writes in all
  uint32_t tiles, tile_vecs, rows_per_block;
  uint32_t folds;  // rows side by side that the block adds up
};

using SumTable = TensorTable<StepScalars, SumEntry>;

// Where in its panel a thread works: `rows` panel rows from `row` on.
struct PanelPlace {
  int64_t row;
  int rows;
  int64_t column;  // of the panel, where the block's tile starts
  int columns;     // of the tile
};

// Adds up |g| of the columns [v * kVec, (v + 1) * kVec) of the tile, 16 bytes a row.
template <typename G, int kVec>
__device__ __forceinline__ void add_vectors(const G* grad, const SumEntry& t, const PanelPlace& place, int v,
                                            float (&sums)[kVec]) {
  constexpr int kInFlight = 4;
  if (v * kVec >= place.columns) return;
  const int64_t first = place.row * t.width + place.column + v * kVec;
  const int64_t last = first + (place.rows - 1) * t.width;
  // Only the panel's last row can end within a vector, or before it.
  const int64_t left = t.numel - last;
  int full_rows = left < kVec ? place.rows - 1 : place.rows;
  const G* row = grad + first;
  for (; full_rows >= kInFlight; full_rows -= kInFlight) {
    Pack<G, kVec> packs[kInFlight];
    float values[kInFlight][kVec];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) packs[u].load(row + u * t.width);
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) packs[u].unpack(values[u]);
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      sums[e] += (fabsf(values[0][e]) + fabsf(values[1][e])) + (fabsf(values[2][e]) + fabsf(values[3][e]));
    }
    row += kInFlight * t.width;
  }
  Pack<G, kVec> packs[kInFlight - 1];
#pragma unroll
  for (int u = 0; u < kInFlight - 1; ++u) {
    if (u < full_rows) packs[u].load(row + u * t.width);
  }
#pragma unroll
  for (int u = 0; u < kInFlight - 1; ++u) {
    if (u >= full_rows) continue;
    float values[kVec];
    packs[u].unpack(values);
#pragma unroll
    for (int e = 0; e < kVec; ++e) sums[e] += fabsf(values[e]);
  }
  if (left < kVec) {
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      if (e < left) sums[e] += fabsf(to_float(load_one(grad + last + e)));
    }
  }
}

// The same for columns v, v + tile_vecs, ...: a gradient off the 16-byte boundary, read one by one but coalesced.
template <typename G, int kVec>
__device__ __forceinline__ void add_elements(const G* grad, const SumEntry& t, const PanelPlace& place, int v,
                                             float (&sums)[kVec]) {
  const int64_t first = place.row * t.width + place.column + v;
  for (int row = 0; row < place.rows; ++row) {
    const int64_t begin = first + row * t.width;
    G values[kVec];
    const auto exists = [&](int e) {
      const int column = e * static_cast<int>(t.tile_vecs);
      return v + column < place.columns && begin + column < t.numel;
    };
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      if (exists(e)) values[e] = load_one(grad + begin + e * static_cast<int>(t.tile_vecs));
    }
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      if (exists(e)) sums[e] += fabsf(to_float(values[e]));
    }
  }
}

// Adds up `folds` rows of `cols` sums that lie side by side, into the first; as many threads as fit share a column.
__device__ __forceinline__ void fold_sums(float* sums, int folds, int cols) {
  const auto thread = static_cast<int>(threadIdx.x);
  int parts = 1;
  while (2 * parts * cols <= kSumThreads && 2 * parts <= folds) parts *= 2;
  for (int i = thread; i < parts * cols; i += kSumThreads) {
    // No other thread touches these.
    float sum = sums[i];
    for (int j = i + parts * cols; j < folds * cols; j += parts * cols) sum += sums[j];
    sums[i] = sum;
  }
  for (int half = parts / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half * cols) sums[thread] += sums[thread + half * cols];
  }
  __syncthreads();
}

// Launch 1: partial sums of |g| over a block of rows, for a tile of the panel's columns.
template <typename G>
__global__ void __launch_bounds__(kSumThreads) sage_sums_kernel(const __grid_constant__ SumTable table) {
  if (skips_step(table.common)) return;
  const auto [index, tensor_block] = find_tensor(table, blockIdx.x);
  const SumEntry& t = table.tensors[index];
  const auto block = static_cast<uint32_t>(tensor_block);
  const auto thread = static_cast<int>(threadIdx.x);
  if (block == 0 && thread == 0) store_one(t.finished, 0u);

  constexpr int kVec = kVecSize<G>;
  const uint32_t row_block = block / t.tiles;
  const int tile_cols = static_cast<int>(t.tile_vecs) * kVec;
  PanelPlace place;
  place.row = static_cast<int64_t>(row_block) * t.rows_per_block;
  place.column = static_cast<int64_t>(block - row_block * t.tiles) * tile_cols;
  const int64_t rows = t.panel_rows - place.row;
  const int64_t columns = t.width - place.column;
  place.rows = static_cast<int>(rows < t.rows_per_block ? rows : t.rows_per_block);
  place.columns = static_cast<int>(columns < tile_cols ? columns : tile_cols);

  using TileSums = float[kSumThreads * kVec];
  SAGE_EXT_SHARED(TileSums, tile_sums);
  const auto* grad = static_cast<const G*>(t.grad);
  const bool by_vector = is_vec_aligned(grad);
  if (thread < static_cast<int>(t.tile_vecs)) {
    float sums[kVec] = {};
    if (by_vector) {
      add_vectors(grad, t, place, thread, sums);
    } else {
      add_elements(grad, t, place, thread, sums);
    }
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      tile_sums[by_vector ? thread * kVec + e : e * static_cast<int>(t.tile_vecs) + thread] = sums[e];
    }
  }
  __syncthreads();
  int count = place.columns;
  if (t.folds > 1) {
    count = static_cast<int>(t.slot_size);
    fold_sums(tile_sums, static_cast<int>(t.folds), count);
  }
  float* const out = t.sums + row_block * t.slot_size + place.column;
  for (int i = thread; i < count; i += kSumThreads) store_one(out + i, tile_sums[i]);
}

}  // namespace sage_ext::cuda
