#include "core/launch_plan.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace sage_ext {

namespace {

constexpr int64_t kMinWidth = 256;                  // columns below which rows are folded
constexpr int64_t kReduceBlock = int64_t{1} << 16;  // elements of one block of a column reduction
constexpr int64_t kMaxRowBlocks = 256;              // bounds the partial sums to 256 rows
constexpr int64_t kSinkhornBlock = 49152;           // elements of one block of the row-and-column pass
constexpr int64_t kSinkhornRows = 64;               // rows over which its partial sums are amortised
constexpr int64_t kMaxSinkhornRows = 256;           // fp32 additions before a column's sum moves on to fp64

// On a GPU every block writes 4 bytes a column, which are read once, and reads the column scales: 12 / rows bytes an
// element. 256 rows make that 0.05, against 2 (bf16) for the gradient. Fewer matrices get smaller blocks, down to
// 16 rows, so that there are about 2,048: eight for each of an H100's 264 places (132 multiprocessors, two blocks
// of 256 threads with 128 registers each).
constexpr int64_t kGpuBlocks = 2048;
constexpr int64_t kMinGpuRows = 16;
constexpr int64_t kMinPanelRows = 32;    // of a GPU's block: its slots are 1/16 of the bytes of a bf16 gradient
constexpr int64_t kMaxPanelRows = 128;   // 1/64; also bounds the fp32 additions in a row
constexpr int64_t kColumnBlocks = 1024;  // a matrix of this many such blocks fills a GPU, with more rows a block

// What a thread holds of a row, where it needs `vectors`: the kernels come in these sizes.
int32_t held_vectors(int64_t vectors) {
  for (const int32_t held : {1, 2, 3, 4, 6}) {
    if (vectors <= held) return held;
  }
  return kSinkhornVectors;
}

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

std::vector<LaunchRange> plan_launches(std::span<const int64_t> blocks, int64_t capacity, int64_t max_blocks) {
  std::vector<LaunchRange> launches;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const auto index = static_cast<int64_t>(i);
    if (launches.empty() || index - launches.back().begin == capacity ||
        launches.back().blocks + blocks[i] > max_blocks) {
      launches.push_back({index, index, 0});
    }
    launches.back().end = index + 1;
    launches.back().blocks += blocks[i];
  }
  return launches;
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

// The machine is full from some 500 blocks of 256 threads with four loads of 16 bytes each in flight. In bf16:
// - 8192 x 8192 has 4 tiles of 2048 columns and 256 blocks of 32 rows: 1024 blocks that read 128 KiB each;
// - an embedding of 32000 x 4096 gets 2 tiles and 64 rows a block: 1000 blocks, slots are 1/32 of its bytes;
// - larger ones get 128 rows a block and as many blocks as that takes: slots are 1/64 of the bytes;
// - 50257 x 768 is folded to two rows in 192 threads: 786 blocks of 32 panel rows;
// - 777 columns are folded by 8, which makes whole vectors, and cut into 4 tiles of at most 224 threads;
// - n x 1 is folded by 2048, and a block adds up its sums, so that a slot is one number;
// - 1 x n has a block for each 2048 columns: two for a norm of 4096. A tiny tensor is one block.
ColumnBlocks plan_column_blocks(int64_t rows, int64_t cols, int64_t vec) {
  ColumnBlocks p{};
  if (rows * cols == 0) return p;
  const int64_t step = vec / std::gcd(cols, vec);  // folds after which a row starts on a vector boundary again
  const int64_t fit = kColumnThreads * vec / cols / step * step;
  // With as many folds as rows there is only one panel row, of any width.
  p.fold = std::min(std::max(fit, step), rows);
  p.width = cols * p.fold;
  p.panel_rows = ceil_div(rows, p.fold);
  const int64_t vecs = ceil_div(p.width, vec);
  // Tiles of about the same size, in whole warps.
  p.tile_vecs = round_up(ceil_div(vecs, ceil_div(vecs, kColumnThreads)), 32);
  p.tiles = ceil_div(vecs, p.tile_vecs);
  const int64_t wanted = ceil_div(p.panel_rows * p.tiles, kColumnBlocks);
  p.rows_per_block = round_up(std::clamp(wanted, kMinPanelRows, kMaxPanelRows), 4);
  p.row_blocks = ceil_div(p.panel_rows, p.rows_per_block);
  p.folds_in_block = p.fold > 1 && p.tiles == 1;
  p.slots = p.folds_in_block ? p.row_blocks : p.row_blocks * p.fold;
  // The second stage: few slots are added by the column's thread, many by the block's warps, 32 columns (or all, if
  // they are fewer) a block.
  const int64_t narrow = std::min<int64_t>(32, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(cols))));
  p.average_cols = p.slots <= 2 ? 4 * kColumnThreads : p.slots < 16 ? kColumnThreads : narrow;
  return p;
}

RowBlocks plan_row_blocks(int64_t rows, int64_t cols) {
  if (rows * cols == 0) return {0, 0};
  // A few wide rows still make about 16 blocks; the row groups of the kernels are 4 rows.
  const int64_t amortised = std::min(kSinkhornRows, ceil_div(rows, 16));
  const int64_t wanted = std::max(ceil_div(kSinkhornBlock, cols), amortised);
  const int64_t rows_per_block = round_up(std::min(wanted, kMaxSinkhornRows), 4);
  return {rows_per_block, ceil_div(rows, rows_per_block)};
}

int32_t sinkhorn_threads(int64_t cols, int64_t vec, bool aligned) {
  return cols > kSinkhornThreads * max_sinkhorn_vectors(aligned, vec) * vec ? kWideSinkhornThreads : kSinkhornThreads;
}

SinkhornPlan plan_sinkhorn(int64_t rows, int64_t cols, int64_t vec, bool aligned, int32_t threads, int64_t total) {
  SinkhornPlan plan{};
  const int64_t max_vectors = max_sinkhorn_vectors(aligned, vec);
  const bool fits = cols <= threads * max_vectors * vec;
  const auto team = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(ceil_div(cols, vec))));
  plan.team = static_cast<int32_t>(std::clamp<int64_t>(team, kMinSinkhornTeam, threads));
  plan.vectors = fits ? held_vectors(ceil_div(ceil_div(cols, vec), threads)) : kSplitRows;
  const int64_t group = threads / plan.team * (fits ? max_vectors / plan.vectors : 1);  // rows that go together
  const int64_t wanted = total / kGpuBlocks / cols;
  const int64_t per_block = round_up(std::clamp(wanted, kMinGpuRows, kMaxSinkhornRows), group);
  plan.rows_per_block = static_cast<int32_t>(per_block);
  plan.row_blocks = static_cast<int32_t>(ceil_div(rows, per_block));
  return plan;
}

}  // namespace sage_ext
