#include "cpu/vote.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <type_traits>

#include "core/math/vote.h"
#include "cpu/common/isa.h"
#include "cpu/common/map.h"
#include "cpu/common/x86_intrinsics.h"

namespace sage_ext::cpu {

// The two planes of a range of coordinates.
struct VotePlanes {
  uint32_t* up;
  uint32_t* down;
};

using PackChunk = void (*)(const void* grad, void* exp_avg, int64_t count, const MomentumCoefficients&, VotePlanes);
using UnpackChunk = void (*)(const uint32_t* up, const uint32_t* down, void* grad, int64_t count);

inline constexpr int64_t kCountTile = 64;  // words whose counts stay in the first-level cache

}  // namespace sage_ext::cpu

#define SAGE_EXT_ISA_SOURCE "cpu/vote_kernels.inl"
#include "cpu/common/foreach_isa.inl"

namespace sage_ext::cpu {

namespace {

// body(piece, begin, size, range) for chunks of the pieces of a vote: `size` coordinates of a piece from `begin` on, of
// which those of `range` exist.
template <typename Body>
void for_chunks(int64_t numel, int64_t voters, int64_t words, int threads, const Body& body) {
  const int64_t size = words * kSignsPerWord;
  const int64_t chunks = ceil_div(size, kMapChunk);
  parallel_tasks(voters * chunks, threads, [&](int64_t task) {
    const int64_t piece = task / chunks;
    const int64_t begin = task % chunks * kMapChunk;
    const int64_t here = std::min(kMapChunk, size - begin);
    body(piece, begin, here, vote_range(piece, words, begin, here, numel));
  });
}

}  // namespace

void pack_votes(const Ballot& ballot, const MomentumCoefficients& momentum, uint32_t* packed, int64_t voters,
                int64_t words, int threads) {
  const PackChunk pack = SAGE_EXT_FOR_ACTIVE_ISA(select_pack_chunk(ballot));
  const auto* grad = static_cast<const std::byte*>(ballot.grad);
  auto* exp_avg = static_cast<std::byte*>(ballot.exp_avg);
  const auto at = [](auto* data, int64_t element, DType dtype) {
    return data == nullptr ? nullptr : data + element * itemsize(dtype);
  };
  for_chunks(ballot.numel, voters, words, threads,
             [&](int64_t piece, int64_t begin, int64_t size, const VoteRange& range) {
               uint32_t* const up = packed + 2 * words * piece + begin / kSignsPerWord;
               const VotePlanes planes{up, up + words};
               if (range.count > 0) {
                 pack(at(grad, range.begin, ballot.grad_dtype), at(exp_avg, range.begin, ballot.exp_avg_dtype),
                      range.count, momentum, planes);
               }
               const int64_t written = sign_words(range.count);
               for (uint32_t* plane : {planes.up, planes.down}) {
                 std::fill(plane + written, plane + size / kSignsPerWord, 0u);
               }
             });
}

void count_votes(const uint32_t* received, uint32_t* result, int64_t voters, int64_t words, int threads) {
  parallel_tasks(ceil_div(words, kCountTile), threads, [&](int64_t tile) {
    const int64_t begin = tile * kCountTile;
    SAGE_EXT_FOR_ACTIVE_ISA(
        count_tile(received + begin, result + begin, voters, words, std::min(kCountTile, words - begin)));
  });
}

void unpack_votes(const uint32_t* packed, void* grad, DType dtype, int64_t numel, int64_t voters, int64_t words,
                  int threads) {
  const UnpackChunk unpack = SAGE_EXT_FOR_ACTIVE_ISA(select_unpack_chunk(dtype));
  for_chunks(numel, voters, words, threads, [&](int64_t piece, int64_t begin, int64_t, const VoteRange& range) {
    if (range.count == 0) return;
    const uint32_t* const up = packed + 2 * words * piece + begin / kSignsPerWord;
    unpack(up, up + words, static_cast<std::byte*>(grad) + range.begin * itemsize(dtype), range.count);
  });
}

}  // namespace sage_ext::cpu
