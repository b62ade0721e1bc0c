#include "core/launch_plan.h"

#include <algorithm>

namespace sage_ext {

namespace {

constexpr int64_t kMinWidth = 256;                  // columns below which rows are folded
constexpr int64_t kReduceBlock = int64_t{1} << 16;  // elements of one block of a column reduction
constexpr int64_t kMaxRowBlocks = 256;              // bounds the partial sums to 256 rows
constexpr int64_t kSinkhornBlock = 49152;           // elements of one block of the row-and-column pass
constexpr int64_t kSinkhornRows = 64;               // rows over which its partial sums are amortised
constexpr int64_t kMaxSinkhornRows = 256;           // fp32 additions before a column's sum moves on to fp64

int64_t round_up(int64_t value, int64_t multiple) { return ceil_div(value, multiple) * multiple; }

}  // namespace

void ChunkPlan::add(const Chunk& chunk, int64_t work, int64_t work_per_task) {
  if (chunks_.empty() || last_task_work_ >= work_per_task) {
    task_begin_.push_back(static_cast<int64_t>(chunks_.size()));
    last_task_work_ = 0;
  }
  chunks_.push_back(chunk);
  task_begin_.back() = static_cast<int64_t>(chunks_.size());
  last_task_work_ += work;
}

std::span<const Chunk> ChunkPlan::task(int64_t index) const {
  const auto begin = static_cast<size_t>(task_begin_[static_cast<size_t>(index)]);
  const auto end = static_cast<size_t>(task_begin_[static_cast<size_t>(index) + 1]);
  return std::span<const Chunk>(chunks_).subspan(begin, end - begin);
}

ChunkPlan plan_chunks(std::span<const int64_t> sizes, int64_t chunk) {
  ChunkPlan plan;
  for (size_t i = 0; i < sizes.size(); ++i) {
    for (int64_t begin = 0; begin < sizes[i]; begin += chunk) {
      const int64_t end = std::min(begin + chunk, sizes[i]);
      plan.add({static_cast<int64_t>(i), begin, end}, end - begin, chunk);
    }
  }
  return plan;
}

ColumnTiling tile_columns(int64_t rows, int64_t cols) {
  ColumnTiling t{};
  t.numel = rows * cols;
  t.cols = cols;
  if (t.numel == 0) return t;
  t.fold = cols >= kMinWidth ? 1 : std::min(rows, ceil_div(kMinWidth, cols));
  t.width = cols * t.fold;
  t.panel_rows = ceil_div(t.numel, t.width);
  t.rows_per_block = std::max(ceil_div(kReduceBlock, t.width), ceil_div(t.panel_rows, kMaxRowBlocks));
  t.row_blocks = ceil_div(t.panel_rows, t.rows_per_block);
  t.tile_cols = t.fold == 1 ? kColumnTile : t.width;
  t.tiles = ceil_div(t.width, t.tile_cols);
  return t;
}

RowBlocks plan_row_blocks(int64_t rows, int64_t cols) {
  if (rows * cols == 0) return {0, 0};
  // A few wide rows still make about 16 blocks; the row groups of the kernels are 4 rows.
  const int64_t amortised = std::min(kSinkhornRows, ceil_div(rows, 16));
  const int64_t wanted = std::max(ceil_div(kSinkhornBlock, cols), amortised);
  const int64_t rows_per_block = round_up(std::min(wanted, kMaxSinkhornRows), 4);
  return {rows_per_block, ceil_div(rows, rows_per_block)};
}

}  // namespace sage_ext
