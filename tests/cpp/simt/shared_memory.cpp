#include "simt/shared_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>

#include "simt/sanitizer.h"
#include "simt/simt.h"

namespace simt {
namespace {

using detail::SharedVariable;

// A NaN in every floating-point type, as poison is, but told apart from it.
constexpr unsigned char kRedZoneByte[2] = {0xfe, 0xff};

std::string describe(const SharedVariable* variable) {
  if (variable == nullptr) return "the dynamic shared memory";
  return std::string("shared variable '") + variable->name + "' of " + variable->file + ':' +
         std::to_string(variable->line);
}

}  // namespace

void poison(void* address, size_t bytes) { std::memset(address, 0xff, bytes); }

namespace detail {

SharedMemory::SharedMemory() {
  void* mapping =
      mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  arena_ = static_cast<char*>(mapping);
  SIMT_ASAN(__asan_poison_memory_region(arena_, kArenaBytes));
}

SharedMemory::~SharedMemory() {
  SIMT_ASAN(__asan_unpoison_memory_region(arena_, kArenaBytes));
  munmap(arena_, kArenaBytes);
}

std::string SharedMemory::begin_launch(size_t dynamic_bytes, size_t static_limit, size_t total_limit) {
  dynamic_bytes_ = dynamic_bytes;
  static_limit_ = static_limit;
  total_limit_ = total_limit;
  most_static_bytes_ = 0;
  if (dynamic_bytes <= std::min(total_limit, kArenaBytes / 2)) return {};
  return std::to_string(dynamic_bytes) + " bytes of dynamic shared memory; the limit is " + std::to_string(total_limit);
}

void SharedMemory::begin_block() {
  SIMT_ASAN(__asan_poison_memory_region(arena_, used_ + kRedZone));
  ++block_;
  used_ = 0;
  static_bytes_ = 0;
  allocations_.clear();
  dynamic_ = dynamic_bytes_ == 0 ? arena_ : allocate(nullptr, dynamic_bytes_);
}

std::string SharedMemory::end_block() {
  if (allocations_.empty()) return {};
  SIMT_ASAN(__asan_unpoison_memory_region(arena_, used_ + kRedZone));
  std::string error;
  for (const Allocation& a : allocations_) {
    if (!is_intact(a.begin - kRedZone, a.begin)) error = describe(a.variable) + " was written before its begin";
    const size_t end = a.begin + a.bytes;
    if (!is_intact(end, end + -end % kRedZone + kRedZone)) error = describe(a.variable) + " was written past its end";
    if (!error.empty()) break;
  }
  SIMT_ASAN(__asan_poison_memory_region(arena_, used_ + kRedZone));
  return error;
}

bool SharedMemory::is_intact(size_t begin, size_t end) const {
  for (size_t i = begin; i < end; ++i) {
    if (static_cast<unsigned char>(arena_[i]) != kRedZoneByte[i % 2]) return false;
  }
  return true;
}

void* SharedMemory::allocate(const SharedVariable* variable, size_t bytes) {
  // Red zone, allocation, its rest up to a multiple of a red zone's size; what follows begins with a red zone.
  const size_t begin = used_ + kRedZone;
  const size_t end = (begin + bytes + kRedZone - 1) / kRedZone * kRedZone;
  if (end + kRedZone > kArenaBytes) throw std::length_error("too many shared variables for the emulator");
  SIMT_ASAN(__asan_unpoison_memory_region(arena_ + used_, end + kRedZone - used_));
  for (size_t i = used_; i < end + kRedZone; ++i) arena_[i] = static_cast<char>(kRedZoneByte[i % 2]);
  poison(arena_ + begin, bytes);
  SIMT_ASAN(__asan_poison_memory_region(arena_ + used_, kRedZone));
  SIMT_ASAN(__asan_poison_memory_region(arena_ + begin + bytes, end + kRedZone - begin - bytes));
  used_ = end;
  allocations_.push_back({variable, begin, bytes});
  return arena_ + begin;
}

void* SharedMemory::static_storage(SharedVariable& variable, size_t bytes, size_t alignment) {
  if (variable.block == block_) return variable.storage;
  if (alignment > kRedZone) throw std::length_error("an alignment that shared memory does not have");
  static_bytes_ = (static_bytes_ + alignment - 1) / alignment * alignment + bytes;
  most_static_bytes_ = std::max(most_static_bytes_, static_bytes_);
  if (static_bytes_ > static_limit_ || static_bytes_ + dynamic_bytes_ > total_limit_) {
    throw std::length_error(describe(&variable) + " makes it " + std::to_string(static_bytes_) +
                            " bytes of static and " + std::to_string(dynamic_bytes_) +
                            " of dynamic shared memory; the limits are " + std::to_string(static_limit_) + ", and " +
                            std::to_string(total_limit_) + " for both");
  }
  variable.storage = allocate(&variable, bytes);
  variable.block = block_;
  return variable.storage;
}

}  // namespace detail
}  // namespace simt
