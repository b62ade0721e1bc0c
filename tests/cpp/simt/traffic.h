#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <unordered_set>
#include <vector>

#include "simt/simt.h"

namespace simt::detail {

// Counts the bytes, and if asked the 32-byte sectors, that one launch reads and writes.
//
// The lanes of a warp run one after another, so which of their accesses belong together is told by count: an
// instruction is the place in the program that the hook returns to, and the k-th execution of it by each lane is one
// execution by the warp. Lanes count anew whenever all of them have met, at a barrier or a full warp's primitive.
class Traffic {
 public:
  void begin_launch(Launch& launch, size_t warps, bool count_sectors);
  void begin_block();

  void read(const void* address, unsigned bytes, unsigned warp, unsigned lane, const void* instruction) {
    launch_->bytes_read += bytes;
    if (count_sectors_) log(address, bytes, warp, lane, instruction, false);
  }
  void write(const void* address, unsigned bytes, unsigned warp, unsigned lane, const void* instruction) {
    launch_->bytes_written += bytes;
    if (count_sectors_) log(address, bytes, warp, lane, instruction, true);
  }
  void uniform(const void* address, unsigned bytes) {
    const void*& recent = recent_[reinterpret_cast<uintptr_t>(address) / 4 % recent_.size()];
    if (recent == address) return;
    recent = address;
    if (uniform_.insert(address).second) launch_->uniform_bytes += bytes;
  }
  // All lanes of the warp have met.
  void meet(unsigned warp) {
    if (count_sectors_) count_anew(warp);
  }
  void barrier() { ++launch_->barriers; }
  void atomic() { ++launch_->atomics; }

 private:
  struct Instruction {
    const void* place;
    bool is_write;
    std::array<uint32_t, 32> executions;         // by lane
    std::vector<std::vector<uint64_t>> sectors;  // of the k-th execution, each once
  };

  void log(const void* address, unsigned bytes, unsigned warp, unsigned lane, const void* place, bool is_write);
  void count_anew(unsigned warp);

  Launch* launch_ = nullptr;
  bool count_sectors_ = false;
  std::vector<std::vector<Instruction>> instructions_;  // by warp
  std::unordered_set<const void*> uniform_;             // addresses of the block
  std::array<const void*, 64> recent_ = {};             // some of them
};

}  // namespace simt::detail
