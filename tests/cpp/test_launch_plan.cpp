#include "core/launch_plan.h"

#include <cstdint>
#include <vector>

#include "support.h"

namespace sage_ext {
namespace {

// The chunks go through the tensors in order and cover each exactly once; tasks are consecutive runs of chunks.
void check_plan(const ChunkPlan& plan, const std::vector<int64_t>& sizes, int64_t chunk) {
  size_t tensor = 0;
  int64_t at = 0;
  const auto skip_finished = [&] {
    while (tensor < sizes.size() && at == sizes[tensor]) {
      ++tensor;
      at = 0;
    }
  };
  size_t seen = 0;
  for (int64_t task = 0; task < plan.num_tasks(); ++task) {
    const std::span<const Chunk> chunks = plan.task(task);
    ASSERT_FALSE(chunks.empty());
    int64_t work = 0;
    for (const Chunk& c : chunks) {
      // A chunk is put into a task only while the task has less than a chunk's worth of work.
      ASSERT_LT(work, chunk);
      skip_finished();
      ASSERT_LT(tensor, sizes.size());
      ASSERT_EQ(c.tensor, static_cast<int64_t>(tensor));
      ASSERT_EQ(c.begin, at);
      ASSERT_GT(c.end, c.begin);
      ASSERT_LE(c.end - c.begin, chunk);
      ASSERT_LE(c.end, sizes[tensor]);
      // Only the last chunk of a tensor is short.
      ASSERT_TRUE(c.end - c.begin == chunk || c.end == sizes[tensor]);
      at = c.end;
      work += c.end - c.begin;
      ++seen;
    }
    if (task + 1 < plan.num_tasks()) {
      ASSERT_GE(work, chunk) << "task " << task << " ended early";
    }
  }
  skip_finished();
  ASSERT_EQ(tensor, sizes.size());
  ASSERT_EQ(seen, plan.chunks().size());
}

void check_sizes(const std::vector<int64_t>& sizes, int64_t chunk) {
  ASSERT_NO_FATAL_FAILURE(check_plan(plan_chunks(sizes, chunk), sizes, chunk));
}

TEST(PlanChunks, NothingToDo) {
  EXPECT_EQ(plan_chunks({}, 100).num_tasks(), 0);
  EXPECT_TRUE(plan_chunks({}, 100).chunks().empty());
  const std::vector<int64_t> empties(5, 0);
  EXPECT_EQ(plan_chunks(empties, 100).num_tasks(), 0);
}

TEST(PlanChunks, SizesAroundTheChunk) {
  for (const int64_t chunk : {1, 2, 7, 100}) {
    for (const int64_t multiple : {1, 2, 3, 10}) {
      for (const int64_t delta : {-1, 0, 1}) {
        const int64_t size = chunk * multiple + delta;
        check_sizes({size}, chunk);
        EXPECT_EQ(static_cast<int64_t>(plan_chunks(std::vector<int64_t>{size}, chunk).chunks().size()),
                  ceil_div(size, chunk));
      }
    }
  }
}

TEST(PlanChunks, EmptyTensorsAnywhere) {
  check_sizes({0, 5, 300}, 100);
  check_sizes({5, 0, 0, 300}, 100);
  check_sizes({5, 300, 0}, 100);
  check_sizes({0, 0, 100, 0, 100, 0, 0}, 100);
  check_sizes({0, 1, 0}, 1);
}

TEST(PlanChunks, ManySmallTensorsShareTasks) {
  const std::vector<int64_t> sizes(5000, 10);
  check_sizes(sizes, 1000);
  const ChunkPlan plan = plan_chunks(sizes, 1000);
  EXPECT_EQ(plan.num_tasks(), 50);
  EXPECT_EQ(plan.task(0).size(), 100u);
}

TEST(PlanChunks, RandomLists) {
  testing::Random random(1);
  for (int round = 0; round < 300; ++round) {
    const auto chunk = static_cast<int64_t>(1 + random.bits() % 50);
    std::vector<int64_t> sizes(random.bits() % 20);
    for (int64_t& size : sizes) size = static_cast<int64_t>(random.bits() % 4 == 0 ? 0 : random.bits() % 200);
    ASSERT_NO_FATAL_FAILURE(check_sizes(sizes, chunk));
  }
}

TEST(PlanChunks, BeyondThirtyTwoBits) {
  const std::vector<int64_t> sizes = {3'000'000'001, 5, 2'147'483'648};
  check_sizes(sizes, int64_t{1} << 15);
  check_sizes({int64_t{1} << 40}, int64_t{1} << 31);
}

TEST(ChunkPlan, TasksEndWhenTheyHaveEnoughWork) {
  ChunkPlan plan;
  for (const int64_t work : {4, 4, 4, 12, 1, 20, 1}) plan.add({0, 0, work}, work, 10);
  // 4 + 4 + 4 reaches 10; so do 12, and 1 + 20; the last 1 is left over.
  ASSERT_EQ(plan.num_tasks(), 4);
  EXPECT_EQ(plan.task(0).size(), 3u);
  EXPECT_EQ(plan.task(1).size(), 1u);
  EXPECT_EQ(plan.task(2).size(), 2u);
  EXPECT_EQ(plan.task(3).size(), 1u);
}

void check_tiling(int64_t rows, int64_t cols) {
  SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(cols));
  const ColumnTiling t = tile_columns(rows, cols);
  ASSERT_EQ(t.numel, rows * cols);
  ASSERT_EQ(t.cols, cols);
  ASSERT_GE(t.fold, 1);
  ASSERT_LE(t.fold, rows);
  ASSERT_EQ(t.width, cols * t.fold);
  // No folding where columns are plenty; elsewhere inner loops get long, unless the tensor is small.
  if (cols >= 256) {
    ASSERT_EQ(t.fold, 1);
  } else {
    ASSERT_TRUE(t.width >= 256 || t.fold == rows);
    ASSERT_LT(t.width, 512);
  }
  // Panel rows cover every element: the last one is not empty, and only it may be partial.
  ASSERT_GE(t.panel_rows * t.width, t.numel);
  ASSERT_LT((t.panel_rows - 1) * t.width, t.numel);
  // Row blocks cover every panel row, and none is empty.
  ASSERT_GE(t.row_blocks, 1);
  ASSERT_LE(t.row_blocks, 256);
  ASSERT_GE(t.rows_per_block * t.row_blocks, t.panel_rows);
  ASSERT_LT(t.rows_per_block * (t.row_blocks - 1), t.panel_rows);
  // So do tiles with columns. The kernels' buffers hold 4096; a folded tensor is one tile.
  ASSERT_LE(t.tile_cols, 4096);
  ASSERT_GE(t.tile_cols * t.tiles, t.width);
  ASSERT_LT(t.tile_cols * (t.tiles - 1), t.width);
  if (t.fold > 1) {
    ASSERT_EQ(t.tiles, 1);
  }
}

TEST(TileColumns, Invariants) {
  for (const int64_t rows : {1, 2, 3, 5, 31, 255, 256, 257, 1000, 32000, 65537, 1000003}) {
    for (const int64_t cols : {1, 2, 3, 5, 31, 127, 128, 129, 255, 256, 257, 1000, 4095, 4096, 4097, 65537, 1000003}) {
      ASSERT_NO_FATAL_FAILURE(check_tiling(rows, cols));
    }
  }
  ASSERT_NO_FATAL_FAILURE(check_tiling(3'000'000'000, 1));
  ASSERT_NO_FATAL_FAILURE(check_tiling(1, 3'000'000'000));
  ASSERT_NO_FATAL_FAILURE(check_tiling(3'000'000'000, 8192));
}

TEST(TileColumns, EmptyTensorsHaveNoBlocks) {
  for (const auto& [rows, cols] : {std::pair{0, 0}, {0, 5}, {5, 0}}) {
    const ColumnTiling t = tile_columns(rows, cols);
    EXPECT_EQ(t.numel, 0);
    EXPECT_EQ(t.row_blocks * t.tiles, 0);
  }
}

void check_column_blocks(int64_t rows, int64_t cols, int64_t vec) {
  SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(cols) + " by " + std::to_string(vec));
  const ColumnBlocks p = plan_column_blocks(rows, cols, vec);
  ASSERT_GE(p.fold, 1);
  ASSERT_LE(p.fold, rows);
  ASSERT_EQ(p.width, cols * p.fold);
  // Panel rows cover the matrix, and each but the first starts on a vector boundary because the one before ends there.
  ASSERT_GE(p.panel_rows * p.fold, rows);
  ASSERT_LT((p.panel_rows - 1) * p.fold, rows);
  ASSERT_TRUE(p.width % vec == 0 || p.panel_rows == 1);
  // Tiles cover the width in whole warps, none is empty, and a block has a thread for each vector.
  ASSERT_EQ(p.tile_vecs % 32, 0);
  ASSERT_LE(p.tile_vecs, 256);
  ASSERT_GE(p.tiles * p.tile_vecs * vec, p.width);
  ASSERT_LT((p.tiles - 1) * p.tile_vecs * vec, p.width);
  // Most threads are busy, unless the matrix is small.
  if (rows * cols >= 256 * vec) {
    ASSERT_GE(p.width, 128 * vec);
  }
  if (p.tiles > 1) {
    ASSERT_GT(2 * p.tile_vecs, 256);
  }
  ASSERT_GE(p.rows_per_block * p.row_blocks, p.panel_rows);
  ASSERT_LT(p.rows_per_block * (p.row_blocks - 1), p.panel_rows);
  ASSERT_LE(p.rows_per_block, 128);  // fp32 additions in a row
  // A block's sums of several rows are added up where it has all their columns.
  ASSERT_EQ(p.folds_in_block, p.fold > 1 && p.tiles == 1);
  ASSERT_EQ(p.slots, p.folds_in_block ? p.row_blocks : p.row_blocks * p.fold);
  // The slots take little room beside a tall matrix.
  if (rows >= 32 * p.fold) {
    ASSERT_LE(p.slots * 16, rows);
  }
  ASSERT_TRUE(p.average_cols % 256 == 0 || (256 % p.average_cols == 0 && p.average_cols < 2 * cols));
}

TEST(PlanColumnBlocks, Invariants) {
  for (const int64_t rows : {1, 2, 3, 5, 31, 255, 256, 257, 1000, 32000, 65537, 1000003}) {
    for (const int64_t cols : {1, 2, 3, 5, 31, 127, 128, 129, 255, 256, 257, 768, 1000, 1025, 4095, 4096, 65537}) {
      for (const int64_t vec : {4, 8}) ASSERT_NO_FATAL_FAILURE(check_column_blocks(rows, cols, vec));
    }
  }
}

TEST(PlanColumnBlocks, BeyondThirtyTwoBits) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{3'000'000'000, 1},
                                   {1, 3'000'000'000},
                                   {3'000'000'000, 8192},
                                   {366'211, 8192},
                                   {2, 3'000'000'001}}) {
    for (const int64_t vec : {4, 8}) ASSERT_NO_FATAL_FAILURE(check_column_blocks(rows, cols, vec));
  }
}

// Blocks of bf16 matrices: some 500 fill a GPU.
TEST(PlanColumnBlocks, FillsAMachine) {
  const auto blocks = [](int64_t rows, int64_t cols) {
    const ColumnBlocks p = plan_column_blocks(rows, cols, 8);
    return p.row_blocks * p.tiles;
  };
  EXPECT_EQ(blocks(32000, 4096), 1000);
  EXPECT_EQ(blocks(8192, 8192), 1024);
  EXPECT_EQ(blocks(50257, 768), 786);
  EXPECT_EQ(blocks(1, 4096), 2);
  EXPECT_EQ(blocks(1, 4'000'000), 1954);
  EXPECT_EQ(blocks(64'000'000, 1), 977);
  EXPECT_EQ(blocks(3, 5), 1);
  // So do the blocks of the second stage, which adds up what these left.
  EXPECT_EQ(plan_column_blocks(32000, 4096, 8).average_cols, 32);
  EXPECT_EQ(plan_column_blocks(1, 4096, 8).average_cols, 1024);
}

TEST(PlanColumnBlocks, EmptyTensorsHaveNone) {
  for (const auto& [rows, cols] : {std::pair{0, 0}, {0, 5}, {5, 0}}) {
    const ColumnBlocks p = plan_column_blocks(rows, cols, 8);
    EXPECT_EQ(p.row_blocks * p.tiles + p.slots, 0);
  }
}

void check_row_blocks(int64_t rows, int64_t cols) {
  const RowBlocks plan = plan_row_blocks(rows, cols);
  ASSERT_GE(plan.blocks, 1);
  ASSERT_EQ(plan.rows_per_block % 4, 0) << rows << " x " << cols;
  ASSERT_GE(plan.rows_per_block * plan.blocks, rows) << rows << " x " << cols;
  ASSERT_LT(plan.rows_per_block * (plan.blocks - 1), rows) << rows << " x " << cols;
  ASSERT_LE(plan.rows_per_block, 256);  // fp32 additions of a column in a row
  // The column sums of all blocks take little room beside the matrix.
  if (rows >= 64) {
    ASSERT_LE(plan.blocks, ceil_div(rows, 4));
  }
}

TEST(PlanRowBlocks, Invariants) {
  for (const int64_t rows : {1, 2, 3, 4, 5, 15, 16, 17, 64, 1000, 65537, 1000003}) {
    for (const int64_t cols : {1, 2, 5, 31, 768, 4097, 49152, 1000003}) {
      ASSERT_NO_FATAL_FAILURE(check_row_blocks(rows, cols));
    }
  }
  ASSERT_NO_FATAL_FAILURE(check_row_blocks(3'000'000'000, 1));
  ASSERT_NO_FATAL_FAILURE(check_row_blocks(1, 3'000'000'000));
  ASSERT_NO_FATAL_FAILURE(check_row_blocks(3'000'000'000, 8192));
  EXPECT_EQ(plan_row_blocks(0, 5).blocks, 0);
  EXPECT_EQ(plan_row_blocks(5, 0).blocks, 0);
}

}  // namespace
}  // namespace sage_ext
