#include "cpu/adamw.h"

#include "cpu/common/isa.h"
#include "cpu/common/map.h"

namespace sage_ext::cpu {

using AdamWChunk = void (*)(const AdamWTensor&, int64_t begin, int64_t end, float grad_factor);

}  // namespace sage_ext::cpu

#define SAGE_EXT_ISA_SOURCE "cpu/adamw_kernels.inl"
#include "cpu/common/foreach_isa.inl"

namespace sage_ext::cpu {

void adamw_step(std::span<const AdamWTensor> tensors, double grad_factor, int threads) {
  const auto factor = static_cast<float>(grad_factor);
  map_chunks(tensors, threads, [&](const AdamWTensor& tensor, int64_t begin, int64_t end) {
    SAGE_EXT_FOR_ACTIVE_ISA(select_adamw_chunk(tensor))(tensor, begin, end, factor);
  });
}

}  // namespace sage_ext::cpu
