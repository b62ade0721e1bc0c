#pragma once

#include <cstdint>
#include <span>
#include <vector>

// Which part of which tensor is one unit of work. Pure host code without threads or devices in it: a plan
// depends on shapes alone, never on the number of threads, so that sums taken along it have the same order,
// and the same bits, wherever they run.
namespace sage_ext {

inline constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The half-open range [begin, end) of one tensor; what it counts (elements, rows) is the plan's business.
struct Chunk {
  int64_t tensor;
  int64_t begin;
  int64_t end;
};

// Tasks are runs of consecutive chunks with about the same amount of work: a large tensor is many tasks,
// many small tensors are one.
class ChunkPlan {
 public:
  ChunkPlan() : task_begin_{0} {}

  void add(const Chunk& chunk, int64_t work, int64_t work_per_task);
  int64_t num_tasks() const { return static_cast<int64_t>(task_begin_.size()) - 1; }
  std::span<const Chunk> task(int64_t index) const;
  std::span<const Chunk> chunks() const { return chunks_; }

 private:
  std::vector<Chunk> chunks_;
  std::vector<int64_t> task_begin_;  // task i is chunks_[task_begin_[i], task_begin_[i + 1])
  int64_t last_task_work_ = 0;
};

// Cuts each tensor of sizes[i] elements into chunks of at most `chunk` elements. Empty tensors are skipped.
ChunkPlan plan_chunks(std::span<const int64_t> sizes, int64_t chunk);

// The most columns of one tile, also of a folded tensor: kernels hold a tile's sums in arrays of this size, whose
// fp32 part stays in the first-level cache.
inline constexpr int64_t kColumnTile = 4096;

// A contiguous tensor of shape [rows, cols] cut for a column reduction. Narrow tensors are folded: `fold` rows
// side by side count as one row of `width` columns, so that inner loops are never short; the last such row may
// be partial. Row blocks are the slots of the two-stage sum.
struct ColumnTiling {
  int64_t numel;
  int64_t cols;
  int64_t fold;
  int64_t width;  // cols * fold
  int64_t panel_rows;
  int64_t rows_per_block;
  int64_t row_blocks;
  int64_t tile_cols;
  int64_t tiles;
};

ColumnTiling tile_columns(int64_t rows, int64_t cols);

// One matrix cut into blocks of rows for the row-and-column pass: the slots of its column sums. No blocks if it
// is empty.
struct RowBlocks {
  int64_t rows_per_block;
  int64_t blocks;
};

RowBlocks plan_row_blocks(int64_t rows, int64_t cols);

}  // namespace sage_ext
