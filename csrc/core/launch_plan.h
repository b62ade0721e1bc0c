#pragma once

#include <cstdint>
#include <span>
#include <vector>

// Which part of which tensor is one unit of work. Pure host code without threads or devices in it: a plan
// depends on shapes alone, never on the number of threads, so that sums taken along it have the same order,
// and the same bits, wherever they run.
namespace sage_ext {

inline constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Of the tensor of which a matrix is a piece, as it lies on several processes; zeros where it is the whole.
struct WholeSize {
  int64_t rows, cols;

  constexpr bool is_cut() const { return rows != 0; }
  // Those of a matrix that has so many itself.
  constexpr int64_t rows_of(int64_t own) const { return is_cut() ? rows : own; }
  constexpr int64_t cols_of(int64_t own) const { return is_cut() ? cols : own; }
};

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

// One launch of a kernel that takes a table of tensors: tensors [begin, end) with this many blocks in all.
struct LaunchRange {
  int64_t begin;
  int64_t end;
  int64_t blocks;
};

// The launches for tensors of blocks[i] blocks each, in order: as few as hold at most `capacity` tensors and
// `max_blocks` blocks.
std::vector<LaunchRange> plan_launches(std::span<const int64_t> blocks, int64_t capacity, int64_t max_blocks);

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

// The same matrix cut for a GPU, where a block of threads is the unit, and a thread has 16 bytes of a panel row: the
// columns of a vector of `vec` elements. Every panel row starts on a vector boundary, if the tensor does.
struct ColumnBlocks {
  // `fold` rows side by side are a panel row of `width` = cols * fold; the last one may be partial.
  int64_t fold, width, panel_rows;
  // A block's part of the columns, in vectors, which are its busy threads; and its part of the panel rows, each of
  // which is one fp32 addition to a column's sum.
  int64_t tile_vecs, tiles;
  int64_t rows_per_block, row_blocks;
  // A block that has whole panel rows adds up the rows that lie side by side; otherwise each has a slot.
  bool folds_in_block;
  int64_t slots;         // partial sums of a column: slots * cols in all
  int64_t average_cols;  // columns of a block of the second stage, which adds up the slots
};

inline constexpr int64_t kColumnThreads = 256;  // of a block of either stage

ColumnBlocks plan_column_blocks(int64_t rows, int64_t cols, int64_t vec);

// One matrix cut into blocks of rows for the row-and-column pass: the slots of its column sums. No blocks if it
// is empty.
struct RowBlocks {
  int64_t rows_per_block;
  int64_t blocks;
};

RowBlocks plan_row_blocks(int64_t rows, int64_t cols);

// The row-and-column pass on a GPU, for the matrices of one tensor.
//
// A row belongs to a team of threads, each with `vectors` times 16 bytes of it in registers, together with its share
// of the column sums: one read does both halves of the pass. Narrow rows have small teams, several to a block.
// `vectors` = kSplitRows means that a row does not fit: it is read twice, by all threads of a block, which has
// kWideSinkhornThreads of them.
struct SinkhornPlan {
  int32_t team;     // threads, a power of two
  int32_t vectors;  // 1, 2, 3, 4, 6 or 8; or kSplitRows
  int32_t rows_per_block;
  int32_t row_blocks;
};

inline constexpr int32_t kSplitRows = 0;
inline constexpr int32_t kMinSinkhornTeam = 8;
inline constexpr int32_t kSinkhornThreads = 256;  // of a block: rows of up to 2,048 vectors (16,384 in bf16)
inline constexpr int32_t kWideSinkhornThreads = 512;

// How many times 16 bytes, of `vec` elements, a thread holds of its rows: 32 registers, beside up to 64 for column
// sums. Rows that do not start on 16-byte boundaries arrive element by element, each in a register of its own.
inline constexpr int32_t kSinkhornVectors = 8;
inline constexpr int32_t max_sinkhorn_vectors(bool aligned, int64_t vec) {
  return aligned ? kSinkhornVectors : static_cast<int32_t>(32 / vec);
}

// The threads of a launch's blocks, which are the same for all matrices: what this one needs. `vec` elements fill 16
// bytes.
int32_t sinkhorn_threads(int64_t cols, int64_t vec, bool aligned);

// `threads` are at least those that this matrix needs. `total` is the number of elements of all matrices in the launch:
// it decides how many rows a block takes.
SinkhornPlan plan_sinkhorn(int64_t rows, int64_t cols, int64_t vec, bool aligned, int32_t threads, int64_t total);

}  // namespace sage_ext
