// Indices and warps: what the emulator computes for kernels that are right.
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "simt/simt.h"

namespace {

// ---- indices -----------------------------------------------------------------------------------------------------

struct IndexParams {
  unsigned* visits;
};

__global__ void visit(const IndexParams __grid_constant__ params) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned i = block * blockDim.x * blockDim.y * blockDim.z + thread;
  simt::on_store(params.visits + i, 4);
  params.visits[i] += i + 1;
}

TEST(Simt, EveryThreadRunsOnceWithItsIndices) {
  for (const uint64_t schedule : {0, 1, 2}) {
    simt::Session session({.schedule = schedule});
    const dim3 grid(3, 2, 5), block(7, 3, 2);
    std::vector<unsigned> visits(3 * 2 * 5 * 7 * 3 * 2, 0);
    simt::launch("visit", grid, block, 0, nullptr, visit, IndexParams{visits.data()});
    for (unsigned i = 0; i < visits.size(); ++i) ASSERT_EQ(visits[i], i + 1);
    ASSERT_EQ(session.launches().size(), 1u);
    const simt::Launch& launch = session.launches()[0];
    EXPECT_EQ(launch.kernel, "visit");
    EXPECT_EQ(launch.grid.y, 2u);
    EXPECT_EQ(launch.block.x, 7u);
    EXPECT_EQ(launch.bytes_written, 4 * visits.size());
    EXPECT_EQ(launch.bytes_read, 0u);
  }
}

// ---- warps -------------------------------------------------------------------------------------------------------

template <typename T>
struct LaneParams {
  T* out;  // [cases][32]
};

template <typename T>
__global__ void shuffles(const LaneParams<T> params) {
  const auto lane = static_cast<int>(threadIdx.x);
  const T value = static_cast<T>(100 + lane);
  T* out = params.out + lane;
  *out = __shfl_sync(~0u, value, 5);
  out[32] = __shfl_sync(~0u, value, lane + 1, 8);
  out[64] = __shfl_up_sync(~0u, value, 3);
  out[96] = __shfl_up_sync(~0u, value, 3, 8);
  out[128] = __shfl_down_sync(~0u, value, 2);
  out[160] = __shfl_down_sync(~0u, value, 2, 4);
  out[192] = __shfl_xor_sync(~0u, value, 16);
  out[224] = __shfl_xor_sync(~0u, value, 4, 4);
}

template <typename T>
void check_shuffles() {
  for (const uint64_t schedule : {0, 1, 2, 3}) {
    simt::Session session({.schedule = schedule});
    std::vector<T> out(8 * 32);
    simt::launch("shuffles", 1, 32, 0, nullptr, shuffles<T>, LaneParams<T>{out.data()});
    for (int lane = 0; lane < 32; ++lane) {
      const int sources[8] = {5, lane / 8 * 8 + (lane + 1) % 8, lane < 3 ? lane : lane - 3,
                              lane % 8 < 3 ? lane : lane - 3, lane > 29 ? lane : lane + 2,
                              lane % 4 > 1 ? lane : lane + 2, lane ^ 16,
                              // Later groups cannot be read, earlier ones can.
                              (lane & 4) == 0 ? lane : lane - 4};
      for (int k = 0; k < 8; ++k) ASSERT_EQ(out[k * 32 + lane], static_cast<T>(100 + sources[k])) << k << ' ' << lane;
    }
  }
}

TEST(Simt, Shuffles) {
  check_shuffles<int>();
  check_shuffles<unsigned>();
  check_shuffles<long long>();
  check_shuffles<float>();
  check_shuffles<double>();
}

__global__ void votes(const LaneParams<unsigned> params) {
  const unsigned lane = threadIdx.x;
  unsigned* out = params.out + lane;
  *out = __ballot_sync(~0u, lane % 3 == 0);
  out[32] = static_cast<unsigned>(__any_sync(~0u, lane == 7));
  out[64] = static_cast<unsigned>(__all_sync(~0u, lane != 7));
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  if (lane < 16) {
    out[96] = static_cast<unsigned>(__all_sync(half, lane < 16));
  } else {
    out[96] = __ballot_sync(half, lane % 2);
  }
  __syncwarp();
  out[128] = __activemask() >> lane & 1;
}

TEST(Simt, Votes) {
  for (const uint64_t schedule : {0, 1, 2, 3}) {
    simt::Session session({.schedule = schedule});
    std::vector<unsigned> out(5 * 32);
    simt::launch("votes", 1, 32, 0, nullptr, votes, LaneParams<unsigned>{out.data()});
    for (int lane = 0; lane < 32; ++lane) {
      EXPECT_EQ(out[lane], 0x49249249u);
      EXPECT_EQ(out[32 + lane], 1u);
      EXPECT_EQ(out[64 + lane], 0u);
      EXPECT_EQ(out[96 + lane], lane < 16 ? 1u : 0xaaaa0000u);
      EXPECT_EQ(out[128 + lane], 1u);
    }
  }
}

}  // namespace
