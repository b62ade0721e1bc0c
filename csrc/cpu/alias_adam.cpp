#include "cpu/alias_adam.h"

#include <vector>

#include "cpu/common/isa.h"
#include "cpu/common/map.h"
#include "cpu/common/observe.h"

namespace sage_ext::cpu {

using AliasAdamChunk = void (*)(const AliasAdamTensor&, int64_t begin, int64_t end, const AliasAdamCoefficients&);

}  // namespace sage_ext::cpu

#define SAGE_EXT_ISA_SOURCE "cpu/alias_adam_kernels.inl"
#include "cpu/common/foreach_isa.inl"

namespace sage_ext::cpu {

void alias_adam_step(std::span<const AliasAdamTensor> tensors, double lr, const AliasAdamConstants& constants,
                     double grad_factor, int threads) {
  const auto factor = static_cast<float>(grad_factor);
  std::vector<double> inner(tensors.size(), 0.0);
  for (const auto& [tensor, part] :
       reduce_chunks<double>(tensors, threads, [&](const AliasAdamTensor& t, int64_t begin, int64_t end) {
         return observe_extrema(t.grad, t.grad_dtype, {begin, end, t.numel}, factor, t.signs, true).inner;
       })) {
    inner[static_cast<size_t>(tensor)] += part;
  }
  for (size_t i = 0; i < tensors.size(); ++i) alias_adam_advance(*tensors[i].scalars, inner[i], constants.beta2);
  map_chunks(tensors, threads, [&](const AliasAdamTensor& t, int64_t begin, int64_t end) {
    SAGE_EXT_FOR_ACTIVE_ISA(select_alias_adam_chunk(t))
    (t, begin, end, alias_adam_coefficients(lr, t.scalars->d, grad_factor, constants));
  });
}

}  // namespace sage_ext::cpu
