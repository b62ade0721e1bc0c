// The kernels of the majority vote: the words and numbers that the CPU's give, and what they read, write and launch.
#include "cuda/vote.h"

#include "launches.h"
#include "vote_problem.h"

namespace sage_ext {
namespace {

using testing::Buffer;
using testing::kDTypes;
using testing::kVoteSizes;
using testing::launches_of;
using testing::Piece;
using testing::Random;
using testing::Words;

constexpr MomentumCoefficients kMomentum{0.9f, 0.1f};

class CudaVote : public ::testing::TestWithParam<DType> {};

// Every length, and arrays off a 16-byte boundary, where all goes element by element.
TEST_P(CudaVote, PacksAsTheCpuDoes) {
  for (const int64_t numel : kVoteSizes) {
    for (const int64_t voters : {1, 3, 9}) {
      for (const int64_t offset : {0, 1}) {
        if (numel > 5000 && voters == 3) continue;
        SCOPED_TRACE(std::to_string(numel) + " for " + std::to_string(voters) + ", offset " + std::to_string(offset));
        Random random(static_cast<uint64_t>(numel + voters));
        Buffer grad(GetParam(), numel, offset);
        fill_votes(grad, random, false);
        const int64_t words = vote_words(numel, voters);
        Words packed(voters * 2 * words), expected(voters * 2 * words);
        cuda::pack_votes({grad.data(), nullptr, numel, GetParam(), GetParam()}, {}, packed.data(), voters, words,
                         nullptr);
        cpu::pack_votes({grad.data(), nullptr, numel, GetParam(), GetParam()}, {}, expected.data(), voters, words, 1);
        ASSERT_EQ(packed.words(), expected.words());
      }
    }
  }
}

TEST_P(CudaVote, PacksMomentumAsTheCpuDoes) {
  for (const DType dtype : kDTypes) {
    for (const int64_t numel : {1, 31, 777, 4097, 40000}) {
      for (const int64_t offset : {0, 1}) {
        SCOPED_TRACE(std::string("momentum in ") + name(dtype) + ", " + std::to_string(numel));
        Random random(static_cast<uint64_t>(numel));
        Buffer grad(GetParam(), numel), ours(dtype, numel, offset), theirs(dtype, numel);
        fill_votes(grad, random, false);
        fill_normal(ours, random, 0.01);
        theirs.assign(ours.bytes());
        const int64_t words = vote_words(numel, 2);
        Words packed(2 * 2 * words), expected(2 * 2 * words);
        cuda::pack_votes({grad.data(), ours.data(), numel, GetParam(), dtype}, kMomentum, packed.data(), 2, words,
                         nullptr);
        cpu::pack_votes({grad.data(), theirs.data(), numel, GetParam(), dtype}, kMomentum, expected.data(), 2, words,
                        1);
        ASSERT_EQ(packed.words(), expected.words());
        ASSERT_TRUE(same_bits(ours, theirs));
      }
    }
  }
}

TEST_P(CudaVote, UnpacksAsTheCpuDoes) {
  for (const int64_t numel : kVoteSizes) {
    for (const int64_t voters : {1, 3, 9}) {
      for (const int64_t offset : {0, 1}) {
        if (numel > 5000 && voters == 3) continue;
        SCOPED_TRACE(std::to_string(numel) + " of " + std::to_string(voters));
        const int64_t words = vote_words(numel, voters);
        const Piece pieces(voters, words, 5, false);
        Buffer grad(GetParam(), numel, offset), expected(GetParam(), numel);
        fill(grad, 3.0);
        cuda::unpack_votes(pieces.received.data(), grad.data(), GetParam(), numel, voters, words, nullptr);
        cpu::unpack_votes(pieces.received.data(), expected.data(), GetParam(), numel, voters, words, 1);
        ASSERT_TRUE(same_bits(grad, expected));
      }
    }
  }
}

// Each byte once: the gradient, two bits an element; momentum is read and written.
TEST_P(CudaVote, BytesAndLaunches) {
  const int64_t numel = 100003, voters = 8;
  const int64_t words = vote_words(numel, voters);
  const auto packed_bytes = static_cast<uint64_t>(voters * 2 * words * 4);
  const auto grad_bytes = static_cast<uint64_t>(numel * itemsize(GetParam()));
  Random random(3);
  Buffer grad(GetParam(), numel), exp_avg(DType::float32, numel);
  fill_normal(grad, random, 1.0);
  Words packed(voters * 2 * words), result(2 * words);
  const auto launches = launches_of([&] {
    cuda::pack_votes({grad.data(), nullptr, numel, GetParam(), GetParam()}, {}, packed.data(), voters, words, nullptr);
    cuda::pack_votes({grad.data(), exp_avg.data(), numel, GetParam(), DType::float32}, kMomentum, packed.data(), voters,
                     words, nullptr);
    cuda::count_votes(packed.data(), result.data(), voters, words, nullptr);
    cuda::unpack_votes(packed.data(), grad.data(), GetParam(), numel, voters, words, nullptr);
  });
  EXPECT_EQ(testing::names_of(launches),
            (std::vector<std::string>{"pack_votes", "pack_momentum", "count_votes", "unpack_votes"}));
  EXPECT_EQ(launches[0].bytes_read, grad_bytes);
  EXPECT_EQ(launches[0].bytes_written, packed_bytes);
  EXPECT_EQ(launches[1].bytes_read, grad_bytes + 4u * numel);
  EXPECT_EQ(launches[1].bytes_written, packed_bytes + 4u * numel);
  EXPECT_EQ(launches[2].bytes_read, packed_bytes);
  EXPECT_EQ(launches[2].bytes_written, packed_bytes / voters);
  EXPECT_EQ(launches[3].bytes_read, static_cast<uint64_t>(8 * sign_words(numel)));
  EXPECT_EQ(launches[3].bytes_written, grad_bytes);
}

INSTANTIATE_TEST_SUITE_P(DTypes, CudaVote, ::testing::ValuesIn(kDTypes),
                         [](const auto& info) { return name(info.param); });

TEST(CudaVoteCount, CountsAsTheCpuDoes) {
  for (const int64_t voters : {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 127, 128, 150}) {
    for (const int64_t words : {0, 4, 68, 1028}) {
      if (voters > 9 && words > 68) continue;
      SCOPED_TRACE(std::to_string(voters) + " voters, " + std::to_string(words) + " words");
      const Piece piece(voters, words, static_cast<uint64_t>(voters), false);
      Words result(2 * words);
      cuda::count_votes(piece.received.data(), result.data(), voters, words, nullptr);
      ASSERT_TRUE(holds_signs(result, 1, words, piece.expected));
    }
  }
}

}  // namespace
}  // namespace sage_ext
