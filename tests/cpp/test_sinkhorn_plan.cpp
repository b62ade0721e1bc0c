// How launches on a GPU are cut: tables of tensors, and SinkGD's rows.
#include <bit>
#include <cstdint>
#include <set>
#include <vector>

#include "core/launch_plan.h"
#include "support.h"

namespace sage_ext {
namespace {

// The launches go through the tensors in order, cover each once, and stay within both limits.
void check_launches(const std::vector<int64_t>& blocks, int64_t capacity, int64_t max_blocks) {
  const std::vector<LaunchRange> launches = plan_launches(blocks, capacity, max_blocks);
  int64_t next = 0;
  for (size_t i = 0; i < launches.size(); ++i) {
    const LaunchRange& launch = launches[i];
    ASSERT_EQ(launch.begin, next);
    ASSERT_GT(launch.end, launch.begin);
    ASSERT_LE(launch.end - launch.begin, capacity);
    int64_t sum = 0;
    for (int64_t t = launch.begin; t < launch.end; ++t) sum += blocks[static_cast<size_t>(t)];
    ASSERT_EQ(launch.blocks, sum);
    ASSERT_LE(launch.blocks, max_blocks);
    next = launch.end;
    // Every launch takes what it can.
    if (i + 1 < launches.size()) {
      ASSERT_TRUE(launch.end - launch.begin == capacity ||
                  launch.blocks + blocks[static_cast<size_t>(next)] > max_blocks);
    }
  }
  ASSERT_EQ(next, static_cast<int64_t>(blocks.size()));
}

TEST(PlanLaunches, RandomLists) {
  testing::Random random(1);
  for (int round = 0; round < 300; ++round) {
    std::vector<int64_t> blocks(random.bits() % 40);
    for (int64_t& count : blocks) count = static_cast<int64_t>(1 + random.bits() % 9);
    const auto capacity = static_cast<int64_t>(1 + random.bits() % 12);
    ASSERT_NO_FATAL_FAILURE(check_launches(blocks, capacity, static_cast<int64_t>(9 + random.bits() % 60)));
  }
}

TEST(PlanLaunches, AsFewAsPossible) {
  EXPECT_TRUE(plan_launches({}, 10, 10).empty());
  EXPECT_EQ(plan_launches(std::vector<int64_t>(10, 1), 10, 100).size(), 1u);
  EXPECT_EQ(plan_launches(std::vector<int64_t>(11, 1), 10, 100).size(), 2u);
  EXPECT_EQ(plan_launches(std::vector<int64_t>(2, 50), 10, 100).size(), 1u);
  EXPECT_EQ(plan_launches(std::vector<int64_t>{50, 51}, 10, 100).size(), 2u);
  // More blocks than a grid has, and than 32 bits hold.
  const int64_t most = (int64_t{1} << 31) - 1;
  const std::vector<int64_t> huge(3, most);
  ASSERT_EQ(plan_launches(huge, 10, most).size(), 3u);
  EXPECT_EQ(plan_launches(huge, 10, most)[2].blocks, most);
}

void check_sinkhorn(int64_t rows, int64_t cols, int64_t vec, bool aligned, int32_t threads, int64_t total) {
  SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(cols) + " by " + std::to_string(vec) + ", " +
               std::to_string(threads) + " threads" + (aligned ? "" : ", not aligned"));
  const SinkhornPlan p = plan_sinkhorn(rows, cols, vec, aligned, threads, total);
  ASSERT_TRUE(std::has_single_bit(static_cast<uint32_t>(p.team)));
  ASSERT_GE(p.team, kMinSinkhornTeam);
  ASSERT_LE(p.team, threads);
  const int32_t most = max_sinkhorn_vectors(aligned, vec);
  if (p.vectors == kSplitRows) {
    ASSERT_GT(cols, int64_t{threads} * most * vec) << "fits";
    // What the kernels take for granted: only wide blocks have code for these rows, one of which takes all threads,
    // with more columns for each than a block that reads 16 bytes, or one element, at a time gives it.
    ASSERT_EQ(threads, kWideSinkhornThreads);
    ASSERT_EQ(p.team, threads);
    ASSERT_GT(cols / (aligned ? vec : 1), threads);
  } else {
    ASSERT_TRUE(std::set<int32_t>({1, 2, 3, 4, 6, 8}).contains(p.vectors)) << p.vectors;
    ASSERT_LE(p.vectors, most);
    // The team holds the row, and half of it, or of the vectors (two thirds from 3 on), would not.
    ASSERT_GE(int64_t{p.team} * p.vectors * vec, cols);
    if (p.vectors > 2) ASSERT_LT(int64_t{p.team} * p.vectors * vec * 2, 3 * (cols + vec));
    ASSERT_TRUE(p.team == kMinSinkhornTeam || int64_t{p.team} * p.vectors * vec < 2 * (cols + vec));
    ASSERT_TRUE(p.vectors == 1 || p.team == threads) << "more threads come before more registers";
    // Full groups of rows, unless the matrix ends.
    ASSERT_EQ(p.rows_per_block % (threads / p.team * (most / p.vectors)), 0);
  }
  ASSERT_EQ(p.row_blocks, ceil_div(rows, int64_t{p.rows_per_block}));
  ASSERT_GE(p.rows_per_block, 16);
  ASSERT_LE(p.rows_per_block, 512);  // fp32 additions of a column in a row
}

TEST(PlanSinkhorn, Invariants) {
  for (const int64_t vec : {4, 8}) {
    for (const int64_t rows : {1, 2, 15, 16, 17, 300, 4096, 65537}) {
      for (const int64_t cols : {1, 3, 8, 64, 65, 777, 2048, 2049, 4096, 8192, 11008, 16384, 28672, 32768, 40000}) {
        for (const bool aligned : {false, true}) {
          if (aligned && cols % vec != 0) continue;
          for (const int32_t threads : {kSinkhornThreads, kWideSinkhornThreads}) {
            if (threads < sinkhorn_threads(cols, vec, aligned)) continue;
            for (const int64_t total : {rows * cols, int64_t{7'000'000'000}}) {
              ASSERT_NO_FATAL_FAILURE(check_sinkhorn(rows, cols, vec, aligned, threads, total));
            }
          }
        }
      }
    }
  }
}

TEST(PlanSinkhorn, BeyondThirtyTwoBits) {
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{366'212, 8192}, {1, 3'000'000'000}, {2'000'000'000, 4}}) {
    for (const int64_t vec : {4, 8}) {
      ASSERT_NO_FATAL_FAILURE(check_sinkhorn(rows, cols, vec, cols % vec == 0, kWideSinkhornThreads, rows * cols));
    }
  }
}

// What one read an iteration depends on: the widest rows of models of 7B and 70B in bf16, and of fp32.
TEST(PlanSinkhorn, WideRows) {
  const auto vectors = [](int64_t cols, int64_t vec) {
    return plan_sinkhorn(64, cols, vec, true, sinkhorn_threads(cols, vec, true), 64 * cols).vectors;
  };
  EXPECT_EQ(sinkhorn_threads(11008, 8, true), kSinkhornThreads);
  EXPECT_EQ(sinkhorn_threads(16384, 8, true), kSinkhornThreads);
  EXPECT_EQ(sinkhorn_threads(16392, 8, true), kWideSinkhornThreads);
  EXPECT_EQ(vectors(4096, 8), 2);
  EXPECT_EQ(vectors(5464, 8), 3);
  EXPECT_EQ(vectors(11008, 8), 6);
  EXPECT_EQ(vectors(28672, 8), 8);
  EXPECT_EQ(vectors(32768, 8), 8);
  EXPECT_EQ(vectors(40000, 8), kSplitRows);
  EXPECT_EQ(vectors(16384, 4), 8);
  EXPECT_EQ(vectors(16388, 4), kSplitRows);
}

// Up to and beyond the widest row that each kind of block holds.
TEST(PlanSinkhorn, RowsThatDoNotFitHaveWideBlocks) {
  for (const int64_t vec : {4, 8}) {
    for (const bool aligned : {false, true}) {
      const int64_t held = max_sinkhorn_vectors(aligned, vec) * vec;  // by a thread
      for (const auto& [threads, is_split] :
           {std::pair{kSinkhornThreads, false}, {kWideSinkhornThreads, false}, {kWideSinkhornThreads, true}}) {
        const int64_t cols = (is_split ? kWideSinkhornThreads : threads) * held + (is_split ? vec : 0);
        EXPECT_EQ(sinkhorn_threads(cols, vec, aligned), threads);
        ASSERT_NO_FATAL_FAILURE(check_sinkhorn(64, cols, vec, aligned, threads, 64 * cols));
        EXPECT_EQ(plan_sinkhorn(64, cols, vec, aligned, threads, 64 * cols).vectors == kSplitRows, is_split);
      }
    }
  }
}

// Large models get tall blocks, whose sums are few; small ones enough blocks to go round.
TEST(PlanSinkhorn, BlocksForTheMachine) {
  EXPECT_EQ(plan_sinkhorn(4096, 4096, 8, true, kSinkhornThreads, 6'738'149'376).rows_per_block, 256);
  EXPECT_EQ(plan_sinkhorn(4096, 4096, 8, true, kSinkhornThreads, 4096 * 4096).rows_per_block, 16);
}

}  // namespace
}  // namespace sage_ext
