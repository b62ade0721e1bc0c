#include "simt/block.h"

#include <algorithm>

namespace simt::detail {

Indices indices;

namespace {

// One of the bits that are set.
unsigned random_bit(uint32_t bits, Random& random) {
  const auto shift = static_cast<int>(random.next() % 32);
  return (static_cast<unsigned>(std::countr_zero(std::rotr(bits, shift))) + static_cast<unsigned>(shift)) % 32;
}

}  // namespace

Block& Block::get() {
  static Block block;
  return block;
}

void Block::begin_launch(const char* name, dim3 grid, dim3 block, size_t dynamic_bytes, const Kernel& kernel,
                         const Options& options, uint64_t seed, Launch& launch) {
  name_ = name;
  kernel_ = kernel;
  grid_ = grid;
  shape_ = block;
  is_random_ = options.schedule != 0;
  random_ = Random(seed);
  const unsigned count = block.x * block.y * block.z;
  const unsigned warps = (count + kLanes - 1) / kLanes;
  threads_.resize(count);
  for (unsigned i = 0; i < count; ++i) {
    threads_[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
    threads_[i].number = i;
  }
  live_.resize(warps);
  ready_.resize(warps);
  in_warp_.resize(warps);
  meetings_.resize(warps);
  traffic_.begin_launch(launch, warps, options.count_sectors);
  indices.block_dim = block;
  indices.grid_dim = grid;
  const std::string error = shared_.begin_launch(dynamic_bytes, options.static_shared_limit, options.shared_limit);
  if (!error.empty()) throw Error("kernel '" + name_ + "': " + error);
  launch.kernel = name_;
  launch.grid = grid;
  launch.block = block;
}

void Block::run(uint3 index) {
  indices.block = index;
  live_threads_ = static_cast<unsigned>(threads_.size());
  for (Thread& thread : threads_) {
    thread.state = State::ready;
    thread.fiber = nullptr;
  }
  for (unsigned warp = 0; warp < live_.size(); ++warp) {
    const unsigned lanes = std::min(live_threads_ - warp * kLanes, kLanes);
    live_[warp] = ready_[warp] = ~0u >> (kLanes - lanes);
    in_warp_[warp] = 0;
    meetings_[warp].lanes = 0;
  }
  ready_warps_ = ~0u >> (kLanes - live_.size());
  in_barrier_ = 0;
  predicates_ = 0;
  first_ = exited_ = nullptr;
  error_ = nullptr;
  last_warp_ = 0;
  // Some blocks run warps far apart from each other, others keep them close.
  constexpr unsigned kStickiness[] = {0, 16, 31, 32};
  if (is_random_) stickiness_ = kStickiness[random_.below(4)];
  shared_.begin_block();
  traffic_.begin_block();

  while (live_threads_ > 0 && !error_) {
    if (ready_warps_ == 0) {
      const std::string message = "deadlock: " + all_waiting();
      abandon();
      fail(message);
    }
    resume(pick());
  }
  if (error_) {
    abandon();
    std::rethrow_exception(error_);
  }
  const std::string error = shared_.end_block();
  if (!error.empty()) fail(error);
}

Thread& Block::pick() {
  if (!is_random_) {
    const auto warp = static_cast<unsigned>(std::countr_zero(ready_warps_));
    return lane_of(warp, static_cast<unsigned>(std::countr_zero(ready_[warp])));
  }
  const bool stays = ready_[last_warp_] != 0 && random_.next() % 32 < stickiness_;
  if (!stays) last_warp_ = random_bit(ready_warps_, random_);
  return lane_of(last_warp_, random_bit(ready_[last_warp_], random_));
}

// Makes it the running thread, on a stack.
Fiber& Block::take_up(Thread& thread) {
  if (thread.fiber == nullptr) {
    if (free_fibers_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>(fibers_.size()));
      free_fibers_.push_back(fibers_.back().get());
    }
    // The one that was used last: a kernel without barriers needs only one stack.
    thread.fiber = free_fibers_.back();
    free_fibers_.pop_back();
  }
  running_ = &thread;
  indices.thread = thread.index;
  return *thread.fiber;
}

// Returns when a thread has ended, which may be another one, or when none is ready.
void Block::resume(Thread& thread) {
  take_up(thread).resume(&Block::run_thread);
  Thread& last = *running_;
  running_ = nullptr;
  if (last.state == State::exited) {
    free_fibers_.push_back(last.fiber);
    last.fiber = nullptr;
  }
}

// Straight to the next thread's stack: by way of run(), there would be twice as many switches.
void Block::let_others_run() {
  if (ready_warps_ == 0) return Fiber::suspend();
  const Thread* self = running_;
  Thread& next = pick();
  if (&next != self) Fiber::suspend_for(take_up(next), &Block::run_thread);
}

void Block::run_thread() {
  Block& block = get();
  try {
    block.kernel_.invoke(block.kernel_.function, block.kernel_.params);
    block.exit_thread();
  } catch (...) {
    block.error_ = std::current_exception();
  }
}

void Block::exit_thread() {
  Thread& thread = *running_;
  if (in_barrier_ > 0) {
    fail("divergent barrier: the thread exits, and " + waiting(*first_));
  }
  const unsigned warp = thread.warp();
  for_each_waiting_for(warp, thread.lane(), [&](const Thread& other) {
    fail(std::string("divergent ") + other.what + ": the thread exits, and " + waiting(other));
  });
  thread.state = State::exited;
  exited_ = &thread;
  const uint32_t bit = 1u << thread.lane();
  live_[warp] &= ~bit;
  ready_[warp] &= ~bit;
  if (ready_[warp] == 0) ready_warps_ &= ~(1u << warp);
  --live_threads_;
  if (live_[warp] == 0) traffic_.meet(warp);
}

void Block::set_waiting(Thread& thread, State state) {
  const uint32_t bit = 1u << thread.lane();
  thread.state = state;
  if (state == State::in_warp) in_warp_[thread.warp()] |= bit;
  ready_[thread.warp()] &= ~bit;
  if (ready_[thread.warp()] == 0) ready_warps_ &= ~(1u << thread.warp());
}

void Block::make_ready(Thread& thread) {
  thread.state = State::ready;
  ready_[thread.warp()] |= 1u << thread.lane();
  in_warp_[thread.warp()] &= ~(1u << thread.lane());
  ready_warps_ |= 1u << thread.warp();
}

// After an error: the waiting threads never go on.
void Block::abandon() {
  running_ = nullptr;
  for (Thread& thread : threads_) {
    if (thread.fiber == nullptr) continue;
    thread.fiber->reset();
    free_fibers_.push_back(thread.fiber);
    thread.fiber = nullptr;
  }
}

}  // namespace simt::detail
