// What kernels and tests call: hooks and intrinsics, launches, sessions, comparisons.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "simt/block.h"

namespace simt {
namespace {

Session* current_session = nullptr;

}  // namespace

Session::Session(const Options& options) : options_(options) {
  if (current_session != nullptr) throw std::logic_error("simt: a session lives already");
  current_session = this;
}

Session::~Session() { current_session = nullptr; }

Session* Session::current() { return current_session; }

namespace detail {

void Block::check_access(const char* what, const void* address, unsigned bytes) const {
  if (!std::has_single_bit(bytes)) fail(std::string(what) + " of " + std::to_string(bytes) + " bytes");
  if (reinterpret_cast<uintptr_t>(address) % bytes == 0) return;
  fail(std::string("misaligned ") + what + " of " + std::to_string(bytes) + " bytes, " +
       std::to_string(reinterpret_cast<uintptr_t>(address) % bytes) + " past a multiple of them");
}

void Block::load(const void* address, unsigned bytes, const void* instruction) {
  check_access("load", address, bytes);
  if (!shared_.contains(address)) traffic_.read(address, bytes, running_->warp(), running_->lane(), instruction);
  give_way();
}

void Block::store(const void* address, unsigned bytes, const void* instruction) {
  check_access("store", address, bytes);
  if (!shared_.contains(address)) traffic_.write(address, bytes, running_->warp(), running_->lane(), instruction);
  give_way();
}

void Block::uniform_load(const void* address, unsigned bytes) {
  check_access("load", address, bytes);
  if (!shared_.contains(address)) traffic_.uniform(address, bytes);
}

void Block::atomic(const void* address, unsigned bytes, const void* instruction) {
  check_access("atomic", address, bytes);
  if (!shared_.contains(address)) {
    traffic_.read(address, bytes, running_->warp(), running_->lane(), instruction);
    traffic_.write(address, bytes, running_->warp(), running_->lane(), instruction);
    traffic_.atomic();
  }
  give_way();
}

void* Block::static_storage(SharedVariable& variable, size_t bytes, size_t alignment) {
  caller("shared memory");
  try {
    return shared_.static_storage(variable, bytes, alignment);
  } catch (const std::length_error& error) {
    fail(error.what());
  }
}

void* Block::dynamic_storage() {
  caller("dynamic shared memory");
  return shared_.dynamic_storage();
}

void* shared_storage(SharedVariable& variable, size_t bytes, size_t alignment) {
  return Block::get().static_storage(variable, bytes, alignment);
}
void* dynamic_shared_storage(size_t /*alignment*/) { return Block::get().dynamic_storage(); }
uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t bits, int operand, int width, const Site& where) {
  return Block::get().shuffle(kind, mask, bits, operand, width, where);
}
unsigned vote(const char* what, unsigned mask, bool predicate, const Site& where) {
  return Block::get().vote(what, mask, predicate, where);
}
int barrier(const char* what, bool predicate, const Site& where) {
  return Block::get().barrier(what, predicate, where);
}
unsigned active_lanes() { return Block::get().active_lanes(); }
void fence() {
  if (Block::get().is_running()) Block::get().give_way();
}

// Host code may share functions that call hooks; outside of a kernel, they do nothing.
[[gnu::noinline]] void on_atomic(const void* address, unsigned bytes) {
  if (Block::get().is_running()) Block::get().atomic(address, bytes, __builtin_return_address(0));
}

void launch(const char* name, dim3 grid, dim3 block, size_t dynamic_shared_bytes, const Kernel& kernel) {
  Block& machine = Block::get();
  const auto describe = [](dim3 v) {
    return '(' + std::to_string(v.x) + ',' + std::to_string(v.y) + ',' + std::to_string(v.z) + ')';
  };
  const auto reject = [&](const std::string& what) { throw Error(std::string("kernel '") + name + "': " + what); };
  if (machine.is_running()) reject("launched by a kernel");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    reject("grid " + describe(grid));
  }
  if (block.x == 0 || block.y == 0 || block.z == 0 || block.x > 1024 || block.y > 1024 || block.z > 64 ||
      block.x * block.y * block.z > 1024) {
    reject("block " + describe(block));
  }
  Session* session = Session::current();
  const Options options = session == nullptr ? Options{} : session->options();
  // Every launch of a session has a schedule of its own.
  Random random(options.schedule + (session == nullptr ? 0 : session->launches().size()) * 0x51ed2701u);
  Launch record;
  machine.begin_launch(name, grid, block, dynamic_shared_bytes, kernel, options, random.next(), record);
  const auto run = [&](uint64_t i) {
    machine.run({static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                 static_cast<unsigned>(i / grid.x / grid.y)});
  };
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (options.schedule == 0) {
    for (uint64_t i = 0; i < blocks; ++i) run(i);
  } else {
    std::vector<uint64_t> order(blocks);
    std::iota(order.begin(), order.end(), uint64_t{0});
    for (uint64_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
    for (const uint64_t i : order) run(i);
  }
  record.shared_bytes = machine.shared_bytes();
  if (session != nullptr) session->record(std::move(record));
}

}  // namespace detail

[[gnu::noinline]] void on_load(const void* address, unsigned bytes) {
  if (detail::Block::get().is_running()) detail::Block::get().load(address, bytes, __builtin_return_address(0));
}

[[gnu::noinline]] void on_store(const void* address, unsigned bytes) {
  if (detail::Block::get().is_running()) detail::Block::get().store(address, bytes, __builtin_return_address(0));
}

void on_uniform_load(const void* address, unsigned bytes) {
  if (detail::Block::get().is_running()) detail::Block::get().uniform_load(address, bytes);
}

Comparison same_under_schedules(const std::function<std::vector<std::byte>()>& run, int seeds, Options options) {
  std::vector<std::byte> expected;
  for (int seed = 0; seed <= seeds; ++seed) {
    options.schedule = static_cast<uint64_t>(seed);
    const std::string schedule = "schedule " + std::to_string(seed);
    std::vector<std::byte> result;
    try {
      Session session(options);
      result = run();
    } catch (const Error& error) {
      return {false, schedule + ": " + error.what()};
    }
    if (seed == 0) {
      expected = std::move(result);
      continue;
    }
    if (result.size() != expected.size()) {
      return {false, schedule + " returns " + std::to_string(result.size()) + " bytes, schedule 0 " +
                         std::to_string(expected.size())};
    }
    const auto difference = std::mismatch(result.begin(), result.end(), expected.begin());
    if (difference.first != result.end()) {
      return {false, schedule + " differs from schedule 0 at byte " +
                         std::to_string(difference.first - result.begin()) + " of " + std::to_string(result.size()) +
                         ": " + std::to_string(std::to_integer<int>(*difference.first)) + " and " +
                         std::to_string(std::to_integer<int>(*difference.second))};
    }
  }
  return {true, "the same " + std::to_string(expected.size()) + " bytes under every schedule"};
}

}  // namespace simt

cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t /*stream*/) {
  if (simt::detail::Block::get().is_running()) throw simt::Error("cudaMemsetAsync called by a kernel");
  std::memset(address, value, bytes);
  if (simt::Session* session = simt::Session::current()) {
    simt::Launch record;
    record.kernel = "cudaMemsetAsync";
    record.bytes_written = bytes;
    session->record(std::move(record));
  }
  return cudaSuccess;
}
