#pragma once

#include <limits>

#include "core/math/common.h"
#include "cuda/common/shared.cuh"

// Sums in a fixed order: trees over lanes and warps, never atomics.
namespace sage_ext::cuda {

inline constexpr int kWarpSize = 32;

// sum + x^2 with one rounding.
__device__ __forceinline__ float add_square(float sum, float x) { return fmaf(x, x, sum); }
__device__ __forceinline__ double add_square(double sum, double x) { return fma(x, x, sum); }

// The sum over `width` neighbouring lanes, a power of two, in each of them. All lanes of the warp call it.
template <typename T>
__device__ __forceinline__ T lane_sum(T value, int width) {
  for (int mask = width / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(~0u, value, mask);
  return value;
}

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(~0u, value, mask);
  return value;
}

template <typename T>
inline constexpr T kInfinity = std::numeric_limits<T>::infinity();

// The larger one; NaN, if either is.
__device__ __forceinline__ float nan_max(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
#else
  return a > b || a != a ? a : b;
#endif
}
__device__ __forceinline__ double nan_max(double a, double b) { return keep_nan_max(a, b); }

// N values of all threads of the block, combined by combine(a, b), in every thread. All kThreads threads call it.
template <int kThreads, typename T, int N, typename Combine>
__device__ __forceinline__ void block_reduce(T (&values)[N], const Combine& combine) {
  constexpr int kWarps = kThreads / kWarpSize;
  using Parts = T[kWarps][N];
  SAGE_EXT_SHARED(Parts, parts);
  const auto warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const bool first_lane = threadIdx.x % kWarpSize == 0;
  __syncthreads();  // the values before these may still be read
#pragma unroll
  for (int i = 0; i < N; ++i) {
#pragma unroll
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
      values[i] = combine(values[i], __shfl_xor_sync(~0u, values[i], mask));
    }
    if (first_lane) parts[warp][i] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) {
    values[i] = parts[0][i];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) values[i] = combine(values[i], parts[w][i]);
  }
}

template <int kThreads, typename T, int N>
__device__ __forceinline__ void block_sum(T (&values)[N]) {
  block_reduce<kThreads>(values, [](T a, T b) { return a + b; });
}

// Whether this block is the last of `blocks` to come here; the last one sees what thread 0 of the others stored before,
// and all of their threads did before a barrier. All threads of the block call it; `finished` begins with 0.
__device__ __forceinline__ bool is_last_block(unsigned* finished, unsigned blocks) {
  SAGE_EXT_SHARED(bool, is_last);
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicAdd(finished, 1u) + 1 == blocks;
    __threadfence();
  }
  __syncthreads();
  return is_last;
}

// A NaN wins.
template <int kThreads, typename T, int N>
__device__ __forceinline__ void block_max(T (&values)[N]) {
  block_reduce<kThreads>(values, [](T a, T b) { return nan_max(a, b); });
}

}  // namespace sage_ext::cuda
