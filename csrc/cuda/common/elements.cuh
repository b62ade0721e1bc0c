#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/common/vec128.cuh"

// Element-wise passes: a block updates one chunk of a tensor, 16 bytes of its widest array a thread at a time.
namespace sage_ext::cuda {

inline constexpr int kMapThreads = 256;
inline constexpr int64_t kMapChunk = 16384;  // elements of a block

// Elements that a thread takes at once: 16 bytes of the widest type. More of them would leave gaps between the lanes'
// accesses to that array.
template <typename... T>
inline constexpr int kGroupSize = std::min({kVecSize<std::remove_const_t<T>>...});

// Groups whose loads are all in flight before the first is used: about 96 bytes a thread.
template <typename... T>
inline constexpr int kGroupsInFlight = std::max<int>(1, 96 / (kGroupSize<T...> * (static_cast<int>(sizeof(T)) + ...)));

// An operand of update_elements(): N values at a time, with U groups of N in flight. Operands are classes with
//   load(u, i), unpack(u), store(u, i)   for the group of elements [i, i + N), kept in slot u until it is used;
//   load_one(i), store_one(i)            for element i alone, which is values[0];
// where i counts from the first element of the block's chunk.
//
// This one is an array in global memory; it is written back unless T is const.
template <typename T, int N, int U>
struct ArrayOperand {
  using Element = std::remove_const_t<T>;
  T* data;  // of the chunk's first element
  bool aligned;
  Pack<Element, N> packs[U];
  float values[N];

  __device__ __forceinline__ explicit ArrayOperand(T* chunk)
      : data(chunk), aligned(Pack<Element, N>::is_aligned(chunk)) {}

  __device__ __forceinline__ void load(int u, int i) { packs[u].load(data + i); }
  __device__ __forceinline__ void unpack(int u) { packs[u].unpack(values); }
  __device__ __forceinline__ void store(int, int i) {
    if constexpr (!std::is_const_v<T>) {
      Pack<Element, N> pack;
      pack.pack(values);
      pack.store(data + i);
    }
  }
  __device__ __forceinline__ void load_one(int i) { values[0] = to_float(cuda::load_one(data + i)); }
  __device__ __forceinline__ void store_one(int i) {
    if constexpr (!std::is_const_v<T>) cuda::store_one(data + i, from_float<Element>(values[0]));
  }
};

// An operand that is not kept, but added up: in fp32 over a group, in fp64 beyond.
template <int N>
struct SumOperand {
  static constexpr bool aligned = true;
  double& sum;
  float values[N];

  __device__ __forceinline__ explicit SumOperand(double& sum) : sum(sum) {}

  __device__ __forceinline__ void load(int, int) {}
  __device__ __forceinline__ void unpack(int) {}
  __device__ __forceinline__ void store(int, int) {
    float group = values[0];
#pragma unroll
    for (int e = 1; e < N; ++e) group += values[e];
    sum += static_cast<double>(group);
  }
  __device__ __forceinline__ void load_one(int) {}
  __device__ __forceinline__ void store_one(int) { sum += static_cast<double>(values[0]); }
};

// The part of a tensor that is one block's: chunks start where a vector of the parameter starts, `head` elements
// into the tensor. Those first elements are block 0's as well.
struct BlockElements {
  int64_t begin;
  int count;
  int head;
};

template <typename T>
__device__ __forceinline__ BlockElements elements_of_block(const T* param, int64_t numel, int64_t block,
                                                           int64_t chunk = kMapChunk) {
  const int64_t to_alignment = elements_to_alignment(param);
  const int64_t head = to_alignment < numel ? to_alignment : numel;
  const int64_t begin = head + block * chunk;
  const int64_t left = begin < numel ? numel - begin : 0;
  return {begin, static_cast<int>(left < chunk ? left : chunk), block == 0 ? static_cast<int>(head) : 0};
}

// body(values...) for every element of the chunk: fp32 values, one reference for each operand; what it leaves in
// the operands that are written is rounded once and stored. Where an operand's chunk starts off a 16-byte boundary
// (a gradient in a bucket of another layout), all go element by element, which still is coalesced.
template <int N, int U, typename Body, typename... Operands>
__device__ __forceinline__ void update_elements(const BlockElements& range, const Body& body, Operands... operands) {
  const int groups = (operands.aligned && ...) ? range.count / N : 0;
  for (int first = static_cast<int>(threadIdx.x); first < groups; first += U * kMapThreads) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int group = first + u * kMapThreads;
      if (group < groups) (operands.load(u, group * N), ...);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int group = first + u * kMapThreads;
      if (group < groups) {
        (operands.unpack(u), ...);
#pragma unroll
        for (int e = 0; e < N; ++e) body(operands.values[e]...);
        (operands.store(u, group * N), ...);
      }
    }
  }
  const auto one = [&](int i) {
    (operands.load_one(i), ...);
    body(operands.values[0]...);
    (operands.store_one(i), ...);
  };
#pragma unroll 1
  for (int i = groups * N + static_cast<int>(threadIdx.x); i < range.count; i += kMapThreads) one(i);
  // Block 0's chunk starts at `head`, so the elements before it have negative places.
  if (static_cast<int>(threadIdx.x) < range.head) one(static_cast<int>(threadIdx.x) - range.head);
}

}  // namespace sage_ext::cuda
