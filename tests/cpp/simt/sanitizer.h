#pragma once

// SIMT_ASAN(statement): for AddressSanitizer only, which the kernels may be compiled for where the emulator is not.
#if defined(SIMT_HAS_ASAN)
#elif defined(__SANITIZE_ADDRESS__)
#define SIMT_HAS_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_HAS_ASAN 1
#endif
#endif

#if defined(SIMT_HAS_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SIMT_ASAN(statement) statement
#else
#define SIMT_ASAN(statement) static_cast<void>(0)
#endif
