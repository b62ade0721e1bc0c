#include "cpu/common/parallel.h"

#include <atomic>
#include <vector>

#include "cpu/common/map.h"
#include "support.h"

namespace sage_ext::cpu {
namespace {

TEST(Parallel, EveryTaskRunsOnce) {
  for (const int threads : {1, 2, 3, 5}) {
    for (const int64_t tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
      parallel_tasks(tasks, threads, [&](int64_t task) { ++runs[static_cast<size_t>(task)]; });
      for (const std::atomic<int>& count : runs) ASSERT_EQ(count.load(), 1) << threads << " threads, " << tasks;
    }
  }
}

TEST(Parallel, SharesOfATeamPartitionTheWork) {
  for (const int size : {1, 2, 3, 5, 64}) {
    for (const int64_t grain : {1, 16}) {
      for (const int64_t count : {0, 1, 15, 16, 17, 33, 1000, 4096}) {
        int64_t end = 0;
        for (int rank = 0; rank < size; ++rank) {
          const Team team{rank, size};
          ASSERT_EQ(team.share_begin(count, grain, rank), end);
          end = team.share_begin(count, grain, rank + 1);
          ASSERT_TRUE(end % grain == 0 || end == count);
          ASSERT_LE(end, count);
        }
        ASSERT_EQ(end, count);
      }
    }
  }
}

// What one member wrote before a barrier, every member sees after it.
TEST(Parallel, BarriersSeparatePhases) {
  for (const int threads : {1, 2, 3, 5}) {
    std::vector<int> phase(static_cast<size_t>(threads), 0);
    std::atomic<int> behind{0};
    std::atomic<int> members{0};
    parallel_team(threads, [&](const Team& team) {
      ++members;
      for (int step = 1; step <= 20; ++step) {
        phase[static_cast<size_t>(team.rank)] = step;
        team.barrier();
        for (int other = 0; other < team.size; ++other) behind += phase[static_cast<size_t>(other)] != step;
        team.barrier();
      }
    });
    EXPECT_EQ(behind.load(), 0);
    EXPECT_GE(members.load(), 1);
    EXPECT_LE(members.load(), threads);
  }
}

TEST(Parallel, MapReachesEveryElementOnce) {
  struct Tensor {
    int64_t numel;
    std::atomic<int>* counts;
  };
  const int64_t sizes[] = {0, 1, kMapChunk - 1, 0, kMapChunk, kMapChunk + 1, 3 * kMapChunk + 7, 5, 0};
  for (const int threads : {1, 3}) {
    std::vector<std::vector<std::atomic<int>>> counts;
    std::vector<Tensor> tensors;
    for (const int64_t size : sizes) counts.emplace_back(static_cast<size_t>(size));
    for (std::vector<std::atomic<int>>& c : counts) tensors.push_back({static_cast<int64_t>(c.size()), c.data()});
    map_chunks(std::span<const Tensor>(tensors), threads, [](const Tensor& tensor, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++tensor.counts[i];
    });
    for (const std::vector<std::atomic<int>>& c : counts) {
      for (const std::atomic<int>& count : c) ASSERT_EQ(count.load(), 1);
    }
  }
}

}  // namespace
}  // namespace sage_ext::cpu
