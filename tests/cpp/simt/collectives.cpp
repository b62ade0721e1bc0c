// Barriers, votes and shuffles, and the messages about those that diverge.
#include <algorithm>
#include <cstring>
#include <sstream>
#include <utility>

#include "simt/block.h"

namespace simt::detail {
namespace {

std::string describe(const uint3& index) {
  std::ostringstream out;
  out << '(' << index.x << ',' << index.y << ',' << index.z << ')';
  return out.str();
}

std::string describe(const char* what, const Site& where) {
  const char* slash = std::strrchr(where.file_name(), '/');
  std::ostringstream out;
  out << what << " at " << (slash == nullptr ? where.file_name() : slash + 1) << ':' << where.line();
  return out.str();
}

bool same_site(const Site& a, const Site& b) {
  if (a.line() != b.line() || a.column() != b.column()) return false;
  return a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0;
}

std::string hexadecimal(uint32_t mask) {
  std::ostringstream out;
  out << "0x" << std::hex << mask;
  return out.str();
}

}  // namespace

void Block::fail(const std::string& message) const {
  std::string place = "kernel '" + name_ + "', block " + describe(indices.block);
  if (running_ != nullptr) place += ", thread " + describe(running_->index);
  throw Error(place + ": " + message);
}

std::string Block::waiting(const Thread& thread) const {
  std::string text = "thread " + describe(thread.index) + " waits in " + describe(thread.what, thread.where);
  if (thread.state == State::in_warp) text += " with mask " + hexadecimal(thread.mask);
  return text;
}

// One thread for each place, and how many more there are.
std::string Block::all_waiting() const {
  std::vector<const Thread*> first;
  size_t more = 0;
  for (const Thread& thread : threads_) {
    if (thread.state == State::exited) continue;
    const bool known = std::any_of(first.begin(), first.end(), [&](const Thread* other) {
      return other->mask == thread.mask && same_site(other->where, thread.where);
    });
    if (known || first.size() == 6) {
      ++more;
    } else {
      first.push_back(&thread);
    }
  }
  std::string text;
  for (const Thread* thread : first) text += (text.empty() ? "" : "; ") + waiting(*thread);
  return more == 0 ? text : text + "; and " + std::to_string(more) + " more threads";
}

Thread& Block::caller(const char* what) {
  if (running_ == nullptr) throw Error(std::string(what) + " outside of a kernel");
  return *running_;
}

int Block::barrier(const char* what, bool predicate, const Site& where) {
  Thread& thread = caller(what);
  if (exited_ != nullptr) {
    fail("divergent barrier: reaches " + describe(what, where) + ", and thread " + describe(exited_->index) +
         " has exited");
  }
  if (in_barrier_ > 0 && !same_site(where, first_->where)) {
    fail("divergent barrier: reaches " + describe(what, where) + ", and " + waiting(*first_));
  }
  for_each_waiting_for(thread.warp(), thread.lane(), [&](const Thread& other) {
    fail(std::string("divergent ") + other.what + ": reaches " + describe(what, where) + ", and " + waiting(other));
  });
  thread.what = what;
  thread.where = where;
  thread.mask = 0;
  predicates_ += predicate;
  if (in_barrier_++ == 0) first_ = &thread;
  if (in_barrier_ < threads_.size()) {
    set_waiting(thread, State::in_barrier);
    let_others_run();
    return barrier_result_;
  }
  for (Thread& other : threads_) make_ready(other);
  for (unsigned i = 0; i < live_.size(); ++i) traffic_.meet(i);
  traffic_.barrier();
  in_barrier_ = 0;
  barrier_result_ = std::exchange(predicates_, 0);
  give_way();
  return barrier_result_;  // no other barrier completes before this thread reaches it
}

unsigned Block::vote(const char* what, unsigned mask, bool predicate, const Site& where) {
  return static_cast<unsigned>(meet_lanes(what, mask, where, kVote, predicate));
}

uint64_t Block::shuffle(Shuffle kind, unsigned mask, uint64_t bits, int operand, int width, const Site& where) {
  constexpr const char* kNames[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync"};
  const char* what = kNames[static_cast<int>(kind)];
  const int lane = static_cast<int>(caller(what).lane());
  if (width < 1 || width > 32 || !std::has_single_bit(static_cast<unsigned>(width))) {
    fail(describe(what, where) + ": width " + std::to_string(width));
  }
  const int begin = lane & ~(width - 1), end = begin + width;
  int source = lane;
  switch (kind) {
    case Shuffle::index:
      source = begin + (operand & (width - 1));
      break;
    case Shuffle::up:
      if (lane - operand >= begin) source = lane - operand;
      break;
    case Shuffle::down:
      if (lane + operand < end) source = lane + operand;
      break;
    case Shuffle::butterfly:
      // Groups before the lane's own may be read, as on the device.
      if ((lane ^ operand) >= 0 && (lane ^ operand) < end) source = lane ^ operand;
      break;
  }
  return meet_lanes(what, mask, where, source, bits);
}

uint64_t Block::meet_lanes(const char* what, unsigned mask, const Site& where, int32_t source, uint64_t value) {
  Thread& thread = caller(what);
  const unsigned warp = thread.warp(), lane = thread.lane();
  const auto diverges = [&](const std::string& other) {
    fail(std::string("divergent ") + what + ": reaches " + describe(what, where) + " with mask " + hexadecimal(mask) +
         ", and " + other);
  };
  if ((mask >> lane & 1) == 0) fail(describe(what, where) + ": mask " + hexadecimal(mask) + " lacks the calling lane");
  const unsigned lanes = std::min(static_cast<unsigned>(threads_.size()) - warp * kLanes, kLanes);
  const uint32_t named = mask & (~0u >> (kLanes - lanes));  // a partial warp's missing lanes are not waited for
  const uint32_t bit = 1u << lane;
  Meeting& meeting = meetings_[warp];
  uint32_t here = bit;
  if (meeting.lanes != 0 && meeting.mask == mask && same_site(meeting.where, where)) here |= meeting.lanes;
  if (uint32_t rest = named & ~here & ~ready_[warp]; rest != 0) {
    for (; rest != 0; rest &= rest - 1) {
      const Thread& other = lane_of(warp, static_cast<unsigned>(std::countr_zero(rest)));
      if (other.state == State::exited) diverges("thread " + describe(other.index) + " has exited");
      if (other.state == State::in_barrier) diverges(waiting(other));
      if (other.mask == mask && same_site(other.where, where)) {
        here |= 1u << other.lane();
      } else if ((other.mask >> lane & 1) != 0) {
        diverges(waiting(other));  // otherwise it may still come
      }
    }
  }
  thread.what = what;
  thread.where = where;
  thread.mask = mask;
  thread.source = source;
  thread.value = value;
  if (here != named) {
    meeting = {mask, here, where};
    set_waiting(thread, State::in_warp);
    let_others_run();
    return thread.result;
  }
  meeting.lanes = 0;
  exchange(warp, named);
  for (uint32_t rest = named; rest != 0; rest &= rest - 1) {
    make_ready(lane_of(warp, static_cast<unsigned>(std::countr_zero(rest))));
  }
  if ((live_[warp] & ~named) == 0) traffic_.meet(warp);
  const uint64_t result = thread.result;
  give_way();
  return result;
}

void Block::exchange(unsigned warp, unsigned lanes) {
  uint64_t ballot = 0;
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const auto lane = static_cast<unsigned>(std::countr_zero(rest));
    if (lane_of(warp, lane).value != 0) ballot |= uint64_t{1} << lane;
  }
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    Thread& thread = lane_of(warp, static_cast<unsigned>(std::countr_zero(rest)));
    if (thread.source != kVote && (lanes >> thread.source & 1) == 0) {
      fail(describe(thread.what, thread.where) + ": thread " + describe(thread.index) + " reads lane " +
           std::to_string(thread.source) + ", which does not take part");
    }
    thread.result = thread.source == kVote ? ballot : lane_of(warp, static_cast<unsigned>(thread.source)).value;
  }
}

}  // namespace simt::detail
