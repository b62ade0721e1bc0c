#pragma once

// Of the compiler's own vector instructions, for blocks.inl: a few that it does not find by itself.
#include "cpu/common/foreach_isa_config.h"

#if SAGE_EXT_X86_ISAS
#include <immintrin.h>
#endif
