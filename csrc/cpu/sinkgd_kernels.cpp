#include "cpu/sinkgd_kernels.h"

#include "core/math/sinkgd.h"
#include "cpu/common/isa.h"

namespace sage_ext::cpu {

namespace {

constexpr int64_t kRowSegment = 4096;  // fp32 additions before a row's sum moves on to fp64
constexpr int64_t kColumnGroup = 256;  // columns whose shares are added up at a time

}  // namespace

}  // namespace sage_ext::cpu

#define SAGE_EXT_ISA_SOURCE "cpu/sinkgd_kernels.inl"
#include "cpu/common/foreach_isa.inl"

namespace sage_ext::cpu {

SinkGDKernels sinkgd_kernels(const SinkGDMatrix& matrix) { return SAGE_EXT_FOR_ACTIVE_ISA(select_kernels(matrix)); }

}  // namespace sage_ext::cpu
