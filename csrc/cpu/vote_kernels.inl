#include "cpu/common/blocks.inl"

namespace {

// Of the two planes one word each. M is void without momentum.
template <typename G, typename M>
SAGE_EXT_INLINE void pack_block(const G* grad, M* exp_avg, const MomentumCoefficients& momentum, uint32_t& up_word,
                                uint32_t& down_word) {
  uint32_t up = 0;
  uint32_t down = 0;
  SAGE_EXT_FOR_PARTS {
    Floats vote;
    load_part(grad + k * kLanes, vote);
    if constexpr (std::is_void_v<M>) {
      make_vote(vote);
    } else {
      Floats m;
      load_part(exp_avg + k * kLanes, m);
      make_vote(vote, m, momentum);
      store_part(exp_avg + k * kLanes, m);
    }
    // A NaN counts as both.
    const Masks finite = vote == vote;
    up |= positive_bits(finite ? vote : Floats{} + 1.0f) << (k * kLanes);
    down |= negative_bits(finite ? vote : Floats{} - 1.0f) << (k * kLanes);
  }
  up_word = up;
  down_word = down;
}

template <typename G, typename M>
void pack_chunk(const void* grad_data, void* exp_avg_data, int64_t count, const MomentumCoefficients& coefficients,
                VotePlanes planes) {
  const MomentumCoefficients momentum = coefficients;
  const G* grad = static_cast<const G*>(grad_data);
  M* exp_avg = static_cast<M*>(exp_avg_data);
  const auto part_of = [&](int64_t i) SAGE_EXT_ALWAYS_INLINE -> M* {
    if constexpr (std::is_void_v<M>) {
      return nullptr;
    } else {
      return exp_avg + i;
    }
  };
  const int64_t blocks = count / kBlock;
  for_blocks(
      blocks,
      [&](int64_t block) SAGE_EXT_ALWAYS_INLINE {
        prefetch_strips(grad + block * kBlock);
        pack_block(grad + block * kBlock, part_of(block * kBlock), momentum, planes.up[block], planes.down[block]);
      },
      []() SAGE_EXT_ALWAYS_INLINE {});
  if (const int64_t left = count - blocks * kBlock; left > 0) {
    G g_part[kBlock];
    copy_part(grad + blocks * kBlock, left, from_float<G>(0.0f), g_part);
    if constexpr (std::is_void_v<M>) {
      pack_block<G, M>(g_part, nullptr, momentum, planes.up[blocks], planes.down[blocks]);
    } else {
      M m_part[kBlock];
      copy_part(exp_avg + blocks * kBlock, left, from_float<M>(0.0f), m_part);
      pack_block(g_part, m_part, momentum, planes.up[blocks], planes.down[blocks]);
      std::memcpy(exp_avg + blocks * kBlock, m_part, static_cast<size_t>(left) * sizeof(M));
    }
  }
}

PackChunk select_pack_chunk(const Ballot& ballot) {
  if (ballot.exp_avg == nullptr) {
    return visit_dtypes([](auto g) -> PackChunk { return &pack_chunk<typename decltype(g)::type, void>; },
                        ballot.grad_dtype);
  }
  return visit_dtypes(
      [](auto g, auto m) -> PackChunk { return &pack_chunk<typename decltype(g)::type, typename decltype(m)::type>; },
      ballot.grad_dtype, ballot.exp_avg_dtype);
}

// Up to kCountTile words: the counts of all of them go digit by digit, so that the loops over words become vectors.
void count_tile(const uint32_t* received, uint32_t* result, int64_t voters, int64_t words, int64_t size) {
  const int digits = std::bit_width(static_cast<uint64_t>(2 * voters));
  uint32_t counts[64][kCountTile];
  uint32_t not_finite[kCountTile] = {};
  for (int b = 0; b < digits; ++b) std::memset(counts[b], 0, sizeof(counts[b]));
  for (int64_t voter = 0; voter < voters; ++voter) {
    const uint32_t* up = received + 2 * words * voter;
    const uint32_t* down = up + words;
    uint32_t carry_up[kCountTile], carry_not_down[kCountTile];
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      not_finite[i] |= up[i] & down[i];
      carry_up[i] = up[i];
      carry_not_down[i] = ~down[i];
    }
    for (uint32_t* carry : {carry_up, carry_not_down}) {
      for (int b = 0; b < digits; ++b) {
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) add_digit(counts[b][i], carry[i]);
      }
    }
  }
  uint32_t* const result_up = result;
  uint32_t* const result_down = result + words;
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    Majority majority{0, 0};
    for (int b = digits - 1; b >= 0; --b) majority.compare_digit(counts[b][i], (voters >> b & 1) != 0);
    result_up[i] = majority.up | not_finite[i];
    result_down[i] = majority.down | not_finite[i];
  }
}

template <typename G>
SAGE_EXT_INLINE void unpack_block(uint32_t up, uint32_t down, G* grad) {
  SAGE_EXT_FOR_PARTS {
    Floats signs = sign_of_bits(up, down, k);
    store_part(grad + k * kLanes, signs);
  }
  if (uint32_t both = up & down; both != 0) {
    for (int i = 0; i < kBlock; ++i) {
      if ((both >> i & 1u) != 0) grad[i] = from_float<G>(vote_value(true, true));
    }
  }
}

template <typename G>
void unpack_chunk(const uint32_t* up, const uint32_t* down, void* data, int64_t count) {
  G* grad = static_cast<G*>(data);
  const int64_t blocks = count / kBlock;
  for (int64_t block = 0; block < blocks; ++block) unpack_block(up[block], down[block], grad + block * kBlock);
  if (const int64_t left = count - blocks * kBlock; left > 0) {
    G part[kBlock];
    unpack_block(up[blocks], down[blocks], part);
    std::memcpy(grad + blocks * kBlock, part, static_cast<size_t>(left) * sizeof(G));
  }
}

UnpackChunk select_unpack_chunk(DType dtype) {
  return visit_dtypes([](auto g) -> UnpackChunk { return &unpack_chunk<typename decltype(g)::type>; }, dtype);
}

}  // namespace
