// The emulator has to notice kernels that are wrong.
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "simt/sanitizer.h"
#include "simt/simt.h"

namespace {

#if defined(SIMT_HAS_ASAN)
constexpr bool kAddressSanitizer = true;
#else
constexpr bool kAddressSanitizer = false;
#endif

struct Params {
  int* out;
  int variant;
};

// What launching the kernel throws, in order and under a few random schedules.
void expect_error(void (*kernel)(Params), const std::vector<std::string>& parts, dim3 block = 64, int variant = 0,
                  simt::Options options = {}, size_t dynamic_bytes = 0) {
  for (options.schedule = 0; options.schedule < 6; ++options.schedule) {
    simt::Session session(options);
    std::vector<int> out(2048);
    try {
      simt::launch("wrong", 2, block, dynamic_bytes, nullptr, kernel, Params{out.data(), variant});
      ADD_FAILURE() << "no error under schedule " << options.schedule;
    } catch (const simt::Error& error) {
      const std::string message = error.what();
      for (const std::string& part : parts) {
        EXPECT_NE(message.find(part), std::string::npos) << message << "\nlacks: " << part;
      }
    }
    EXPECT_TRUE(session.launches().empty());
  }
}

// ---- barriers ----------------------------------------------------------------------------------------------------

template <bool kBarrier>
__global__ void rotate(const Params params) {
  using Row = int[64];
  SAGE_EXT_SHARED(Row, row);
  row[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (kBarrier) __syncthreads();
  params.out[threadIdx.x] = row[(threadIdx.x + 1) % 64];
}

template <bool kBarrier>
std::vector<std::byte> run_rotate() {
  std::vector<int> out(64);
  simt::launch("rotate", 1, 64, 0, nullptr, rotate<kBarrier>, Params{out.data(), 0});
  std::vector<std::byte> bytes;
  simt::append_bytes(bytes, out.data(), out.size());
  return bytes;
}

TEST(SimtErrors, MissingBarrierShowsAsADifference) {
  EXPECT_TRUE(simt::same_under_schedules(run_rotate<true>));
  const simt::Comparison difference = simt::same_under_schedules(run_rotate<false>);
  EXPECT_FALSE(difference);
  EXPECT_NE(difference.message.find("differs from schedule 0 at byte"), std::string::npos) << difference;
}

// No warp primitive or barrier stands between these: only a schedule that interrupts threads shows the race.
struct RaceParams {
  unsigned* counter;
  unsigned* tickets;
};

__global__ void lost_update(const RaceParams params) {
  simt::on_load(params.counter, 4);
  const unsigned old = *params.counter;
  simt::on_store(params.counter, 4);
  *params.counter = old + 1;
}

TEST(SimtErrors, LostUpdateShowsAsADifference) {
  EXPECT_FALSE(simt::same_under_schedules([] {
    unsigned counter = 0;
    simt::launch("lost_update", 1, 256, 0, nullptr, lost_update, RaceParams{&counter, nullptr});
    std::vector<std::byte> bytes;
    simt::append_bytes(bytes, &counter, 1);
    return bytes;
  }));
}

__global__ void barrier_after_exit(const Params params) {
  if (threadIdx.x == 40) return;
  __syncthreads();
  params.out[threadIdx.x] = 1;
}

__global__ void barriers_in_branches(const Params) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void barriers_of_two_kinds(const Params) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads_or(1);
  }
}

TEST(SimtErrors, DivergentBarrier) {
  expect_error(barrier_after_exit, {"kernel 'wrong', block (", ", thread (", "divergent barrier", "__syncthreads at "});
  expect_error(barriers_in_branches, {"divergent barrier: reaches __syncthreads at test_simt_errors.cpp:", "waits in"});
  expect_error(barriers_of_two_kinds, {"divergent barrier: reaches ", "__syncthreads_or at"});
}

// ---- warps -------------------------------------------------------------------------------------------------------

__global__ void wrong_in_warp(const Params params) {
  const unsigned lane = threadIdx.x;
  int value = static_cast<int>(lane);
  switch (params.variant) {
    case 0:  // half of the warp at another place
      value = lane < 16 ? __shfl_xor_sync(~0u, value, 1) : __shfl_xor_sync(~0u, value, 2);
      break;
    case 1:  // some have exited
      if (lane > 20) return;
      value = __shfl_down_sync(~0u, value, 1);
      break;
    case 2:  // the calling lane is not named
      value = __shfl_sync(1u, value, 0);
      break;
    case 3:  // the source is not named
      if (lane < 16) value = __shfl_sync(0xffffu, value, 20);
      break;
    case 4:  // some wait at a barrier
      if (lane < 4) __syncwarp();
      __syncthreads();
      break;
    case 5:  // masks differ
      value = static_cast<int>(__ballot_sync(lane < 31 ? ~0u : 0xfffffffeu, 1));
      break;
    case 6:
      value = __shfl_up_sync(~0u, value, 1, 12);
      break;
    case 7:  // not there: the block has 20 threads
      value = __shfl_sync(~0u, value, 25);
      break;
    default:  // lane 0 waits for 1, which waits for 2, which waits for 0
      if (lane == 0) __syncwarp(0x3);
      if (lane == 1) __syncwarp(0x6);
      if (lane == 2) __syncwarp(0x5);
  }
  params.out[lane] = value;
}

TEST(SimtErrors, DivergentShuffle) {
  expect_error(wrong_in_warp, {"divergent __shfl_xor_sync: reaches", "and thread (", "waits in __shfl_xor_sync"}, 32,
               0);
  expect_error(wrong_in_warp, {"divergent __shfl_down_sync"}, 32, 1);
  expect_error(wrong_in_warp, {"mask 0x1 lacks the calling lane"}, 32, 2);
  expect_error(wrong_in_warp, {"__shfl_sync at", "reads lane 20, which does not take part"}, 32, 3);
  expect_error(wrong_in_warp, {"divergent", "__syncwarp", "__syncthreads"}, 32, 4);
  expect_error(wrong_in_warp, {"divergent __ballot_sync", "0xfffffffe"}, 32, 5);
  expect_error(wrong_in_warp, {"width 12"}, 32, 6);
  expect_error(wrong_in_warp, {"reads lane 25, which does not take part"}, 20, 7);
}

TEST(SimtErrors, DeadlockNamesWhoWaitsWhere) {
  expect_error(wrong_in_warp,
               {"kernel 'wrong', block (", "deadlock: ", "thread (0,0,0) waits in __syncwarp at test_simt_errors.cpp:",
                "with mask 0x3", "thread (1,0,0)", "with mask 0x6", "thread (2,0,0)", "with mask 0x5"},
               32, 8);
}

// After an error, stacks and shared memory serve the next launch.
TEST(SimtErrors, LaunchesGoOnAfterAnError) {
  for (int i = 0; i < 3; ++i) {
    expect_error(barriers_in_branches, {"divergent barrier"}, 1024);
    EXPECT_TRUE(simt::same_under_schedules(run_rotate<true>, 2));
  }
}

// ---- memory ------------------------------------------------------------------------------------------------------

__global__ void misaligned(const Params params) {
  const char* address = reinterpret_cast<const char*>(params.out) + 8 * (threadIdx.x == 33);
  simt::on_load(address, 16);
}

__global__ void misaligned_atomic(const Params params) {
  auto* address = reinterpret_cast<unsigned long long*>(params.out + 1);
  atomicAdd(address, 1ull);
}

TEST(SimtErrors, MisalignedAccess) {
  expect_error(misaligned, {"thread (33,0,0): misaligned load of 16 bytes, 8 past"});
  expect_error(misaligned_atomic, {"misaligned atomic of 8 bytes, 4 past"});
}

__global__ void read_past_global(const Params params) { params.out[0] = params.out[2048 + params.variant]; }

using Row = int[10];

__global__ void read_past_shared(const Params params) {
  SAGE_EXT_SHARED(Row, row);
  row[threadIdx.x % 10] = 1;
  __syncthreads();
  const int* past = row;
  params.out[threadIdx.x] = past[10 + params.variant];
}

__global__ void write_past_shared(const Params params) {
  SAGE_EXT_SHARED(Row, row);
  int* past = row;
  if (threadIdx.x == 0) past[params.variant] = 5;
}

__global__ void write_past_dynamic(const Params params) {
  SAGE_EXT_DYNAMIC_SHARED(int, memory);
  if (threadIdx.x == 0) memory[params.variant] = 5;
}

TEST(SimtErrors, OutOfBoundsAccessUnderAddressSanitizer) {
  if (!kAddressSanitizer) GTEST_SKIP() << "without AddressSanitizer";
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  const auto run = [](void (*kernel)(Params), int variant) {
    std::vector<int> out(2048);
    simt::launch("wrong", 1, 32, 64, nullptr, kernel, Params{out.data(), variant});
  };
  EXPECT_DEATH(run(read_past_global, 0), "heap-buffer-overflow");
  EXPECT_DEATH(run(read_past_shared, 0), "use-after-poison");
  EXPECT_DEATH(run(write_past_shared, 10), "use-after-poison");
  EXPECT_DEATH(run(write_past_shared, -1), "use-after-poison");
  EXPECT_DEATH(run(write_past_dynamic, 16), "use-after-poison");
}

TEST(SimtErrors, OutOfBoundsSharedAccessWithoutAddressSanitizer) {
  if (kAddressSanitizer) GTEST_SKIP() << "with AddressSanitizer";
  expect_error(write_past_shared, {"shared variable 'row' of ", "was written past its end"}, 64, 10);
  expect_error(write_past_shared, {"shared variable 'row' of ", "was written before its begin"}, 64, -1);
  expect_error(write_past_dynamic, {"the dynamic shared memory was written past its end"}, 64, 16, {}, 64);
  // Reads find a NaN.
  std::vector<int> out(64);
  simt::launch("read_past_shared", 1, 32, 0, nullptr, read_past_shared, Params{out.data(), 0});
  EXPECT_TRUE(__int_as_float(out[0]) != __int_as_float(out[0]));
}

__global__ void too_much_shared(const Params params) {
  using Half = char[24 * 1024];
  SAGE_EXT_SHARED(Half, first);
  first[threadIdx.x] = 0;
  if (params.variant == 0) {
    SAGE_EXT_SHARED(Half, second);
    SAGE_EXT_SHARED(char, one_more);
    second[threadIdx.x] = one_more = 0;
  }
}

TEST(SimtErrors, SharedMemoryLimits) {
  expect_error(too_much_shared, {"'one_more'", "49153 bytes of static"});
  expect_error(too_much_shared, {"24576 bytes of static and 207873 of dynamic"}, 64, 1, {}, 203 * 1024 + 1);
  expect_error(too_much_shared, {"232449 bytes of dynamic shared memory"}, 64, 1, {}, 227 * 1024 + 1);
  expect_error(too_much_shared, {"24576 bytes of static and 0 of dynamic"}, 64, 1, {.shared_limit = 16 * 1024});
}

// ---- the host's side ---------------------------------------------------------------------------------------------

__global__ void nothing(const Params) {}
__global__ void launches(const Params params) { simt::launch("inner", 1, 1, 0, nullptr, nothing, params); }
__global__ void throws(const Params) { throw std::out_of_range("from the kernel"); }

TEST(SimtErrors, WrongLaunches) {
  const Params params{nullptr, 0};
  EXPECT_THROW(simt::launch("nothing", 0, 32, 0, nullptr, nothing, params), simt::Error);
  EXPECT_THROW(simt::launch("nothing", 1, 1025, 0, nullptr, nothing, params), simt::Error);
  EXPECT_THROW(simt::launch("nothing", 1, dim3(32, 32, 2), 0, nullptr, nothing, params), simt::Error);
  EXPECT_THROW(simt::launch("nothing", 1, dim3(1, 1, 65), 0, nullptr, nothing, params), simt::Error);
  EXPECT_THROW(simt::launch("nothing", dim3(1, 65536), 1, 0, nullptr, nothing, params), simt::Error);
  EXPECT_THROW(simt::launch("launches", 1, 1, 0, nullptr, launches, params), simt::Error);
  EXPECT_THROW(simt::launch("throws", 1, 64, 0, nullptr, throws, params), std::out_of_range);
  EXPECT_THROW(__syncthreads(), simt::Error);
}

TEST(SimtErrors, OneSessionAtATime) {
  const simt::Session session;
  EXPECT_THROW(simt::Session(), std::logic_error);
  EXPECT_EQ(simt::Session::current(), &session);
}

}  // namespace
