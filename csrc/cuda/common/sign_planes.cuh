#pragma once

#include "core/math/sign.h"
#include "core/sign_planes.h"
#include "cuda/common/elements.cuh"
#include "cuda/common/reduce.cuh"

// An element-wise pass over an array and the bit planes of signs beside it.
//
// A warp takes 256 elements at a time, a lane 16 bytes: its eight elements are a byte of each plane, so that the warp's
// bytes are one sector. No lane needs another's bits then, unlike with whole words. Of four-byte elements a lane has
// two vectors, 128 elements apart, for otherwise there would be gaps between the lanes' accesses: half a byte each,
// which two neighbours swap.
namespace sage_ext::cuda {

inline constexpr int kSignTile = 256;  // elements of a warp
inline constexpr int kSignBits = kSignTile / kWarpSize;

// The planes from a block's first element on, which is the first of a word.
struct SignPlanes {
  uint32_t* positive;
  uint32_t* negative;
  bool reads, writes;

  __device__ __forceinline__ SignPlanes(uint32_t* signs, int64_t numel, int64_t begin, bool reads, bool writes)
      : positive(signs + begin / kSignsPerWord),
        negative(positive + (numel + kSignsPerWord - 1) / kSignsPerWord),
        reads(reads),
        writes(writes) {}
};

// Eight signs: bit e of `bits` is set if element e is positive, bit 8 + e if it is negative.
__device__ __forceinline__ float sign_of_bits(uint32_t bits, int e) {
  const float positive = (bits >> e & 1u) != 0 ? 1.0f : 0.0f;
  return (bits >> (kSignBits + e) & 1u) != 0 ? -1.0f : positive;
}

// From the bits of a lane's elements, those of its first vector in the lower halves, to the two bytes that it loads or
// stores; and back, which is the same. Neighbours swap their bits of the vector that is the other's business.
template <int N>
__device__ __forceinline__ uint32_t swap_bits(uint32_t bits) {
  if constexpr (N == kSignBits) {
    return bits;
  } else {
    static_assert(2 * N == kSignBits);
    const bool is_odd = threadIdx.x % 2 != 0;
    const uint32_t given = (is_odd ? bits : bits >> N) & 0x0f0fu;
    const uint32_t taken = __shfl_xor_sync(~0u, given, 1);
    return is_odd ? (bits & 0xf0f0u) | taken : (bits & 0x0f0fu) | taken << N;
  }
}

// Where a lane's bytes lie among the 32 of a tile.
template <int N>
__device__ __forceinline__ int byte_of_lane(int lane) {
  return N == kSignBits ? lane : lane / 2 + lane % 2 * (kWarpSize / 2);
}

// For every element of the block's `count`, from `data` on: x = body(value, sign) where `value` is a reference to the
// element in fp32, which is stored again unless T is const, and `sign` is the one in the planes, 0 if they are not
// read; the sign of x takes its place, if the planes are written. end_group() follows on at most eight of them.
template <typename T, typename Body, typename EndGroup>
__device__ __forceinline__ void update_with_signs(T* data, const SignPlanes& planes, int count, const Body& body,
                                                  const EndGroup& end_group) {
  using Element = std::remove_const_t<T>;
  constexpr int kN = kVecSize<Element>;
  constexpr int kParts = kSignBits / kN;  // vectors of a lane
  constexpr int kU = 4 / kParts;          // tiles whose loads are in flight
  constexpr int kWarps = kMapThreads / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  auto* const positive = reinterpret_cast<uint8_t*>(planes.positive) + byte_of_lane<kN>(lane);
  auto* const negative = reinterpret_cast<uint8_t*>(planes.negative) + byte_of_lane<kN>(lane);

  const int tiles = is_vec_aligned(data) ? count / kSignTile : 0;
  for (int first = warp; first < tiles; first += kU * kWarps) {
    Pack<Element, kN> packs[kU][kParts];
    uint32_t old_bits[kU];
#pragma unroll
    for (int u = 0; u < kU; ++u) {
      const int tile = first + u * kWarps;
      if (tile >= tiles) continue;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        packs[u][part].load(data + tile * kSignTile + (part * kWarpSize + lane) * kN);
      }
      old_bits[u] = 0;
      if (planes.reads) {
        old_bits[u] = load_one(positive + tile * kWarpSize);
        old_bits[u] |= static_cast<uint32_t>(load_one(negative + tile * kWarpSize)) << kSignBits;
      }
    }
#pragma unroll
    for (int u = 0; u < kU; ++u) {
      const int tile = first + u * kWarps;
      if (tile >= tiles) continue;
      const uint32_t bits = swap_bits<kN>(old_bits[u]);
      uint32_t new_bits = 0;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        float values[kN];
        packs[u][part].unpack(values);
#pragma unroll
        for (int e = 0; e < kN; ++e) {
          const int bit = part * kN + e;
          const float x = body(values[e], sign_of_bits(bits, bit));
          if (x > 0.0f) new_bits |= 1u << bit;
          if (x < 0.0f) new_bits |= 1u << (kSignBits + bit);
        }
        if constexpr (!std::is_const_v<T>) {
          packs[u][part].pack(values);
          packs[u][part].store(data + tile * kSignTile + (part * kWarpSize + lane) * kN);
        }
      }
      end_group();
      if (planes.writes) {
        new_bits = swap_bits<kN>(new_bits);
        store_one(positive + tile * kWarpSize, static_cast<uint8_t>(new_bits));
        store_one(negative + tile * kWarpSize, static_cast<uint8_t>(new_bits >> kSignBits));
      }
    }
  }

  // What is left, or all: a word of each plane at a time, an element a lane. Lanes 0 and 1 have the words.
  uint32_t* const words = lane == 0 ? planes.positive : planes.negative;
#pragma unroll 1
  for (int begin = tiles * kSignTile + warp * kWarpSize; begin < count; begin += kMapThreads) {
    const int i = begin + lane;
    const bool exists = i < count;
    float value = exists ? to_float(load_one(data + i)) : 0.0f;
    uint32_t word = planes.reads && lane < 2 ? load_one(words + begin / kSignsPerWord) : 0;
    const uint32_t old_positive = __shfl_sync(~0u, word, 0);
    const uint32_t old_negative = __shfl_sync(~0u, word, 1);
    float x = 0.0f;
    if (exists) {
      x = body(value, sign_at(old_positive, old_negative, lane));
      end_group();
      if constexpr (!std::is_const_v<T>) store_one(data + i, from_float<Element>(value));
    }
    if (!planes.writes) continue;
    const uint32_t new_positive = __ballot_sync(~0u, x > 0.0f);
    const uint32_t new_negative = __ballot_sync(~0u, x < 0.0f);
    if (lane < 2) store_one(words + begin / kSignsPerWord, lane == 0 ? new_positive : new_negative);
  }
}

}  // namespace sage_ext::cuda
