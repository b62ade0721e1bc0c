// Barriers, shared memory and atomics: what the emulator computes for kernels that are right.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "simt/simt.h"

namespace {

// ---- blocks ------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float warp_sum(float value) {
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_down_sync(~0u, value, distance);
  return value;
}

__device__ __forceinline__ float block_sum(float value) {
  using Row = float[32];
  SAGE_EXT_SHARED(Row, partial);
  SAGE_EXT_SHARED(float, total);
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  value = warp_sum(value);
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  if (warp == 0) {
    value = warp_sum(lane < blockDim.x / 32 ? partial[lane] : 0.0f);
    if (lane == 0) total = value;
  }
  __syncthreads();
  return total;
}

__device__ __forceinline__ unsigned block_exclusive_scan(unsigned value) {
  using Row = unsigned[32];
  SAGE_EXT_SHARED(Row, sums);
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  unsigned inclusive = value;
  for (unsigned distance = 1; distance < 32; distance *= 2) {
    const unsigned before = __shfl_up_sync(~0u, inclusive, distance);
    if (lane >= distance) inclusive += before;
  }
  if (lane == 31) sums[warp] = inclusive;
  __syncthreads();
  unsigned offset = 0;
  for (unsigned w = 0; w < warp; ++w) offset += sums[w];
  return offset + inclusive - value;
}

struct SumParams {
  const float* in;
  float* partial;
  unsigned* arrived;
  float* sum;
  unsigned* scan;
};

// The last block to arrive adds the blocks' sums.
__global__ void __launch_bounds__(256) sum_all(const SumParams __grid_constant__ params) {
  SAGE_EXT_SHARED(bool, is_last);
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  simt::on_load(params.in + i, 4);
  const float sum = block_sum(params.in[i]);
  params.scan[i] = block_exclusive_scan(threadIdx.x + 1);
  if (threadIdx.x == 0) {
    params.partial[blockIdx.x] = sum;
    __threadfence();
    is_last = atomicAdd(params.arrived, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) return;
  const float total = block_sum(threadIdx.x < gridDim.x ? params.partial[threadIdx.x] : 0.0f);
  if (threadIdx.x == 0) *params.sum = total;
}

TEST(Simt, ReductionScanAndLastBlock) {
  constexpr unsigned kBlocks = 20, kThreads = 256;
  const simt::Comparison same = simt::same_under_schedules([&] {
    std::vector<float> in(kBlocks * kThreads), partial(kBlocks);
    std::iota(in.begin(), in.end(), 0.0f);
    std::vector<unsigned> scan(in.size());
    unsigned arrived = 0;
    float sum = -1;
    simt::poison(partial.data(), partial.size() * sizeof(float));
    simt::launch("sum_all", kBlocks, kThreads, 0, nullptr, sum_all,
                 SumParams{in.data(), partial.data(), &arrived, &sum, scan.data()});
    EXPECT_EQ(sum, static_cast<float>(in.size() * (in.size() - 1) / 2));
    EXPECT_EQ(arrived, kBlocks);
    for (unsigned i = 0; i < scan.size(); ++i) EXPECT_EQ(scan[i], i % kThreads * (i % kThreads + 1) / 2);
    const simt::Launch& launch = simt::Session::current()->launches().back();
    EXPECT_EQ(launch.atomics, kBlocks);
    EXPECT_EQ(launch.bytes_read, 4 * in.size() + 4 * kBlocks);
    EXPECT_EQ(launch.bytes_written, 4 * kBlocks);
    // is_last, partial, total, sums: both calls of block_sum have the same variables.
    EXPECT_EQ(launch.shared_bytes, 4 + 32 * 4 + 4 + 32 * 4u);
    std::vector<std::byte> bytes;
    simt::append_bytes(bytes, &sum, 1);
    simt::append_bytes(bytes, scan.data(), scan.size());
    return bytes;
  });
  EXPECT_TRUE(same) << same;
}

struct VoteParams {
  int* out;
};

__global__ void barrier_votes(const VoteParams params) {
  const int i = static_cast<int>(threadIdx.x);
  const int count = __syncthreads_count(i % 3 == 0);
  const int any = __syncthreads_or(i == 63), none = __syncthreads_or(i == 64);
  const int all = __syncthreads_and(i < 64), not_all = __syncthreads_and(i != 63);
  params.out[i] = count * 10000 + any * 1000 + none * 100 + all * 10 + not_all;
}

TEST(Simt, BarrierVotes) {
  for (const uint64_t schedule : {0, 1, 2, 3}) {
    simt::Session session({.schedule = schedule});
    std::vector<int> out(64);
    simt::launch("barrier_votes", 1, 64, 0, nullptr, barrier_votes, VoteParams{out.data()});
    for (const int value : out) EXPECT_EQ(value, 221010);
    EXPECT_EQ(session.launches()[0].barriers, 5u);
  }
}

struct ReverseParams {
  const uint64_t* in;
  uint64_t* out;
  int* fresh;
};

template <int kUnused>
__global__ void reverse(const ReverseParams __grid_constant__ params) {
  SAGE_EXT_DYNAMIC_SHARED(uint64_t, buffer);
  SAGE_EXT_SHARED(float, untouched);
  const unsigned base = blockIdx.x * blockDim.x, i = threadIdx.x;
  if (i == 0) params.fresh[blockIdx.x] = buffer[0] == ~uint64_t{0} && std::isnan(untouched);
  __syncthreads();
  untouched = 0;  // by all, with the same value
  buffer[i] = params.in[base + i];
  __syncthreads();
  params.out[base + i] = buffer[blockDim.x - 1 - i];
}

TEST(Simt, SharedMemoryIsPoisonedForEachBlock) {
  std::vector<uint64_t> in(4 * 96), out(4 * 96);
  std::vector<int> fresh(4);
  std::iota(in.begin(), in.end(), 0);
  simt::Session session({.schedule = 3});
  simt::launch("reverse", 4, 96, 96 * 8, nullptr, reverse<0>, ReverseParams{in.data(), out.data(), fresh.data()});
  for (size_t i = 0; i < in.size(); ++i) ASSERT_EQ(out[i], in[i / 96 * 96 + 95 - i % 96]);
  EXPECT_EQ(fresh, std::vector<int>(4, 1));
  EXPECT_EQ(session.launches()[0].shared_bytes, 96 * 8 + 4u);
}

// Whatever a parameter's size, and more than a page of a thread's own memory.
struct LargeParams {
  std::array<int, 8000> values;
  int* out;
};

__global__ void large(const LargeParams __grid_constant__ params) {
  std::array<int, 2000> local;
  local.fill(static_cast<int>(threadIdx.x));
  __syncthreads();
  params.out[threadIdx.x] = params.values[threadIdx.x] + std::accumulate(local.begin(), local.end(), 0);
}

TEST(Simt, LargestBlockWithLargeParameters) {
  std::vector<int> out(1024);
  LargeParams params{{}, out.data()};
  std::iota(params.values.begin(), params.values.end(), 0);
  simt::launch("large", 1, 1024, 0, nullptr, large, params);
  for (int i = 0; i < 1024; ++i) ASSERT_EQ(out[i], 2001 * i);
}

// ---- atomics -----------------------------------------------------------------------------------------------------

template <typename T>
struct AtomicParams {
  T* sum;
  T* maximum;
  T* minimum;
  T* bits;
  T* exchanged;
  T* counter;
};

template <typename T>
__global__ void atomics(const AtomicParams<T> params) {
  const T i = static_cast<T>(blockIdx.x * blockDim.x + threadIdx.x);
  SAGE_EXT_SHARED(T, in_block);
  if (threadIdx.x == 0) in_block = 0;
  __syncthreads();
  atomicAdd(&in_block, T{2});
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(params.sum, in_block);
  atomicMax(params.maximum, i);
  atomicMin(params.minimum, i);
  atomicOr(params.bits, i);
  atomicExch(params.exchanged, T{7});
  T seen = 0, old;
  while ((old = atomicCAS(params.counter, seen, seen + 1)) != seen) seen = old;
}

template <typename T>
void check_atomics() {
  for (const uint64_t schedule : {0, 1, 2}) {
    simt::Session session({.schedule = schedule});
    T sum = 0, maximum = 0, minimum = 1000, bits = 0, exchanged = 0, counter = 0;
    simt::launch("atomics", 4, 50, 0, nullptr, atomics<T>,
                 AtomicParams<T>{&sum, &maximum, &minimum, &bits, &exchanged, &counter});
    EXPECT_EQ(sum, T{400});
    EXPECT_EQ(maximum, T{199});
    EXPECT_EQ(minimum, T{0});
    EXPECT_EQ(bits, T{255});
    EXPECT_EQ(exchanged, T{7});
    EXPECT_EQ(counter, T{200});
  }
}

TEST(Simt, Atomics) {
  check_atomics<int>();
  check_atomics<unsigned>();
  check_atomics<unsigned long long>();
}

}  // namespace
