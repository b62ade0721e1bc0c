#pragma once

#include <bit>
#include <cstdint>

#include "core/macros.h"

// 16-bit storage types and their conversions. Branch-free integer arithmetic, so that compilers vectorise
// it for any instruction set; the tests compare every bit pattern with the hardware's and torch's result. A GPU has
// an instruction for each, with the same results (only a NaN's payload may differ).
namespace sage_ext {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

#if defined(__CUDA_ARCH__)
SAGE_EXT_HD uint32_t float_bits(float value) { return __float_as_uint(value); }
SAGE_EXT_HD float bits_float(uint32_t bits) { return __uint_as_float(bits); }
#else
SAGE_EXT_HD uint32_t float_bits(float value) { return std::bit_cast<uint32_t>(value); }
SAGE_EXT_HD float bits_float(uint32_t bits) { return std::bit_cast<float>(bits); }
#endif

// 16 bits in the low half of a 32-bit lane, to fp32 and back.
SAGE_EXT_HD float bfloat16_to_float(uint32_t bits) { return bits_float(bits << 16); }

SAGE_EXT_HD float half_to_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<uint16_t>(bits)));
  return value;
#else
  const uint32_t sign = (bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  const uint32_t shifted = magnitude << 13;
  // Subnormals go through an integer conversion: multiplying an fp32 subnormal costs a microcode assist.
  const uint32_t subnormal = float_bits(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  const uint32_t normal = shifted + (112u << 23);
  const uint32_t non_finite = shifted + (224u << 23);
  const uint32_t finite = magnitude < 0x0400u ? subnormal : normal;
  return bits_float(sign | (magnitude >= 0x7c00u ? non_finite : finite));
#endif
}

// Round to nearest, ties to even; a NaN becomes the quiet NaN 0x7fc0, as in PyTorch. The result is the high half;
// what the low half holds is left open.
SAGE_EXT_HD uint32_t float_to_bfloat16_high(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return value != value ? 0x7fc00000u : rounded;
}

SAGE_EXT_HD uint32_t float_to_bfloat16(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  return float_to_bfloat16_high(value) >> 16;
#endif
}

// Round to nearest, ties to even; at least 65520 in magnitude becomes infinity.
SAGE_EXT_HD uint32_t float_to_half(float value) {
#if defined(__CUDA_ARCH__)
  uint16_t half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
  return half;
#else
  const uint32_t bits = float_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // In [0.5, 1) the spacing of fp32 is 2^-24, the spacing of fp16's subnormals: one addition rounds.
  const uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - float_bits(0.5f);
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t clipped = magnitude >= 0x47800000u ? 0x7c00u : finite;
  return sign | (magnitude > 0x7f800000u ? 0x7e00u : clipped);
#endif
}

SAGE_EXT_HD float to_float(float value) { return value; }
SAGE_EXT_HD float to_float(BFloat16 value) { return bfloat16_to_float(value.bits); }
SAGE_EXT_HD float to_float(Half value) { return half_to_float(value.bits); }

template <typename T>
struct FromFloat;

template <>
struct FromFloat<float> {
  static SAGE_EXT_HD float convert(float value) { return value; }
};

template <>
struct FromFloat<BFloat16> {
  static SAGE_EXT_HD BFloat16 convert(float value) { return {static_cast<uint16_t>(float_to_bfloat16(value))}; }
};

template <>
struct FromFloat<Half> {
  static SAGE_EXT_HD Half convert(float value) { return {static_cast<uint16_t>(float_to_half(value))}; }
};

template <typename T>
SAGE_EXT_HD T from_float(float value) {
  return FromFloat<T>::convert(value);
}

}  // namespace sage_ext
