#include "cpu/common/elements.h"

#include <cmath>
#include <vector>

#include "support.h"

namespace sage_ext::cpu::test_isa {
#include "cpu/common/elements.inl"
}

namespace sage_ext::cpu {
namespace {

using sage_ext::testing::Buffer;
using sage_ext::testing::Random;

float rounded(DType dtype, int64_t value) {
  return visit_dtypes(
      [=](auto tag) { return to_float(from_float<typename decltype(tag)::type>(static_cast<float>(value))); }, dtype);
}

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

// Long arrays are taken from several places in turn: around the length from which that begins, and beyond.
constexpr int64_t kLengths[] = {2047, 2048, 2049, 2111, 2112, 2303, 2304, 2367, 4097, 32768, 32768 + 77};

// Whatever a processor goes by.
class StreamsOf : public ::testing::TestWithParam<int64_t> {
 protected:
  StreamsOf() : before_(streams) { streams.count = GetParam(); }
  ~StreamsOf() override { streams = before_; }

 private:
  Streams before_;
};

INSTANTIATE_TEST_SUITE_P(Elements, StreamsOf, ::testing::Range(int64_t{1}, kMaxStreams + 1));

TEST(Elements, TheProcessorsStreamsAreWithinTheBounds) {
  EXPECT_GE(streams.count, 1);
  EXPECT_LE(streams.count, kMaxStreams);
  EXPECT_GE(streams.ahead, 1);
}

TEST_P(StreamsOf, UpdateElementsCoversLongArrays) {
  for (const DType dtype : testing::kDTypes) {
    for (const int64_t count : kLengths) {
      Buffer grad(dtype, count, 1), param(dtype, count, 3);
      for (int64_t i = 0; i < count; ++i) {
        grad.set(i, static_cast<double>(i % 251));
        param.set(i, static_cast<double>(i % 127));
      }
      std::vector<int> visits(static_cast<size_t>(count), 0);
      visit_dtypes(
          [&](auto tag) {
            using T = typename decltype(tag)::type;
            test_isa::update_elements(
                count,
                [&](int64_t i, float gradient, float& x) {
                  ++visits[static_cast<size_t>(i)];
                  x += gradient;
                },
                static_cast<const T*>(grad.data()), static_cast<T*>(param.data()));
          },
          dtype);
      for (int64_t i = 0; i < count; ++i) {
        ASSERT_EQ(visits[static_cast<size_t>(i)], 1) << count << ", " << i;
        ASSERT_EQ(param[i], static_cast<double>(rounded(dtype, i % 251 + i % 127))) << count << ", " << i;
      }
    }
  }
}

// Whatever part of a matrix it is, with rows that strips fit in and others.
TEST_P(StreamsOf, UpdateColumnsNamesEveryElementsColumn) {
  for (const int64_t width : {1, 63, 64, 65, 192, 768, 1000, 4096, 40000}) {
    for (const int64_t begin : {0, 64, 100, 7680}) {
      for (const int64_t count : kLengths) {
        const int64_t end = begin + count;
        std::vector<float> grad(static_cast<size_t>(end)), columns(grad), grads(grad);
        for (int64_t i = 0; i < end; ++i) grad[static_cast<size_t>(i)] = static_cast<float>(i + 1);
        test_isa::update_columns_of(
            begin, end, width,
            [](int64_t column, float gradient, float& x, float& y) {
              x += static_cast<float>(column + 1);
              y += gradient;
            },
            grad.data(), columns.data(), grads.data());
        for (int64_t i = 0; i < end; ++i) {
          const auto k = static_cast<size_t>(i);
          ASSERT_EQ(columns[k], i < begin ? 0.0f : static_cast<float>(i % width + 1)) << width << ", " << begin;
          ASSERT_EQ(grads[k], i < begin ? 0.0f : grad[k]) << width << ", " << begin << ", " << i;
        }
      }
    }
  }
}

TEST(Elements, StripsOfRowsCoverEveryElementOnce) {
  for (const int64_t rows : {0, 1, 3, 4, 5, 8, 11}) {
    for (const int64_t cols : {1, 255, 256, 257, 600}) {
      std::vector<int> visits(static_cast<size_t>((rows + 2) * cols), 0);
      test_isa::for_strips_of_rows(2, rows + 2, cols, [&](int64_t row, int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) ++visits[static_cast<size_t>(row * cols + j)];
      });
      for (size_t i = 0; i < visits.size(); ++i) {
        ASSERT_EQ(visits[i], i < static_cast<size_t>(2 * cols) ? 0 : 1) << rows << " x " << cols;
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
