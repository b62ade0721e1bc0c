#pragma once

// Code in core/ is compiled by the host compiler for every instruction set and, where it is marked
// SAGE_EXT_HD, by nvcc for the device as well.
#if defined(__CUDACC__)
#define SAGE_EXT_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
// always_inline is what lets one definition be compiled into loops of several instruction sets: a
// function that stayed out of line would keep the baseline's instructions (see cpu/common/foreach_isa.inl).
#define SAGE_EXT_HD inline __attribute__((always_inline))
#else
#define SAGE_EXT_HD inline
#endif
