#include "cuda/vote.h"

#include <bit>

#include "core/math/vote.h"
#include "cuda/common/launch.h"
#include "cuda/vote_tiles.cuh"

namespace sage_ext::cuda {

namespace {

// A vote cut into blocks: those of a piece, then those of the next.
struct Pieces {
  int64_t numel, words;
  int64_t blocks;  // of a piece
};

Pieces cut(int64_t numel, int64_t words) { return {numel, words, ceil_div(words * kSignsPerWord, kMapChunk)}; }

// A block's part of a piece: `size` coordinates from `begin` on, and those of them that exist.
struct BlockPart {
  int64_t word;  // of the plane of votes up, in all pieces
  int size;
  VoteRange range;
};

__device__ __forceinline__ BlockPart part_of_block(const Pieces& pieces) {
  const int64_t piece = blockIdx.x / pieces.blocks;
  const int64_t begin = blockIdx.x % pieces.blocks * kMapChunk;
  const int64_t left = pieces.words * kSignsPerWord - begin;
  const int64_t size = left < kMapChunk ? left : kMapChunk;
  return {2 * pieces.words * piece + begin / kSignsPerWord, static_cast<int>(size),
          vote_range(piece, pieces.words, begin, size, pieces.numel)};
}

struct PackParams {
  Pieces pieces;
  const void* grad;
  void* exp_avg;
  uint32_t* packed;
  MomentumCoefficients momentum;
};

// The words behind the last coordinate.
__device__ __forceinline__ void clear_rest(uint32_t* up, uint32_t* down, int64_t count, int size) {
  const int64_t written = (count + kSignsPerWord - 1) / kSignsPerWord;
#pragma unroll 1
  for (int i = static_cast<int>(written) + static_cast<int>(threadIdx.x); i < size / kSignsPerWord; i += kMapThreads) {
    store_one(up + i, 0u);
    store_one(down + i, 0u);
  }
}

template <typename G>
__global__ void __launch_bounds__(kMapThreads) pack_votes_kernel(const PackParams __grid_constant__ params) {
  const BlockPart part = part_of_block(params.pieces);
  uint32_t* const up = params.packed + part.word;
  uint32_t* const down = up + params.pieces.words;
  constexpr int kN = kGroupSize<G>;
  constexpr int kU = 4 / TilePlace<kN>::kParts;
  pack_tiles<kN, kU>(
      up, down, static_cast<int>(part.range.count),
      [](float g) {
        make_vote(g);
        return g;
      },
      ArrayOperand<const G, kN, kU * TilePlace<kN>::kParts>(static_cast<const G*>(params.grad) + part.range.begin));
  clear_rest(up, down, part.range.count, part.size);
}

template <typename G, typename M>
__global__ void __launch_bounds__(kMapThreads) pack_momentum_kernel(const PackParams __grid_constant__ params) {
  const BlockPart part = part_of_block(params.pieces);
  uint32_t* const up = params.packed + part.word;
  uint32_t* const down = up + params.pieces.words;
  const MomentumCoefficients momentum = params.momentum;
  constexpr int kN = kGroupSize<G, M>;
  constexpr int kU = kTilesInFlight<G, M>;
  constexpr int kSlots = kU * TilePlace<kN>::kParts;
  pack_tiles<kN, kU>(
      up, down, static_cast<int>(part.range.count),
      [momentum](float g, float& m) {
        make_vote(g, m, momentum);
        return g;
      },
      ArrayOperand<const G, kN, kSlots>(static_cast<const G*>(params.grad) + part.range.begin),
      ArrayOperand<M, kN, kSlots>(static_cast<M*>(params.exp_avg) + part.range.begin));
  clear_rest(up, down, part.range.count, part.size);
}

struct CountParams {
  const uint32_t* received;
  uint32_t* result;
  int64_t voters, words;
};

// A thread counts the votes on kVoteWords words of coordinates. kDigits are enough for 2 * voters.
template <int kDigits>
__global__ void __launch_bounds__(kMapThreads) count_votes_kernel(const CountParams __grid_constant__ params) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kMapThreads + threadIdx.x) * kVoteWords;
  if (first >= params.words) return;
  uint32_t digits[kVoteWords][kDigits] = {};
  uint32_t not_finite[kVoteWords] = {};
#pragma unroll 4
  for (int64_t voter = 0; voter < params.voters; ++voter) {
    const uint32_t* const piece = params.received + 2 * params.words * voter + first;
    const auto up = load_vec<uint4>(piece);
    const auto down = load_vec<uint4>(piece + params.words);
    const uint32_t ups[] = {up.x, up.y, up.z, up.w};
    const uint32_t downs[] = {down.x, down.y, down.z, down.w};
#pragma unroll
    for (int i = 0; i < kVoteWords; ++i) {
      not_finite[i] |= ups[i] & downs[i];
      for (uint32_t carry : {ups[i], ~downs[i]}) {
#pragma unroll
        for (int b = 0; b < kDigits; ++b) add_digit(digits[i][b], carry);
      }
    }
  }
  uint32_t ups[kVoteWords], downs[kVoteWords];
#pragma unroll
  for (int i = 0; i < kVoteWords; ++i) {
    Majority majority{0, 0};
#pragma unroll
    for (int b = kDigits - 1; b >= 0; --b) majority.compare_digit(digits[i][b], (params.voters >> b & 1) != 0);
    ups[i] = majority.up | not_finite[i];
    downs[i] = majority.down | not_finite[i];
  }
  store_vec(params.result + first, uint4{ups[0], ups[1], ups[2], ups[3]});
  store_vec(params.result + params.words + first, uint4{downs[0], downs[1], downs[2], downs[3]});
}

struct UnpackParams {
  Pieces pieces;
  const uint32_t* packed;
  void* grad;
};

template <typename G>
__global__ void __launch_bounds__(kMapThreads) unpack_votes_kernel(const UnpackParams __grid_constant__ params) {
  const BlockPart part = part_of_block(params.pieces);
  const uint32_t* const up = params.packed + part.word;
  constexpr int kN = kGroupSize<G>;
  unpack_tiles<kN, 4>(up, up + params.pieces.words, static_cast<int>(part.range.count),
                      WrittenOperand<G, kN>(static_cast<G*>(params.grad) + part.range.begin));
}

}  // namespace

void pack_votes(const Ballot& ballot, const MomentumCoefficients& momentum, uint32_t* packed, int64_t voters,
                int64_t words, cudaStream_t stream) {
  const PackParams params{cut(ballot.numel, words), ballot.grad, ballot.exp_avg, packed, momentum};
  const int64_t blocks = voters * params.pieces.blocks;
  if (ballot.exp_avg == nullptr) {
    visit_dtypes(
        [&](auto g) {
          launch("pack_votes", &pack_votes_kernel<typename decltype(g)::type>, blocks, kMapThreads, stream, params);
        },
        ballot.grad_dtype);
    return;
  }
  visit_dtypes(
      [&](auto g, auto m) {
        launch("pack_momentum", &pack_momentum_kernel<typename decltype(g)::type, typename decltype(m)::type>, blocks,
               kMapThreads, stream, params);
      },
      ballot.grad_dtype, ballot.exp_avg_dtype);
}

void count_votes(const uint32_t* received, uint32_t* result, int64_t voters, int64_t words, cudaStream_t stream) {
  const CountParams params{received, result, voters, words};
  const int64_t blocks = ceil_div(words / kVoteWords, kMapThreads);
  const auto run = [&](auto* kernel) { launch("count_votes", kernel, blocks, kMapThreads, stream, params); };
  const int digits = std::bit_width(static_cast<uint64_t>(2 * voters));
  if (digits <= 5) return run(&count_votes_kernel<5>);  // up to 15 voters
  if (digits <= 8) return run(&count_votes_kernel<8>);  // up to 127
  run(&count_votes_kernel<20>);
}

void unpack_votes(const uint32_t* packed, void* grad, DType dtype, int64_t numel, int64_t voters, int64_t words,
                  cudaStream_t stream) {
  const UnpackParams params{cut(numel, words), packed, grad};
  visit_dtypes(
      [&](auto g) {
        launch("unpack_votes", &unpack_votes_kernel<typename decltype(g)::type>, voters * params.pieces.blocks,
               kMapThreads, stream, params);
      },
      dtype);
}

}  // namespace sage_ext::cuda
