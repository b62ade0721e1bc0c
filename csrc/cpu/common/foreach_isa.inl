// Compiles one kernel file once for every instruction set, each in a namespace of its own. Before including
// this, define SAGE_EXT_ISA_SOURCE as that file's path, and include every header that the file needs: a header
// first seen in here would be compiled for one instruction set only, in the wrong namespace.
//
// NOTE: [no weak symbols] Kernel files define functions with internal linkage only (they stand in an unnamed
// namespace), and call nothing out of line but libm. An inline function with external linkage that was emitted
// for AVX-512 could be the copy that the linker keeps for everyone.
#include "cpu/common/elements.h"
#include "cpu/common/foreach_isa_config.h"

// Whether a fused multiply-add is one instruction. (__FMA__ does not tell: GCC 12 leaves it as the command line
// set it, whatever `#pragma GCC target` says.)
#if defined(__FMA__) || defined(__aarch64__)
#define SAGE_EXT_ISA_FMA 1
#else
#define SAGE_EXT_ISA_FMA 0
#endif

// fp32 lanes of a vector.
#define SAGE_EXT_ISA_LANES 4

namespace sage_ext::cpu::baseline {
#include "cpu/common/elements.inl"
#include SAGE_EXT_ISA_SOURCE
}  // namespace sage_ext::cpu::baseline

#if SAGE_EXT_X86_ISAS

#undef SAGE_EXT_ISA_FMA
#define SAGE_EXT_ISA_FMA 1
#undef SAGE_EXT_ISA_LANES
#define SAGE_EXT_ISA_LANES 8
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,prefer-vector-width=256")
#endif
namespace sage_ext::cpu::avx2 {
#include "cpu/common/elements.inl"
#include SAGE_EXT_ISA_SOURCE
}  // namespace sage_ext::cpu::avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#endif
#undef SAGE_EXT_ISA_LANES
#define SAGE_EXT_ISA_LANES 16
namespace sage_ext::cpu::avx512 {
#include "cpu/common/elements.inl"
#include SAGE_EXT_ISA_SOURCE
}  // namespace sage_ext::cpu::avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

// Calls a kernel file's function, as compiled for the instruction set in use.
#define SAGE_EXT_FOR_ACTIVE_ISA(call)        \
  [&] {                                      \
    switch (::sage_ext::cpu::active_isa()) { \
      case ::sage_ext::cpu::Isa::avx512:     \
        return avx512::call;                 \
      case ::sage_ext::cpu::Isa::avx2:       \
        return avx2::call;                   \
      default:                               \
        return baseline::call;               \
    }                                        \
  }()

#else
#define SAGE_EXT_FOR_ACTIVE_ISA(call) baseline::call
#endif

#undef SAGE_EXT_ISA_FMA
#undef SAGE_EXT_ISA_LANES
#undef SAGE_EXT_ISA_SOURCE
