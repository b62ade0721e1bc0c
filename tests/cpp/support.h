#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "core/dtype.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SAGE_EXT_TEST_ASAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(SAGE_EXT_TEST_ASAN)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

// What the kernels' tests share: arrays of a run-time dtype with guard zones, random data, and a comparison with
// fp64 results that allows for one rounding at the store.
namespace sage_ext::testing {

using Values = std::vector<double>;

inline constexpr DType kDTypes[] = {DType::float32, DType::bfloat16, DType::float16};

// Storage types of W, g and the state.
struct Mix {
  DType param, grad, state;
};

inline constexpr Mix kFloat = {DType::float32, DType::float32, DType::float32};
inline constexpr Mix kBFloat = {DType::bfloat16, DType::bfloat16, DType::bfloat16};

inline std::vector<Mix> all_mixes() {
  std::vector<Mix> mixes;
  for (const DType param : kDTypes) {
    for (const DType grad : kDTypes) {
      for (const DType state : kDTypes) mixes.push_back({param, grad, state});
    }
  }
  return mixes;
}

inline std::string describe(const Mix& mix) {
  return std::string("W ") + name(mix.param) + ", g " + name(mix.grad) + ", state " + name(mix.state);
}

struct Shape {
  int64_t rows, cols;
};

// Sizes that hurt: single rows and columns, odd sizes, sizes just over a power of two.
inline std::vector<Shape> all_shapes() {
  return {{1, 1},      {1, 31},   {31, 1},    {2, 2},    {5, 777},   {777, 5},   {64, 4097},
          {1000, 1},   {1, 1000}, {3, 256},   {9, 255},  {65537, 1}, {1, 65537}, {513, 768},
          {300, 1025}, {4, 4096}, {129, 512}, {257, 33}, {1025, 3},  {1, 8193}};
}

inline std::string describe(const Shape& shape) {
  return std::to_string(shape.rows) + " x " + std::to_string(shape.cols);
}

// splitmix64: the same numbers with every compiler and library.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  // A bell curve: the sum of four uniform numbers, with mean 0 and variance 1.
  double normal() {
    const uint64_t z = bits();
    const auto sum = static_cast<double>((z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48));
    return (sum * 0x1p-16 - 2.0) * 1.7320508075688772;
  }

 private:
  uint64_t state_;
};

// An array of `numel` elements of a run-time dtype, `offset` elements past an aligned address, between two guard
// zones. Its destructor fails the test if a guard was written; under AddressSanitizer touching one ends it.
class Buffer {
 public:
  Buffer(DType dtype, int64_t numel, int64_t offset = 0)
      : dtype_(dtype),
        numel_(numel),
        front_(kGuard + static_cast<size_t>(offset * itemsize(dtype))),
        size_(static_cast<size_t>(numel * itemsize(dtype))),
        storage_(new std::byte[front_ + size_ + 2 * kGuard]) {
    const auto address = reinterpret_cast<uintptr_t>(storage_.get());
    base_ = storage_.get() + (kGuard - address % kGuard) % kGuard;
    std::memset(base_, kPattern, front_ + size_ + kGuard);
    std::memset(base_ + front_, 0, size_);
    ASAN_POISON_MEMORY_REGION(base_, front_);
    ASAN_POISON_MEMORY_REGION(base_ + front_ + size_, kGuard);
  }
  // The same numbers, as far past an aligned address.
  Buffer(const Buffer& other)
      : Buffer(other.dtype_, other.numel_, static_cast<int64_t>(other.front_ - kGuard) / itemsize(other.dtype_)) {
    assign(other.bytes());
  }
  Buffer(Buffer&&) = default;
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer() {
    if (storage_ == nullptr) return;
    ASAN_UNPOISON_MEMORY_REGION(base_, front_ + size_ + kGuard);
    const auto is_guard = [](std::byte b) { return b == std::byte{kPattern}; };
    EXPECT_TRUE(std::all_of(base_, base_ + front_, is_guard)) << "written before the start of a tensor";
    EXPECT_TRUE(std::all_of(base_ + front_ + size_, base_ + front_ + size_ + kGuard, is_guard))
        << "written past the end of a tensor";
  }

  DType dtype() const { return dtype_; }
  int64_t numel() const { return numel_; }
  void* data() { return base_ + front_; }
  const void* data() const { return base_ + front_; }
  float* floats() { return static_cast<float*>(data()); }

  double operator[](int64_t i) const {
    return visit_dtypes(
        [&](auto tag) {
          using T = typename decltype(tag)::type;
          return static_cast<double>(to_float(static_cast<const T*>(data())[i]));
        },
        dtype_);
  }
  void set(int64_t i, double value) {
    visit_dtypes(
        [&](auto tag) {
          using T = typename decltype(tag)::type;
          static_cast<T*>(data())[i] = from_float<T>(static_cast<float>(value));
        },
        dtype_);
  }

  Values values() const {
    Values result(static_cast<size_t>(numel_));
    visit_dtypes(
        [&](auto tag) {
          const auto* elements = static_cast<const typename decltype(tag)::type*>(data());
          for (size_t i = 0; i < result.size(); ++i) result[i] = static_cast<double>(to_float(elements[i]));
        },
        dtype_);
    return result;
  }
  std::vector<std::byte> bytes() const { return {base_ + front_, base_ + front_ + size_}; }
  void assign(const std::vector<std::byte>& bytes) {
    if (size_ > 0) std::memcpy(data(), bytes.data(), size_);
  }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr unsigned char kPattern = 0xa5;

  DType dtype_;
  int64_t numel_;
  size_t front_, size_;
  std::unique_ptr<std::byte[]> storage_;
  std::byte* base_;
};

inline void fill(Buffer& buffer, double value) {
  for (int64_t i = 0; i < buffer.numel(); ++i) buffer.set(i, value);
}

inline void fill_normal(Buffer& buffer, Random& random, double scale) {
  for (int64_t i = 0; i < buffer.numel(); ++i) buffer.set(i, scale * random.normal());
}

// Normal numbers in columns of different size (over a factor of 64); a few elements are exactly zero.
inline void fill_gradient(Buffer& buffer, int64_t cols, Random& random) {
  Values column(static_cast<size_t>(cols));
  for (double& scale : column) scale = std::exp2(6.0 * random.uniform() - 6.0);
  for (int64_t i = 0; i < buffer.numel(); ++i) {
    const double value = column[static_cast<size_t>(i % cols)] * random.normal();
    buffer.set(i, random.bits() % 32 == 0 ? 0.0 : value);
  }
}

// Half the distance between `x` and the next number of the dtype: the error of one rounding to nearest.
inline double half_ulp(DType dtype, double x) {
  const int precision = dtype == DType::float32 ? 24 : dtype == DType::bfloat16 ? 8 : 11;
  const int min_exponent = dtype == DType::float16 ? -14 : -126;
  const int exponent = x == 0.0 ? min_exponent : std::max(std::ilogb(x), min_exponent);
  return std::ldexp(0.5, exponent - precision + 1);
}

inline double max_finite(DType dtype) {
  if (dtype == DType::float32) return 0x1.fffffep127;
  return dtype == DType::bfloat16 ? 0x1.fep127 : 65504.0;
}

// A result in exact arithmetic and how far fp32 arithmetic may be from it before the one rounding at the store.
struct Expected {
  Values value, slack;

  explicit Expected(size_t count) : value(count), slack(count) {}
};

inline bool is_rounding_of(DType dtype, double got, double exact, double slack) {
  if (std::isnan(exact)) return std::isnan(got);
  if (std::isnan(got)) return false;
  if (std::isinf(exact)) return got == exact;
  if (std::isinf(got)) return std::signbit(got) == std::signbit(exact) && std::abs(exact) + slack > max_finite(dtype);
  return std::abs(got - exact) <= half_ulp(dtype, std::abs(exact) + slack) + slack;
}

inline ::testing::AssertionResult matches(const Buffer& got, const Expected& expected) {
  int64_t wrong = 0;
  std::ostringstream first;
  first.precision(12);
  for (int64_t i = 0; i < got.numel(); ++i) {
    const auto k = static_cast<size_t>(i);
    if (is_rounding_of(got.dtype(), got[i], expected.value[k], expected.slack[k])) continue;
    if (wrong++ == 0) {
      first << "element " << i << " is " << got[i] << ", expected " << expected.value[k] << " +- " << expected.slack[k]
            << " before rounding to " << name(got.dtype());
    }
  }
  if (wrong == 0) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << wrong << " of " << got.numel() << " elements; " << first.str();
}

// Equal numbers, -0 and 0 told apart; any NaN equals any other.
inline ::testing::AssertionResult same_bits(const Buffer& got, const Buffer& expected) {
  for (int64_t i = 0; i < got.numel(); ++i) {
    const double a = got[i];
    const double b = expected[i];
    if ((std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b))) continue;
    return ::testing::AssertionFailure() << "element " << i << " is " << a << ", expected " << b;
  }
  return ::testing::AssertionSuccess();
}

inline int64_t count_nan(const Buffer& buffer) {
  int64_t count = 0;
  for (int64_t i = 0; i < buffer.numel(); ++i) count += std::isnan(buffer[i]) ? 1 : 0;
  return count;
}

inline constexpr double kInf = std::numeric_limits<double>::infinity();
inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
inline constexpr double kUlp = 0x1p-24;  // the relative error of one fp32 operation

}  // namespace sage_ext::testing
