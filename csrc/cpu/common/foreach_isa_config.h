#pragma once

// Whether the kernels are compiled for several x86 instruction sets. Elsewhere (Arm, say) the compiler's own
// baseline, which has SIMD, is the only one. So it is in files that are compiled with this set to 0.
#ifdef SAGE_EXT_X86_ISAS
#elif defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define SAGE_EXT_X86_ISAS 1
#else
#define SAGE_EXT_X86_ISAS 0
#endif
