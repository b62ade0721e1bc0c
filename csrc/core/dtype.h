#pragma once

#include <cstdint>

#include "core/numeric.h"

namespace sage_ext {

// The storage types of parameters, gradients and momenta. Arithmetic is always fp32 or wider.
enum class DType : uint8_t { float32, bfloat16, float16 };

inline constexpr int64_t itemsize(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

inline constexpr const char* name(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::bfloat16:
      return "bfloat16";
    default:
      return "float16";
  }
}

template <typename T>
struct TypeTag {
  using type = T;
};

// Calls visitor(TypeTag<T>{}...) with the C++ type of each dtype: the only place where a run-time dtype
// becomes a template argument.
template <typename Visitor>
auto visit_dtypes(Visitor&& visitor) {
  return visitor();
}

template <typename Visitor, typename... Rest>
auto visit_dtypes(Visitor&& visitor, DType first, Rest... rest) {
  const auto with = [&](auto tag) {
    return visit_dtypes([&](auto... tags) { return visitor(tag, tags...); }, rest...);
  };
  switch (first) {
    case DType::float32:
      return with(TypeTag<float>{});
    case DType::bfloat16:
      return with(TypeTag<BFloat16>{});
    default:
      return with(TypeTag<Half>{});
  }
}

}  // namespace sage_ext
