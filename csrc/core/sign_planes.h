#pragma once

#include <cstdint>

#include "core/launch_plan.h"
#include "core/macros.h"

// The signs of a tensor's elements, packed: 2 bits an element, so that sign(0) = 0 survives.
//
// Two bit planes lie one after the other, of sign_words(numel) 32-bit words each: first the one of x > 0, then the one
// of x < 0. Element i is bit i % 32 of word i / 32 in both; the bits behind the last element are 0. NaN has neither
// bit.
namespace sage_ext {

inline constexpr int64_t kSignsPerWord = 32;

inline constexpr int64_t sign_words(int64_t numel) { return ceil_div(numel, kSignsPerWord); }

// The sign of the element at `bit` of a word of both planes.
SAGE_EXT_HD float sign_at(uint32_t positive, uint32_t negative, int bit) {
  return static_cast<float>(static_cast<int>((positive >> bit) & 1u) - static_cast<int>((negative >> bit) & 1u));
}

}  // namespace sage_ext
