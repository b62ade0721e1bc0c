#include "core/numeric.h"

#include <bit>
#include <cmath>
#include <vector>

#include "core/dtype.h"
#include "support.h"

namespace sage_ext {
namespace {

using testing::Random;

// A 16-bit format, defined by its fields and IEEE 754 alone.
struct Format {
  int exponent_bits, mantissa_bits;

  uint32_t infinity() const { return ((1u << exponent_bits) - 1u) << mantissa_bits; }

  double decode(uint32_t bits) const {
    const auto mantissa = static_cast<double>(bits & ((1u << mantissa_bits) - 1u));
    const auto exponent = static_cast<int>((bits & 0x7fffu) >> mantissa_bits);
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const double one = std::ldexp(1.0, mantissa_bits);
    const double magnitude = exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                                           : std::ldexp(one + mantissa, exponent - bias - mantissa_bits);
    return (bits & 0x8000u) != 0 ? -magnitude : magnitude;
  }
};

constexpr Format kHalf{5, 10};
constexpr Format kBFloat16{8, 7};

// Rounds by looking the two neighbours up among all numbers of the format.
class Rounder {
 public:
  explicit Rounder(Format format) {
    // The entry for infinity is the number that would follow the largest one: IEEE 754 rounds as if it existed.
    for (uint32_t bits = 0; bits <= format.infinity(); ++bits) magnitudes_.push_back(format.decode(bits));
  }

  uint32_t operator()(float value) const {
    const double x = std::abs(static_cast<double>(value));
    const uint32_t sign = std::signbit(value) ? 0x8000u : 0u;
    const auto above = std::upper_bound(magnitudes_.begin(), magnitudes_.end(), x);
    const auto low = static_cast<uint32_t>(above - magnitudes_.begin()) - 1u;
    if (above == magnitudes_.end()) return sign | low;
    const double to_low = x - magnitudes_[low];
    const double to_high = *above - x;
    const bool up = to_high < to_low || (to_high == to_low && low % 2 == 1);
    return sign | (up ? low + 1u : low);
  }

  const std::vector<double>& magnitudes() const { return magnitudes_; }

 private:
  std::vector<double> magnitudes_;
};

template <typename Convert>
void check_decoding(Format format, Convert&& convert) {
  for (uint32_t bits = 0; bits <= 0xffffu; ++bits) {
    const float got = convert(bits);
    const uint32_t magnitude = bits & 0x7fffu;
    if (magnitude > format.infinity()) {
      ASSERT_TRUE(std::isnan(got)) << bits;
    } else if (magnitude == format.infinity()) {
      ASSERT_TRUE(std::isinf(got)) << bits;
    } else {
      ASSERT_EQ(static_cast<double>(got), format.decode(bits)) << bits;
    }
    ASSERT_EQ(std::signbit(got), (bits & 0x8000u) != 0) << bits;
  }
}

// Every number of the format, every halfway point between two, and their neighbours in fp32, of both signs.
template <typename Convert>
void check_rounding(Format format, Convert&& convert) {
  const Rounder expected(format);
  const auto check = [&](float value) {
    for (const float x : {std::nextafter(value, 0.0f), value, std::nextafter(value, INFINITY)}) {
      ASSERT_EQ(convert(x), expected(x)) << x;
      ASSERT_EQ(convert(-x), expected(-x)) << -x;
    }
  };
  const std::vector<double>& magnitudes = expected.magnitudes();
  for (size_t i = 0; i + 1 < magnitudes.size(); ++i) {
    const double halfway = (magnitudes[i] + magnitudes[i + 1]) / 2;
    ASSERT_EQ(static_cast<double>(static_cast<float>(halfway)), halfway);
    ASSERT_NO_FATAL_FAILURE(check(static_cast<float>(magnitudes[i])));
    ASSERT_NO_FATAL_FAILURE(check(static_cast<float>(halfway)));
  }
}

// A walk over all 2^32 patterns in prime strides: every exponent, both signs, NaNs and infinities among them.
template <typename Convert>
void check_rounding_of_patterns(Format format, Convert&& convert) {
  const Rounder expected(format);
  for (uint64_t pattern = 0; pattern < uint64_t{1} << 32; pattern += 6007) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(pattern));
    const uint32_t got = convert(value);
    if (std::isnan(value)) {
      ASSERT_GT(got & 0x7fffu, format.infinity()) << pattern;
    } else {
      ASSERT_EQ(got, expected(value)) << value;
    }
  }
}

uint32_t bfloat16_bits(float value) { return float_to_bfloat16(value); }
uint32_t half_bits(float value) { return float_to_half(value); }

TEST(Numeric, BFloat16EveryPatternToFloat) {
  check_decoding(kBFloat16, [](uint32_t bits) { return bfloat16_to_float(bits); });
}

TEST(Numeric, HalfEveryPatternToFloat) {
  check_decoding(kHalf, [](uint32_t bits) { return half_to_float(bits); });
}

TEST(Numeric, BFloat16RoundsToNearestEven) { check_rounding(kBFloat16, bfloat16_bits); }
TEST(Numeric, HalfRoundsToNearestEven) { check_rounding(kHalf, half_bits); }
TEST(Numeric, BFloat16RoundsPatterns) { check_rounding_of_patterns(kBFloat16, bfloat16_bits); }
TEST(Numeric, HalfRoundsPatterns) { check_rounding_of_patterns(kHalf, half_bits); }

TEST(Numeric, EveryPatternSurvivesARoundTrip) {
  for (uint32_t bits = 0; bits <= 0xffffu; ++bits) {
    if ((bits & 0x7fffu) <= kBFloat16.infinity()) {
      ASSERT_EQ(float_to_bfloat16(bfloat16_to_float(bits)), bits);
    }
    if ((bits & 0x7fffu) <= kHalf.infinity()) {
      ASSERT_EQ(float_to_half(half_to_float(bits)), bits);
    }
  }
}

TEST(Numeric, SpecialValues) {
  EXPECT_EQ(float_to_bfloat16(NAN), 0x7fc0u);
  EXPECT_EQ(float_to_bfloat16(std::bit_cast<float>(0xffffffffu)), 0x7fc0u);
  EXPECT_EQ(float_to_bfloat16(std::bit_cast<float>(0x7f800001u)), 0x7fc0u);
  EXPECT_EQ(float_to_half(std::bit_cast<float>(0x7f800001u)) & 0x7fffu, 0x7e00u);
  EXPECT_EQ(float_to_bfloat16(-INFINITY), 0xff80u);
  EXPECT_EQ(float_to_half(-INFINITY), 0xfc00u);
  EXPECT_EQ(float_to_bfloat16(3.4028235e38f), 0x7f80u);  // the largest fp32 is beyond the largest bf16
  EXPECT_EQ(float_to_half(65504.0f), 0x7bffu);
  EXPECT_EQ(float_to_half(std::nextafter(65520.0f, 0.0f)), 0x7bffu);
  EXPECT_EQ(float_to_half(65520.0f), 0x7c00u);
  EXPECT_EQ(float_to_half(0x1p-24f), 1u);
  EXPECT_EQ(float_to_half(0x1p-25f), 0u);
  EXPECT_EQ(float_to_half(-0x1p-26f), 0x8000u);
  EXPECT_EQ(float_to_bfloat16(-0.0f), 0x8000u);
}

TEST(DTypes, SizesAndNames) {
  EXPECT_EQ(itemsize(DType::float32), 4);
  EXPECT_EQ(itemsize(DType::bfloat16), 2);
  EXPECT_EQ(itemsize(DType::float16), 2);
  EXPECT_STREQ(name(DType::float32), "float32");
  EXPECT_STREQ(name(DType::bfloat16), "bfloat16");
  EXPECT_STREQ(name(DType::float16), "float16");
}

template <typename T>
constexpr DType dtype_of() {
  if (std::is_same_v<T, float>) return DType::float32;
  return std::is_same_v<T, BFloat16> ? DType::bfloat16 : DType::float16;
}

TEST(DTypes, VisitorGetsTheTypesInOrder) {
  for (const DType a : testing::kDTypes) {
    for (const DType b : testing::kDTypes) {
      const auto [got_a, got_b] = visit_dtypes(
          [](auto x, auto y) {
            return std::pair(dtype_of<typename decltype(x)::type>(), dtype_of<typename decltype(y)::type>());
          },
          a, b);
      EXPECT_EQ(got_a, a);
      EXPECT_EQ(got_b, b);
    }
  }
}

}  // namespace
}  // namespace sage_ext
