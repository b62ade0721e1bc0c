#pragma once

#include <algorithm>

#include "core/math/vote.h"
#include "cuda/common/elements.cuh"
#include "cuda/common/sign_planes.cuh"

// Passes over arrays and the two bit planes of votes on their elements, in the tiles of sign_planes.cuh: there an array
// and its signs go along, here planes are made of several arrays, or an array of planes.
namespace sage_ext::cuda {

// What a thread of such a pass has: its warp's first tile and its place in it.
template <int N>
struct TilePlace {
  static constexpr int kParts = kSignBits / N;  // vectors of a lane
  static constexpr int kWarps = kMapThreads / kWarpSize;
  int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  int warp = static_cast<int>(threadIdx.x) / kWarpSize;

  __device__ __forceinline__ int element(int tile, int part) const {
    return tile * kSignTile + (part * kWarpSize + lane) * N;
  }
  __device__ __forceinline__ int byte(int tile) const { return tile * kWarpSize + byte_of_lane<N>(lane); }
};

// Tiles of several arrays whose loads are all in flight before the first is used.
template <typename... T>
inline constexpr int kTilesInFlight = std::max(1, kGroupsInFlight<T...> / TilePlace<kGroupSize<T...>>::kParts);

// An operand that is written without having been read.
template <typename T, int N>
struct WrittenOperand {
  T* data;
  bool aligned;
  float values[N];

  __device__ __forceinline__ explicit WrittenOperand(T* chunk) : data(chunk), aligned(Pack<T, N>::is_aligned(chunk)) {}

  __device__ __forceinline__ void store(int i) {
    Pack<T, N> pack;
    pack.pack(values);
    static_assert(Pack<T, N>::kWords == 1);
    store_whole(data + i, pack.words[0]);
  }
  __device__ __forceinline__ void store_one(int i) { cuda::store_one(data + i, from_float<T>(values[0])); }
};

// The votes of `count` elements: vote = body(values...), with references to fp32 values as update_elements() has them.
// The operands have slots for U tiles.
template <int N, int U, typename Body, typename... Operands>
__device__ __forceinline__ void pack_tiles(uint32_t* up, uint32_t* down, int count, const Body& body,
                                           Operands... operands) {
  using Place = TilePlace<N>;
  const Place place;
  auto* const up_bytes = reinterpret_cast<uint8_t*>(up);
  auto* const down_bytes = reinterpret_cast<uint8_t*>(down);
  const int tiles = (operands.aligned && ...) ? count / kSignTile : 0;
  for (int first = place.warp; first < tiles; first += U * Place::kWarps) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int tile = first + u * Place::kWarps;
      if (tile >= tiles) continue;
#pragma unroll
      for (int part = 0; part < Place::kParts; ++part) {
        (operands.load(u * Place::kParts + part, place.element(tile, part)), ...);
      }
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int tile = first + u * Place::kWarps;
      if (tile >= tiles) continue;
      uint32_t bits = 0;
#pragma unroll
      for (int part = 0; part < Place::kParts; ++part) {
        (operands.unpack(u * Place::kParts + part), ...);
#pragma unroll
        for (int e = 0; e < N; ++e) {
          const float vote = body(operands.values[e]...);
          if (votes_up(vote)) bits |= 1u << (part * N + e);
          if (votes_down(vote)) bits |= 1u << (kSignBits + part * N + e);
        }
        (operands.store(u * Place::kParts + part, place.element(tile, part)), ...);
      }
      bits = swap_bits<N>(bits);
      store_one(up_bytes + place.byte(tile), static_cast<uint8_t>(bits));
      store_one(down_bytes + place.byte(tile), static_cast<uint8_t>(bits >> kSignBits));
    }
  }

  // What is left, or all: a word of each plane at a time, an element a lane. Lanes 0 and 1 have the words.
#pragma unroll 1
  for (int begin = tiles * kSignTile + place.warp * kWarpSize; begin < count; begin += kMapThreads) {
    const int i = begin + place.lane;
    float vote = 0.0f;
    if (i < count) {
      (operands.load_one(i), ...);
      vote = body(operands.values[0]...);
      (operands.store_one(i), ...);
    }
    const uint32_t up_word = __ballot_sync(~0u, votes_up(vote));
    const uint32_t down_word = __ballot_sync(~0u, votes_down(vote));
    if (place.lane < 2) {
      store_one((place.lane == 0 ? up : down) + begin / kSignsPerWord, place.lane == 0 ? up_word : down_word);
    }
  }
}

// The numbers that the votes on `count` elements stand for.
template <int N, int U, typename T>
__device__ __forceinline__ void unpack_tiles(const uint32_t* up, const uint32_t* down, int count,
                                             WrittenOperand<T, N> operand) {
  using Place = TilePlace<N>;
  const Place place;
  const auto* const up_bytes = reinterpret_cast<const uint8_t*>(up);
  const auto* const down_bytes = reinterpret_cast<const uint8_t*>(down);
  const int tiles = operand.aligned ? count / kSignTile : 0;
  for (int first = place.warp; first < tiles; first += U * Place::kWarps) {
    uint32_t loaded[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int tile = first + u * Place::kWarps;
      if (tile >= tiles) continue;
      loaded[u] = load_one(up_bytes + place.byte(tile));
      loaded[u] |= static_cast<uint32_t>(load_one(down_bytes + place.byte(tile))) << kSignBits;
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int tile = first + u * Place::kWarps;
      if (tile >= tiles) continue;
      const uint32_t bits = swap_bits<N>(loaded[u]);
#pragma unroll
      for (int part = 0; part < Place::kParts; ++part) {
#pragma unroll
        for (int e = 0; e < N; ++e) {
          const int bit = part * N + e;
          operand.values[e] = vote_value((bits >> bit & 1u) != 0, (bits >> (kSignBits + bit) & 1u) != 0);
        }
        operand.store(place.element(tile, part));
      }
    }
  }

#pragma unroll 1
  for (int begin = tiles * kSignTile + place.warp * kWarpSize; begin < count; begin += kMapThreads) {
    uint32_t word = place.lane < 2 ? load_one((place.lane == 0 ? up : down) + begin / kSignsPerWord) : 0;
    const uint32_t up_word = __shfl_sync(~0u, word, 0);
    const uint32_t down_word = __shfl_sync(~0u, word, 1);
    const int i = begin + place.lane;
    if (i >= count) continue;
    operand.values[0] = vote_value((up_word >> place.lane & 1u) != 0, (down_word >> place.lane & 1u) != 0);
    operand.store_one(i);
  }
}

}  // namespace sage_ext::cuda
