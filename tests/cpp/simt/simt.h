#pragma once

// The emulator's face for tests: how launches inside a test run, and what they did. See README.md.
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <ostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace simt {

// What a kernel or a launch did wrong: thrown out of launch() with the kernel's name, block and thread.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Options {
  // 0: blocks, warps and lanes in order. Otherwise the seed of a random order, decided again at every scheduling point.
  uint64_t schedule = 0;
  bool count_sectors = false;
  size_t static_shared_limit = 48 * 1024;
  size_t shared_limit = 227 * 1024;  // static and dynamic together
};

// One launch that ended well, or one memset (kernel "cudaMemsetAsync").
struct Launch {
  std::string kernel;
  dim3 grid, block;
  size_t shared_bytes = 0;  // static and dynamic, without padding; the most of any block
  uint64_t bytes_read = 0;
  uint64_t bytes_written = 0;
  uint64_t uniform_bytes = 0;  // on_uniform_load's; not among bytes_read
  uint64_t sectors_read = 0;   // sectors of 32 bytes, counted with Options::count_sectors
  uint64_t sectors_written = 0;
  uint64_t atomics = 0;   // on global memory; each also reads and writes its bytes
  uint64_t barriers = 0;  // of blocks, completed

  // Bytes asked for per byte moved in sectors: 1 if every access is coalesced, above 1 if lanes read the same bytes.
  double sector_efficiency_read() const { return efficiency(bytes_read, sectors_read); }
  double sector_efficiency_written() const { return efficiency(bytes_written, sectors_written); }

 private:
  static double efficiency(uint64_t bytes, uint64_t sectors) {
    return sectors == 0 ? 1.0 : static_cast<double>(bytes) / (32.0 * static_cast<double>(sectors));
  }
};

// While it lives, launches follow its options and are listed. At most one at a time; without one, the default options.
class Session {
 public:
  explicit Session(const Options& options = {});
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  const Options& options() const { return options_; }
  const std::vector<Launch>& launches() const { return launches_; }
  void clear() { launches_.clear(); }
  void record(Launch launch) { launches_.push_back(std::move(launch)); }

  static Session* current();

 private:
  Options options_;
  std::vector<Launch> launches_;
};

// Fills memory with a byte pattern that is a NaN in every floating-point type and -1 as an integer: an output that no
// thread wrote, or an input that none should read.
void poison(void* address, size_t bytes);

struct Comparison {
  bool same;
  std::string message;  // the first difference, or the error
  explicit operator bool() const { return same; }
};
inline std::ostream& operator<<(std::ostream& stream, const Comparison& c) { return stream << c.message; }

// Runs `run`, which sets up its buffers, launches, and returns the bytes of its outputs, in order and under `seeds`
// random schedules, each in a Session of its own. The results have to be the same bytes.
Comparison same_under_schedules(const std::function<std::vector<std::byte>()>& run, int seeds = 8,
                                Options options = {});

// Appends an object's or an array's bytes to such a result.
template <typename T>
void append_bytes(std::vector<std::byte>& bytes, const T* values, size_t count) {
  const auto* begin = reinterpret_cast<const std::byte*>(values);
  bytes.insert(bytes.end(), begin, begin + count * sizeof(T));
}

}  // namespace simt
