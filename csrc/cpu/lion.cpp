#include "cpu/lion.h"

#include "core/math/sign.h"
#include "cpu/common/isa.h"
#include "cpu/common/map.h"

namespace sage_ext::cpu {

using LionChunk = void (*)(const LionTensor&, int64_t begin, int64_t end, float step, float grad_factor,
                           const LionCoefficients&);

}  // namespace sage_ext::cpu

#define SAGE_EXT_ISA_SOURCE "cpu/lion_kernels.inl"
#include "cpu/common/foreach_isa.inl"

namespace sage_ext::cpu {

void lion_step(std::span<const LionTensor> tensors, const LionOptions& options, int threads) {
  const LionCoefficients k =
      lion_coefficients(options.lr, options.beta1, options.beta2, options.weight_decay, /*momentum_first=*/false);
  const auto step = static_cast<float>(options.lr);
  const auto grad_factor = static_cast<float>(options.grad_factor);
  map_chunks(tensors, threads, [&](const LionTensor& tensor, int64_t begin, int64_t end) {
    SAGE_EXT_FOR_ACTIVE_ISA(select_lion_chunk(tensor))(tensor, begin, end, step, grad_factor, k);
  });
}

}  // namespace sage_ext::cpu
