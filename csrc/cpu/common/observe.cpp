#include "cpu/common/observe.h"

#include <cstring>

#include "core/math/sign.h"
#include "core/sign_planes.h"
#include "cpu/common/isa.h"
#include "cpu/common/x86_intrinsics.h"

namespace sage_ext::cpu {

using ObserveValues = Observation (*)(const void* grad, Span, float factor, uint32_t* signs, bool record);
using ObservePair = Observation (*)(const void* grad, Span, float factor, void* prev_grad, float prev_factor,
                                    bool record);

}  // namespace sage_ext::cpu

#define SAGE_EXT_ISA_SOURCE "cpu/common/observe_kernels.inl"
#include "cpu/common/foreach_isa.inl"

namespace sage_ext::cpu {

Observation observe_extrema(const void* grad, DType dtype, Span span, float factor, uint32_t* signs, bool record) {
  const ObserveValues observe = SAGE_EXT_FOR_ACTIVE_ISA(select_observe_values<false>(signs != nullptr, dtype));
  return observe(grad, span, factor, signs, record);
}

Observation observe_norm(const void* grad, DType dtype, Span span, float factor, uint32_t* signs, bool record) {
  const ObserveValues observe = SAGE_EXT_FOR_ACTIVE_ISA(select_observe_values<true>(signs != nullptr, dtype));
  return observe(grad, span, factor, signs, record);
}

Observation observe_difference(const void* grad, DType dtype, Span span, float factor, void* prev_grad,
                               float prev_factor, bool record) {
  return SAGE_EXT_FOR_ACTIVE_ISA(select_observe_pair(dtype))(grad, span, factor, prev_grad, prev_factor, record);
}

}  // namespace sage_ext::cpu
