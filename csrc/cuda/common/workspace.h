#pragma once

#include <cstdint>

#include "core/launch_plan.h"

namespace sage_ext::cuda {

// Lays out a step's scratch in device memory, every piece on a line of the caches. Without memory (null) it only counts
// the bytes, and the pieces are null.
class WorkspaceLayout {
 public:
  explicit WorkspaceLayout(void* memory) : memory_(static_cast<char*>(memory)) {}

  // Room for `count` numbers.
  template <typename T>
  T* take(int64_t count) {
    char* const piece = memory_ == nullptr ? nullptr : memory_ + bytes_;
    bytes_ += ceil_div(count * static_cast<int64_t>(sizeof(T)), kLine) * kLine;
    return reinterpret_cast<T*>(piece);
  }

  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kLine = 128;  // bytes

  char* memory_;
  int64_t bytes_ = 0;
};

}  // namespace sage_ext::cuda
