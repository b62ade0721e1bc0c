// The CPU kernels of the majority vote against the votes counted one by one.
#include "cpu/vote.h"

#include "vote_problem.h"

namespace sage_ext {
namespace {

using testing::Buffer;
using testing::kDTypes;
using testing::kVoteSizes;
using testing::Piece;
using testing::Random;
using testing::Values;
using testing::Words;

constexpr MomentumCoefficients kNoMomentum{0.0f, 1.0f};

TEST(Vote, WordsOfAPiece) {
  EXPECT_EQ(vote_words(0, 4), 0);
  EXPECT_EQ(vote_words(1, 9), 4);
  EXPECT_EQ(vote_words(128, 1), 4);
  EXPECT_EQ(vote_words(129, 1), 8);
  EXPECT_EQ(vote_words(int64_t{1} << 20, 8), (int64_t{1} << 20) / 32 / 8);
  for (const int64_t numel : kVoteSizes) {
    for (int64_t voters = 1; voters <= 9; ++voters) {
      EXPECT_GE(vote_words(numel, voters) * voters * 32, numel);
      EXPECT_EQ(vote_words(numel, voters) % kVoteWords, 0);
    }
  }
}

TEST(Vote, Packs) {
  for (const DType dtype : kDTypes) {
    for (const int64_t numel : kVoteSizes) {
      for (const int64_t voters : {1, 2, 3, 8, 9}) {
        SCOPED_TRACE(std::string(name(dtype)) + ", " + std::to_string(numel) + " for " + std::to_string(voters));
        Random random(static_cast<uint64_t>(numel + voters));
        Buffer grad(dtype, numel, voters % 2);  // off a boundary, too
        fill_votes(grad, random, false);
        const int64_t words = vote_words(numel, voters);
        Words packed(voters * 2 * words);
        cpu::pack_votes({grad.data(), nullptr, numel, dtype, dtype}, kNoMomentum, packed.data(), voters, words, 2);
        ASSERT_TRUE(holds_signs(packed, voters, words, grad.values()));
      }
    }
  }
}

TEST(Vote, PacksTheSignsOfMomentum) {
  const MomentumCoefficients k = momentum_coefficients(0.9);
  for (const DType grad_dtype : kDTypes) {
    for (const DType dtype : {DType::float32, DType::bfloat16}) {
      for (const int64_t numel : {1, 31, 777, 65537}) {
        SCOPED_TRACE(std::string(name(grad_dtype)) + " into " + name(dtype) + ", " + std::to_string(numel));
        Random random(static_cast<uint64_t>(numel));
        Buffer grad(grad_dtype, numel), exp_avg(dtype, numel);
        fill_normal(exp_avg, random, 0.1);
        const int64_t words = vote_words(numel, 3);
        Words packed(3 * 2 * words);
        for (int step = 0; step < 3; ++step) {
          fill_votes(grad, random, false);
          Values votes, kept;
          for (int64_t i = 0; i < numel; ++i) {
            const float m = k.keep * static_cast<float>(exp_avg[i]) + k.add * static_cast<float>(grad[i]);
            votes.push_back(m);
            kept.push_back(std::isfinite(m) ? m : exp_avg[i]);
          }
          cpu::pack_votes({grad.data(), exp_avg.data(), numel, grad_dtype, dtype}, k, packed.data(), 3, words, 1);
          ASSERT_TRUE(holds_signs(packed, 3, words, votes));
          Buffer expected(dtype, numel);
          for (int64_t i = 0; i < numel; ++i) expected.set(i, kept[static_cast<size_t>(i)]);
          ASSERT_TRUE(same_bits(exp_avg, expected));
        }
      }
    }
  }
}

TEST(Vote, Counts) {
  for (const int64_t voters : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 127, 128, 300}) {
    for (const int64_t words : {0, 4, 60, 64, 68, 260}) {
      for (const bool finite : {true, false}) {
        if (voters > 9 && words > 64) continue;
        SCOPED_TRACE(std::to_string(voters) + " voters, " + std::to_string(words) + " words");
        const Piece piece(voters, words, static_cast<uint64_t>(voters), finite);
        Words result(2 * words);
        cpu::count_votes(piece.received.data(), result.data(), voters, words, 2);
        ASSERT_TRUE(holds_signs(result, 1, words, piece.expected));
      }
    }
  }
}

TEST(Vote, EverybodyAgreesOrNobodyVotes) {
  for (const uint32_t ups : {0u, ~0u}) {
    for (const uint32_t downs : {0u, ~0u}) {
      Words received(9 * 2 * 4), result(2 * 4);
      for (int i = 0; i < 9 * 8; ++i) received.data()[i] = i % 8 < 4 ? ups : downs;
      cpu::count_votes(received.data(), result.data(), 9, 4, 1);
      for (int i = 0; i < 8; ++i) EXPECT_EQ(result.data()[i], i < 4 ? ups : downs);
    }
  }
}

TEST(Vote, Unpacks) {
  for (const DType dtype : kDTypes) {
    for (const int64_t numel : kVoteSizes) {
      for (const int64_t voters : {1, 2, 9}) {
        SCOPED_TRACE(std::string(name(dtype)) + ", " + std::to_string(numel) + " of " + std::to_string(voters));
        const int64_t words = vote_words(numel, voters);
        const Piece pieces(voters, words, 7, false);  // one after the other: all of a vote
        Buffer grad(dtype, numel, voters % 2), expected(dtype, numel);
        fill(grad, 3.0);
        for (int64_t i = 0; i < numel; ++i) expected.set(i, testing::vote_at(pieces.received.data(), words, i));
        cpu::unpack_votes(pieces.received.data(), grad.data(), dtype, numel, voters, words, 2);
        ASSERT_TRUE(same_bits(grad, expected));
      }
    }
  }
}

}  // namespace
}  // namespace sage_ext
