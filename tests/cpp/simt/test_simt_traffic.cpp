// Bytes and sectors.
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "simt/simt.h"

namespace {

template <typename T>
__device__ __forceinline__ T load(const T* address) {
  simt::on_load(address, sizeof(T));
  return *address;
}

template <typename T>
__device__ __forceinline__ void store(T* address, const T& value) {
  simt::on_store(address, sizeof(T));
  *address = value;
}

template <typename T>
struct CopyParams {
  const T* in;
  T* out;
  size_t count;
  size_t stride;
};

// Lanes that have nothing left skip the last round.
template <typename T>
__global__ void copy(const CopyParams<T> params) {
  for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < params.count; i += gridDim.x * blockDim.x) {
    store(params.out + i, load(params.in + i * params.stride));
  }
}

template <typename T>
simt::Launch run_copy(size_t count, size_t stride, uint64_t schedule, size_t offset = 0) {
  simt::Session session({.schedule = schedule, .count_sectors = true});
  std::vector<T> in(count * stride + 32), out(count + 32);
  const auto align = [](T* p) { return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(p) + 31) / 32 * 32); };
  simt::launch("copy", 3, 128, 0, nullptr, copy<T>,
               CopyParams<T>{align(in.data()) + offset, align(out.data()), count, stride});
  return session.launches().at(0);
}

TEST(SimtTraffic, CoalescedAccessMovesWhatItUses) {
  for (const uint64_t schedule : {0, 1, 2}) {
    const simt::Launch vectors = run_copy<uint4>(1000, 1, schedule);
    EXPECT_EQ(vectors.bytes_read, 16000u);
    EXPECT_EQ(vectors.bytes_written, 16000u);
    EXPECT_EQ(vectors.sectors_read, 500u);
    EXPECT_EQ(vectors.sectors_written, 500u);
    EXPECT_EQ(vectors.sector_efficiency_read(), 1.0);
    EXPECT_EQ(run_copy<float>(1000, 1, schedule).sectors_read, 125u);
    EXPECT_EQ(run_copy<uint16_t>(1024, 1, schedule).sectors_written, 64u);
  }
}

TEST(SimtTraffic, StridesAndOffsetsShow) {
  for (const uint64_t schedule : {0, 1}) {
    const simt::Launch two = run_copy<float>(1024, 2, schedule);
    EXPECT_EQ(two.bytes_read, 4096u);
    EXPECT_EQ(two.sector_efficiency_read(), 0.5);
    EXPECT_EQ(two.sector_efficiency_written(), 1.0);
    EXPECT_EQ(run_copy<float>(1024, 8, schedule).sector_efficiency_read(), 0.125);
    // Each warp touches one sector more.
    EXPECT_EQ(run_copy<float>(1024, 1, schedule, 1).sectors_read, 1024 / 32 * 5u);
  }
}

struct MixedParams {
  const float* table;
  const float* in;
  float* out;
  unsigned* count;
};

__global__ void mixed(const MixedParams params) {
  using Row = float4[32];
  SAGE_EXT_SHARED(Row, row);
  simt::on_uniform_load(params.table + blockIdx.x, 4);
  simt::on_uniform_load(params.table, 4);
  const float factor = params.table[blockIdx.x] + params.table[0];
  // Shared memory is not traffic.
  store(&row[threadIdx.x], float4{factor, 0, 0, 0});
  __syncthreads();
  for (int round = 0; round < 2; ++round) {
    if (threadIdx.x < 8) store(params.out + threadIdx.x, load(params.in + threadIdx.x) * load(&row[threadIdx.x].x));
    __syncthreads();
  }
  atomicAdd(params.count, 1u);
}

TEST(SimtTraffic, UniformSharedAndAtomic) {
  alignas(32) float table[4] = {1, 2, 3, 4}, in[8] = {}, out[8];
  unsigned count = 0;
  simt::Session session({.schedule = 0, .count_sectors = true});
  simt::launch("mixed", 4, 32, 0, nullptr, mixed, MixedParams{table, in, out, &count});
  ASSERT_EQ(cudaMemsetAsync(out, 0, sizeof(out)), cudaSuccess);
  ASSERT_EQ(session.launches().size(), 2u);
  const simt::Launch& launch = session.launches()[0];
  EXPECT_EQ(launch.uniform_bytes, 4 * (4 + 3u));  // block 0 loads one address twice
  EXPECT_EQ(launch.bytes_read, 4 * (2 * 8 + 32) * 4u);
  EXPECT_EQ(launch.bytes_written, 4 * (2 * 8 + 32) * 4u);
  EXPECT_EQ(launch.sectors_read, 4 * (2 + 1u));
  EXPECT_EQ(launch.atomics, 4 * 32u);
  EXPECT_EQ(launch.barriers, 4 * 3u);
  EXPECT_EQ(count, 128u);
  EXPECT_EQ(session.launches()[1].kernel, "cudaMemsetAsync");
  EXPECT_EQ(session.launches()[1].bytes_written, sizeof(out));
  EXPECT_EQ(out[7], 0.0f);
}

}  // namespace
