#pragma once

#include <cuda_runtime.h>

// Shared memory of a block. On the emulator (tests/cpp/simt) its cuda_runtime.h spells these.
#if !defined(SAGE_EXT_SIMT)
// A variable or array type that all threads of a block share.
#define SAGE_EXT_SHARED(type, name) __shared__ type name
#endif
