#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "core/numeric.h"
#include "cpu/common/isa.h"

// Loops over elements of mixed storage types, written so that compilers vectorise them well.
//
// 16-bit types go two elements at a time, as the halves of one 32-bit lane: widening and narrowing are then
// shifts and masks inside a lane, where converting an array of 16-bit numbers element by element costs several
// shuffles across the vector (measured: a bf16 Lion step in half the time).
namespace sage_ext::cpu {

static_assert(std::endian::native == std::endian::little, "pairs assume that the first element is the low half");

#if defined(__GNUC__)
#define SAGE_EXT_ALWAYS_INLINE __attribute__((always_inline))
#else
#define SAGE_EXT_ALWAYS_INLINE
#endif

template <typename T>
inline constexpr bool is_16_bit = sizeof(T) == 2;

template <typename T>
SAGE_EXT_HD uint32_t load_lane(const T* data, int64_t i) {
  uint32_t lane;
  std::memcpy(&lane, data + 2 * i, sizeof(lane));
  return lane;
}

template <typename T>
SAGE_EXT_HD void store_lane(T* data, int64_t i, uint32_t lane) {
  std::memcpy(data + 2 * i, &lane, sizeof(lane));
}

// Element 2 * i of `data`, and element 2 * i + 1. Two functions over plain floats: a struct of both would stay in
// memory and keep GCC from vectorising the loop.
SAGE_EXT_HD float load_first(const float* data, int64_t i) { return data[2 * i]; }
SAGE_EXT_HD float load_second(const float* data, int64_t i) { return data[2 * i + 1]; }
SAGE_EXT_HD float load_first(const BFloat16* data, int64_t i) { return bits_float(load_lane(data, i) << 16); }
SAGE_EXT_HD float load_second(const BFloat16* data, int64_t i) { return bits_float(load_lane(data, i) & 0xffff0000u); }
SAGE_EXT_HD float load_first(const Half* data, int64_t i) { return half_to_float(load_lane(data, i) & 0xffffu); }
SAGE_EXT_HD float load_second(const Half* data, int64_t i) { return half_to_float(load_lane(data, i) >> 16); }

SAGE_EXT_HD void store_pair(float* data, int64_t i, float first, float second) {
  data[2 * i] = first;
  data[2 * i + 1] = second;
}

SAGE_EXT_HD void store_pair(BFloat16* data, int64_t i, float first, float second) {
  store_lane(data, i, float_to_bfloat16(first) | (float_to_bfloat16_high(second) & 0xffff0000u));
}

SAGE_EXT_HD void store_pair(Half* data, int64_t i, float first, float second) {
  store_lane(data, i, float_to_half(first) | float_to_half(second) << 16);
}

}  // namespace sage_ext::cpu
