#include "cpu/elements.h"

#include <cmath>
#include <vector>

#include "support.h"

namespace sage_ext::cpu::test_isa {
#include "cpu/elements.inl"
}

namespace sage_ext::cpu {
namespace {

using sage_ext::testing::Buffer;
using sage_ext::testing::Random;

// Both halves of a lane are read and written as single elements would be, for every pattern.
template <typename T>
void check_pairs(uint32_t infinity) {
  for (uint32_t low = 0; low <= 0xffffu; ++low) {
    const uint32_t high = (low * 40503u + 12345u) & 0xffffu;
    // Not 4-byte aligned: element 1 of an array.
    const T data[] = {{0x5555}, {static_cast<uint16_t>(low)}, {static_cast<uint16_t>(high)}, {0x5555}};
    const float first = load_first(data + 1, 0);
    const float second = load_second(data + 1, 0);
    ASSERT_EQ(float_bits(first), float_bits(to_float(data[1])));
    ASSERT_EQ(float_bits(second), float_bits(to_float(data[2])));
    T stored[] = {{0x5555}, {0}, {0}, {0x5555}};
    store_pair(stored + 1, 0, first, second);
    ASSERT_EQ(stored[0].bits, 0x5555);
    ASSERT_EQ(stored[3].bits, 0x5555);
    ASSERT_EQ(stored[1].bits, from_float<T>(first).bits);
    ASSERT_EQ(stored[2].bits, from_float<T>(second).bits);
    if ((low & 0x7fffu) <= infinity) {
      ASSERT_EQ(stored[1].bits, low);
    }
    if ((high & 0x7fffu) <= infinity) {
      ASSERT_EQ(stored[2].bits, high);
    }
  }
}

TEST(Elements, BFloat16Pairs) { check_pairs<BFloat16>(0x7f80); }
TEST(Elements, HalfPairs) { check_pairs<Half>(0x7c00); }

TEST(Elements, FloatPairs) {
  float data[] = {1.0f, 2.0f, 3.0f, 4.0f};
  EXPECT_EQ(load_first(data, 1), 3.0f);
  EXPECT_EQ(load_second(data, 1), 4.0f);
  store_pair(data, 0, 5.0f, 6.0f);
  EXPECT_EQ(data[0], 5.0f);
  EXPECT_EQ(data[1], 6.0f);
  EXPECT_EQ(data[2], 3.0f);
}

// The index reaches every element once, in tensors of every length around a vector's, whatever the types.
TEST(Elements, UpdateElementsCoversEveryLength) {
  for (const testing::Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    for (int64_t count = 0; count <= 67; ++count) {
      Buffer grad(mix.grad, count, 1), a(mix.param, count, 3), b(mix.state, count, 5);
      for (int64_t i = 0; i < count; ++i) {
        grad.set(i, static_cast<double>(i));
        a.set(i, 100.0);
        b.set(i, -static_cast<double>(i));
      }
      visit_dtypes(
          [&](auto g, auto w, auto m) {
            using W = typename decltype(w)::type;
            using M = typename decltype(m)::type;
            test_isa::update_elements(
                count,
                [](int64_t i, float gradient, float& x, float& y) {
                  x += gradient + static_cast<float>(i);
                  y *= 2.0f;
                },
                static_cast<const typename decltype(g)::type*>(grad.data()), static_cast<W*>(a.data()),
                static_cast<M*>(b.data()));
          },
          mix.grad, mix.param, mix.state);
      for (int64_t i = 0; i < count; ++i) {
        ASSERT_EQ(a[i], 100.0 + 2.0 * static_cast<double>(i)) << count;
        ASSERT_EQ(b[i], -2.0 * static_cast<double>(i)) << count;
      }
    }
  }
}

TEST(Elements, ForElementsReadsEveryElement) {
  for (const DType dtype : testing::kDTypes) {
    for (int64_t count = 0; count <= 35; ++count) {
      Buffer grad(dtype, count, 1);
      for (int64_t i = 0; i < count; ++i) grad.set(i, static_cast<double>(i + 1));
      std::vector<float> seen(static_cast<size_t>(count), 0.0f);
      visit_dtypes(
          [&](auto g) {
            test_isa::for_elements(
                count, [&](int64_t i, float gradient) { seen[static_cast<size_t>(i)] += gradient; },
                static_cast<const typename decltype(g)::type*>(grad.data()));
          },
          dtype);
      for (int64_t i = 0; i < count; ++i) {
        ASSERT_EQ(seen[static_cast<size_t>(i)], static_cast<float>(i + 1)) << name(dtype) << ", " << count;
      }
    }
  }
}

}  // namespace
}  // namespace sage_ext::cpu
