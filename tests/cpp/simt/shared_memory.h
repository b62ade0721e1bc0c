#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace simt::detail {

// The shared memory of the running block. Every block finds it poisoned; allocations lie between red zones, which
// AddressSanitizer guards, and whose contents are compared when the block ends.
class SharedMemory {
 public:
  SharedMemory();
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  bool contains(const void* address) const {
    return reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(arena_) < kArenaBytes;
  }
  // Empty if the launch's limits allow for so much dynamic memory, else what is wrong.
  std::string begin_launch(size_t dynamic_bytes, size_t static_limit, size_t total_limit);
  void begin_block();
  // Empty, or what was overwritten.
  std::string end_block();

  // Throws std::length_error beyond the limits.
  void* static_storage(SharedVariable& variable, size_t bytes, size_t alignment);
  void* dynamic_storage() const { return dynamic_; }
  // The most that any block of the launch allocated, without red zones.
  size_t bytes() const { return most_static_bytes_ + dynamic_bytes_; }

 private:
  struct Allocation {
    const SharedVariable* variable;  // null: the dynamic memory
    size_t begin, bytes;
  };
  static constexpr size_t kArenaBytes = size_t{4} << 20;
  static constexpr size_t kRedZone = 128;

  void* allocate(const SharedVariable* variable, size_t bytes);
  bool is_intact(size_t begin, size_t end) const;

  char* arena_;
  size_t used_ = 0;
  uint64_t block_ = 0;  // never the same for two blocks
  std::vector<Allocation> allocations_;
  void* dynamic_ = nullptr;
  size_t static_bytes_ = 0, most_static_bytes_ = 0, dynamic_bytes_ = 0;
  size_t static_limit_ = 0, total_limit_ = 0;
};

}  // namespace simt::detail
