#pragma once

#include <cstdint>

// Which instruction set the CPU kernels run with. One binary holds them all; the choice is made at first use.
namespace sage_ext::cpu {

enum class Isa { baseline, avx2, avx512 };

// The best set that this processor has, capped by the environment variable SAGE_EXT_CPU_CAPABILITY
// (default | avx2 | avx512), which is read once. Throws std::invalid_argument for any other value.
Isa active_isa();

// "default", "avx2" or "avx512".
const char* isa_name(Isa isa);

// The sets compiled into this binary, separated by spaces.
const char* built_isas();

// How passes go through long arrays (elements.inl): element-wise ones from so many places in turn, at most kMaxStreams,
// and all of them ask for the cache lines that a place reaches so many strips later.
struct Streams {
  int64_t count;
  int64_t ahead;
};
inline constexpr int64_t kMaxStreams = 4;

// What suits this processor; no result depends on it. Tests try others.
extern Streams streams;

}  // namespace sage_ext::cpu
