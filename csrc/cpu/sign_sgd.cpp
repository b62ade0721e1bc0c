#include "cpu/sign_sgd.h"

#include "core/math/sign.h"
#include "cpu/common/isa.h"
#include "cpu/common/map.h"

namespace sage_ext::cpu {

// Both rules behind one type: Sign-SGD needs of the coefficients the decay alone.
using SignSGDChunk = void (*)(const SignSGDTensor&, int64_t begin, int64_t end, float step, float grad_factor,
                              const SignumCoefficients&);

}  // namespace sage_ext::cpu

#define SAGE_EXT_ISA_SOURCE "cpu/sign_sgd_kernels.inl"
#include "cpu/common/foreach_isa.inl"

namespace sage_ext::cpu {

void sign_sgd_step(std::span<const SignSGDTensor> tensors, const SignSGDOptions& options, int threads) {
  const SignumCoefficients k = signum_coefficients(options.lr, options.momentum, options.weight_decay);
  const auto step = static_cast<float>(options.lr);
  const auto grad_factor = static_cast<float>(options.grad_factor);
  const bool has_momentum = options.momentum != 0.0;
  map_chunks(tensors, threads, [&](const SignSGDTensor& tensor, int64_t begin, int64_t end) {
    SAGE_EXT_FOR_ACTIVE_ISA(select_sign_sgd_chunk(tensor, has_momentum))(tensor, begin, end, step, grad_factor, k);
  });
}

}  // namespace sage_ext::cpu
