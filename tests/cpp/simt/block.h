#pragma once

#include <bit>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "simt/fiber.h"
#include "simt/shared_memory.h"
#include "simt/simt.h"
#include "simt/traffic.h"

namespace simt::detail {

inline constexpr unsigned kLanes = 32;

// Cheap and good enough to shuffle: splitmix64.
class Random {
 public:
  explicit Random(uint64_t seed = 0) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t bound) { return next() % bound; }

 private:
  uint64_t state_;
};

enum class State : uint8_t { ready, in_barrier, in_warp, exited };

struct Thread {
  uint3 index;
  uint32_t number;  // in the block
  State state;
  Fiber* fiber;  // from its first instruction to its last
  // Of a thread that waits:
  const char* what;
  Site where;
  uint32_t mask;
  int32_t source;   // the lane whose value it gets, or kVote
  uint64_t value;   // what it offers
  uint64_t result;  // what it gets

  unsigned warp() const { return number / kLanes; }
  unsigned lane() const { return number % kLanes; }
};

// Runs the blocks of one launch, one after another, and is what their threads call. A thread runs until it has to wait
// for others or ends, under a random schedule also until a memory access or atomic that gives way.
class Block {
 public:
  static Block& get();
  bool is_running() const { return running_ != nullptr; }

  void begin_launch(const char* name, dim3 grid, dim3 block, size_t dynamic_bytes, const Kernel& kernel,
                    const Options& options, uint64_t seed, Launch& launch);
  void run(uint3 index);
  size_t shared_bytes() const { return shared_.bytes(); }
  [[noreturn]] void fail(const std::string& message) const;

  // Called by the running thread:
  int barrier(const char* what, bool predicate, const Site& where);
  unsigned vote(const char* what, unsigned mask, bool predicate, const Site& where);
  uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t bits, int operand, int width, const Site& where);
  unsigned active_lanes() { return live_[caller("__activemask").warp()]; }
  void* static_storage(SharedVariable& variable, size_t bytes, size_t alignment);
  void* dynamic_storage();
  void load(const void* address, unsigned bytes, const void* instruction);
  void store(const void* address, unsigned bytes, const void* instruction);
  void uniform_load(const void* address, unsigned bytes);
  void atomic(const void* address, unsigned bytes, const void* instruction);
  // Lets others run first, now and then, if the schedule is random.
  void give_way() {
    if (is_random_ && random_.next() % 8 == 0) let_others_run();
  }

 private:
  static constexpr int32_t kVote = -1;

  // Lanes that wait for each other. Only saves looking at each of them: `lanes` is 0 if nothing is known.
  struct Meeting {
    uint32_t mask, lanes;
    Site where;
  };

  static void run_thread();
  Thread& pick();
  Fiber& take_up(Thread& thread);
  void resume(Thread& thread);
  void let_others_run();
  void exit_thread();
  void abandon();

  Thread& caller(const char* what);
  std::string waiting(const Thread& thread) const;
  std::string all_waiting() const;
  void check_access(const char* what, const void* address, unsigned bytes) const;

  // Waits until all lanes of the mask are here. Returns the value of the source lane or, for kVote, the ballot.
  uint64_t meet_lanes(const char* what, unsigned mask, const Site& where, int32_t source, uint64_t value);
  void exchange(unsigned warp, unsigned lanes);
  void set_waiting(Thread& thread, State state);
  void make_ready(Thread& thread);
  // Threads of the warp that wait in a primitive for a mask that names the lane. Calls visit on each.
  template <typename Visit>
  void for_each_waiting_for(unsigned warp, unsigned lane, Visit visit) {
    for (uint32_t rest = in_warp_[warp]; rest != 0; rest &= rest - 1) {
      const Thread& other = lane_of(warp, static_cast<unsigned>(std::countr_zero(rest)));
      if ((other.mask >> lane & 1) != 0) visit(other);
    }
  }
  Thread& lane_of(unsigned warp, unsigned lane) { return threads_[warp * kLanes + lane]; }

  // The launch
  std::string name_;
  Kernel kernel_ = {};
  dim3 grid_, shape_;
  bool is_random_ = false;
  Random random_;
  SharedMemory shared_;
  Traffic traffic_;
  // The block
  std::vector<Thread> threads_;
  std::vector<uint32_t> live_;     // lanes that have not exited, by warp
  std::vector<uint32_t> ready_;    // lanes that could run, by warp
  std::vector<uint32_t> in_warp_;  // lanes that wait in a primitive of the warp, by warp
  std::vector<Meeting> meetings_;  // the one that was joined last, by warp
  uint32_t ready_warps_ = 0;
  unsigned live_threads_ = 0;
  unsigned in_barrier_ = 0;
  int predicates_ = 0;              // that held at the open barrier
  int barrier_result_ = 0;          // of the last one
  const Thread* first_ = nullptr;   // the first to reach the open barrier
  const Thread* exited_ = nullptr;  // one that has
  unsigned stickiness_ = 0;         // of a random schedule to the warp that ran last, in 32nds
  unsigned last_warp_ = 0;
  Thread* running_ = nullptr;
  std::exception_ptr error_;

  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> free_fibers_;
};

}  // namespace simt::detail
