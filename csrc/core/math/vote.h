#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/math/common.h"
#include "core/numeric.h"

// signSGD with majority vote: Bernstein et al., "signSGD with Majority Vote is Communication Efficient And Fault
// Tolerant", arXiv 1810.05291. What a number that is not finite does is ours.
namespace sage_ext {

// Makes of x the number whose sign is a worker's vote: NaN where x is not finite. Of one, or of a vector of them.
template <typename Value>
SAGE_EXT_HD void make_vote(Value& x) {
  x += x * 0.0f;
}

// The same of a gradient, with momentum: the sign of the new m as it is before the store rounds it. A gradient that is
// not finite is voted as such, and leaves m as it was: it must not stay in there for ever.
template <typename Value>
SAGE_EXT_HD void make_vote(Value& x, Value& exp_avg, const MomentumCoefficients& k) {
  x = k.keep * exp_avg + k.add * x;
  make_vote(x);
  exp_avg = x == x ? x : exp_avg;
}

// The bits of a vote, both for a NaN; and the number that two bits stand for.
SAGE_EXT_HD bool votes_up(float vote) { return !(vote <= 0.0f); }
SAGE_EXT_HD bool votes_down(float vote) { return !(vote >= 0.0f); }
SAGE_EXT_HD float vote_value(bool up, bool down) {
  const float sign = static_cast<float>(static_cast<int>(up) - static_cast<int>(down));
  return up && down ? bits_float(0x7fc00000u) : sign;
}

// Votes are counted 32 coordinates at a time, in binary numbers whose digits are words: bit i of digits[b] is digit b
// of coordinate i's count. Counted are votes up, and those that are not down: of n voters that is n plus the sum of
// signs.

// One digit of an addition: `carry` is what is added, and becomes what is left for the next digit.
SAGE_EXT_HD void add_digit(uint32_t& digit, uint32_t& carry) {
  const uint32_t both = digit & carry;
  digit ^= carry;
  carry = both;
}

// Which coordinates' counts are above a number and which below it, from the highest digits on.
struct Majority {
  uint32_t up, down;

  SAGE_EXT_HD void compare_digit(uint32_t digit, bool expected) {
    const uint32_t open = ~(up | down);
    up |= expected ? 0u : open & digit;
    down |= expected ? open & ~digit : 0u;
  }
};

}  // namespace sage_ext
