#pragma once

#include <string>
#include <vector>

#include "core/vote.h"
#include "cpu/vote.h"
#include "support.h"

// Votes, element by element and without a trick: what the kernels of both kinds of devices are held to.
namespace sage_ext::testing {

inline constexpr int64_t kVoteSizes[] = {0, 1, 31, 32, 33, 127, 128, 777, 4097, 65535, 65536, 65537};

// Words of votes between guard zones. What is not written stays a bit pattern that no test expects.
struct Words {
  explicit Words(int64_t count) : buffer(DType::float32, count) { fill(buffer, -1.5); }
  uint32_t* data() { return static_cast<uint32_t*>(buffer.data()); }
  const uint32_t* data() const { return static_cast<const uint32_t*>(buffer.data()); }
  std::vector<uint32_t> words() const { return {data(), data() + buffer.numel()}; }
  Buffer buffer;
};

// Normal numbers, and among them zeros of both signs, subnormal numbers and, where asked for, what is not finite.
inline void fill_votes(Buffer& buffer, Random& random, bool finite) {
  fill_normal(buffer, random, 1.0);
  for (int64_t i = 0; i < buffer.numel(); ++i) {
    const uint64_t draw = random.bits() % 64;
    if (draw < 8) buffer.set(i, draw % 2 == 0 ? 0.0 : -0.0);
    if (draw == 8) buffer.set(i, buffer.dtype() == DType::float16 ? -0x1p-24 : -0x1p-130);
    if (!finite && draw == 9) buffer.set(i, kNaN);
    if (!finite && draw == 10) buffer.set(i, random.bits() % 2 == 0 ? kInf : -kInf);
  }
}

inline bool bit_of(const uint32_t* plane, int64_t i) { return (plane[i / 32] >> (i % 32) & 1u) != 0; }

// What `packed` has for coordinate i of the whole vote: 1, 0, -1 or NaN.
inline double vote_at(const uint32_t* packed, int64_t words, int64_t i) {
  const int64_t size = words * kSignsPerWord;
  const uint32_t* const up = packed + 2 * words * (i / size);
  const bool ups = bit_of(up, i % size), downs = bit_of(up + words, i % size);
  return ups && downs ? kNaN : ups ? 1.0 : downs ? -1.0 : 0.0;
}

inline double sign_or_nan(double x) { return !std::isfinite(x) ? kNaN : x > 0 ? 1.0 : x < 0 ? -1.0 : 0.0; }

inline bool same_vote(double a, double b) { return (std::isnan(a) && std::isnan(b)) || a == b; }

// Whether `packed` has the signs of `values`, and no bit behind them.
inline ::testing::AssertionResult holds_signs(const Words& packed, int64_t voters, int64_t words,
                                              const Values& values) {
  for (int64_t i = 0; i < voters * words * kSignsPerWord; ++i) {
    const double expected = i < static_cast<int64_t>(values.size()) ? sign_or_nan(values[static_cast<size_t>(i)]) : 0.0;
    const double got = vote_at(packed.data(), words, i);
    if (!same_vote(got, expected)) {
      return ::testing::AssertionFailure() << "coordinate " << i << " is " << got << ", expected " << expected;
    }
  }
  return ::testing::AssertionSuccess();
}

// A piece from each of `voters` workers, with every mix of votes; and what they come to.
struct Piece {
  Words received;
  Values expected;

  Piece(int64_t voters, int64_t words, uint64_t seed, bool finite)
      : received(voters * 2 * words), expected(static_cast<size_t>(words * kSignsPerWord), 0.0) {
    Random random(seed);
    std::fill_n(received.data(), voters * 2 * words, 0u);
    for (int64_t voter = 0; voter < voters; ++voter) {
      uint32_t* const up = received.data() + 2 * words * voter;
      for (int64_t i = 0; i < words * kSignsPerWord; ++i) {
        const uint64_t draw = random.bits() % 100;
        const uint32_t bit = 1u << (i % 32);
        double& sum = expected[static_cast<size_t>(i)];
        if (!finite && draw == 99) {
          up[i / 32] |= bit;
          up[words + i / 32] |= bit;
          sum = kNaN;
        } else if (draw < 45) {
          up[i / 32] |= bit;
          sum += 1.0;
        } else if (draw < 90) {
          up[words + i / 32] |= bit;
          sum -= 1.0;
        }
      }
    }
  }
};

}  // namespace sage_ext::testing
