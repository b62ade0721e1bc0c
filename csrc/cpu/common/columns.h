#pragma once

#include <algorithm>
#include <cstdint>

#include "core/launch_plan.h"
#include "cpu/common/map.h"

// The sums of a matrix's columns in two stages, along a ColumnTiling: fp32 partial sums of blocks of rows, each in a
// slot of [row_blocks * fold, cols] floats, which are then added up in fp64.
namespace sage_ext::cpu {

struct ColumnPlans {
  ChunkPlan reduce;   // chunk: row block * tiles + tile
  ChunkPlan columns;  // chunk: range of at most kColumnTile columns

  // Adds the work of a tensor of so many columns. One without rows still has them.
  void add(int64_t tensor, const ColumnTiling& tiling, int64_t cols) {
    for (int64_t unit = 0; unit < tiling.row_blocks * tiling.tiles; ++unit) {
      const int64_t work = std::min(tiling.rows_per_block * std::min(tiling.tile_cols, tiling.width), tiling.numel);
      reduce.add({tensor, unit, unit + 1}, work, kMapChunk);
    }
    for (int64_t begin = 0; begin < cols; begin += kColumnTile) {
      const int64_t end = std::min(begin + kColumnTile, cols);
      columns.add({tensor, begin, end}, (end - begin) * tiling.row_blocks, kMapChunk);
    }
  }
};

// The floats that the slots take, or one for each column where there is no row.
inline int64_t column_floats(const ColumnTiling& tiling, int64_t cols) {
  return std::max(tiling.row_blocks * tiling.width, cols);
}

// What a unit of the reduce plan covers.
struct ColumnBlock {
  int64_t row_begin, row_end;  // panel rows
  int64_t col_begin, col_end;  // panel columns
  int64_t slot_begin;          // where the block's row of sums begins in the slots
};

inline ColumnBlock column_block(const ColumnTiling& t, int64_t unit) {
  const int64_t block = unit / t.tiles;
  const int64_t col_begin = unit % t.tiles * t.tile_cols;
  const int64_t row_begin = block * t.rows_per_block;
  return {row_begin, std::min(row_begin + t.rows_per_block, t.panel_rows), col_begin,
          std::min(col_begin + t.tile_cols, t.width), block * t.width};
}

// totals[j] of the columns [begin, end), at most kColumnTile. The slots come in their fixed order; the last fold of the
// last panel row may be missing, its sums are zero.
inline void add_up_slots(const float* slots, const ColumnTiling& t, int64_t begin, int64_t end, double* totals) {
  const int64_t count = end - begin;
  std::fill_n(totals, count, 0.0);
  for (int64_t slot = 0; slot < t.row_blocks * t.fold; ++slot) {
    const float* const part = slots + slot * t.cols + begin;
    for (int64_t j = 0; j < count; ++j) totals[j] += static_cast<double>(part[j]);
  }
}

}  // namespace sage_ext::cpu
