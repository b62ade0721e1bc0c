#pragma once

#include "core/launch_plan.h"
#include "cuda/common/shared.cuh"
#include "cuda/common/vec128.cuh"

// Sums over the columns of a matrix in two launches. Here the first: partial sums over a block of rows, for a tile of
// the columns, of what a source makes of the elements.
namespace sage_ext::cuda {

inline constexpr int kSumThreads = static_cast<int>(kColumnThreads);

// A matrix as plan_column_blocks() cuts it.
struct ColumnPanel {
  int64_t numel, width, panel_rows;
  int64_t slot_size;  // floats that a block of rows writes in all
  uint32_t tiles, tile_vecs, rows_per_block;
  uint32_t folds;  // rows side by side that the block adds up
};

inline ColumnPanel column_panel(const ColumnBlocks& p, int64_t rows, int64_t cols) {
  return {rows * cols,
          p.width,
          p.panel_rows,
          p.folds_in_block ? cols : p.width,
          static_cast<uint32_t>(p.tiles),
          static_cast<uint32_t>(p.tile_vecs),
          static_cast<uint32_t>(p.rows_per_block),
          p.folds_in_block ? static_cast<uint32_t>(p.fold) : 1u};
}

// Where in its panel a thread works: `rows` panel rows from `row` on.
struct PanelPlace {
  int64_t row;
  int rows;
  int64_t column;  // of the panel, where the block's tile starts
  int columns;     // of the tile
};

// A source has kVec elements in a vector, says whether the matrix is `aligned` for vectors, and has
//   load(u, i), terms(u, i, terms)    for elements [i, i + kVec), kept in slot u < kRowsInFlight until they are used;
//   load_one(e, i), term_one(e, i)    for element i alone, in slot e < kVec;
// where a term is what is added up for an element.
inline constexpr int kRowsInFlight = 4;

// Adds up the terms of the columns [v * kVec, (v + 1) * kVec) of the tile, a vector a row.
template <typename Source>
__device__ __forceinline__ void add_vectors(Source& source, const ColumnPanel& t, const PanelPlace& place, int v,
                                            float (&sums)[Source::kVec]) {
  constexpr int kVec = Source::kVec;
  if (v * kVec >= place.columns) return;
  int64_t at = place.row * t.width + place.column + v * kVec;
  const int64_t last = at + (place.rows - 1) * t.width;
  // Only the panel's last row can end within a vector, or before it.
  const int64_t left = t.numel - last;
  int full_rows = left < kVec ? place.rows - 1 : place.rows;
  for (; full_rows >= kRowsInFlight; full_rows -= kRowsInFlight) {
    float terms[kRowsInFlight][kVec];
#pragma unroll
    for (int u = 0; u < kRowsInFlight; ++u) source.load(u, at + u * t.width);
#pragma unroll
    for (int u = 0; u < kRowsInFlight; ++u) source.terms(u, at + u * t.width, terms[u]);
#pragma unroll
    for (int e = 0; e < kVec; ++e) sums[e] += (terms[0][e] + terms[1][e]) + (terms[2][e] + terms[3][e]);
    at += kRowsInFlight * t.width;
  }
#pragma unroll
  for (int u = 0; u < kRowsInFlight - 1; ++u) {
    if (u < full_rows) source.load(u, at + u * t.width);
  }
#pragma unroll
  for (int u = 0; u < kRowsInFlight - 1; ++u) {
    if (u >= full_rows) continue;
    float terms[kVec];
    source.terms(u, at + u * t.width, terms);
#pragma unroll
    for (int e = 0; e < kVec; ++e) sums[e] += terms[e];
  }
  if (left < kVec) {
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      if (e >= left) continue;
      source.load_one(e, last + e);
      sums[e] += source.term_one(e, last + e);
    }
  }
}

// The same for columns v, v + tile_vecs, ...: a matrix off the boundary, read one by one but coalesced.
template <typename Source>
__device__ __forceinline__ void add_elements(Source& source, const ColumnPanel& t, const PanelPlace& place, int v,
                                             float (&sums)[Source::kVec]) {
  const int64_t first = place.row * t.width + place.column + v;
  for (int row = 0; row < place.rows; ++row) {
    const int64_t begin = first + row * t.width;
    const auto exists = [&](int e) {
      const int column = e * static_cast<int>(t.tile_vecs);
      return v + column < place.columns && begin + column < t.numel;
    };
#pragma unroll
    for (int e = 0; e < Source::kVec; ++e) {
      if (exists(e)) source.load_one(e, begin + e * static_cast<int>(t.tile_vecs));
    }
#pragma unroll
    for (int e = 0; e < Source::kVec; ++e) {
      if (exists(e)) sums[e] += source.term_one(e, begin + e * static_cast<int>(t.tile_vecs));
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

// The sums of one of the matrix's row_blocks * tiles blocks, into their slot of `sums`.
template <typename Source>
__device__ __forceinline__ void sum_columns(Source& source, const ColumnPanel& t, uint32_t block,
                                            float* sums_of_slots) {
  constexpr int kVec = Source::kVec;
  const auto thread = static_cast<int>(threadIdx.x);
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
  if (thread < static_cast<int>(t.tile_vecs)) {
    float sums[kVec] = {};
    if (source.aligned) {
      add_vectors(source, t, place, thread, sums);
    } else {
      add_elements(source, t, place, thread, sums);
    }
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      tile_sums[source.aligned ? thread * kVec + e : e * static_cast<int>(t.tile_vecs) + thread] = sums[e];
    }
  }
  __syncthreads();
  int count = place.columns;
  if (t.folds > 1) {
    count = static_cast<int>(t.slot_size);
    fold_sums(tile_sums, static_cast<int>(t.folds), count);
  }
  float* const out = sums_of_slots + row_block * t.slot_size + place.column;
  for (int i = thread; i < count; i += kSumThreads) store_one(out + i, tile_sums[i]);
}

}  // namespace sage_ext::cuda
