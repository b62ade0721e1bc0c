#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/dtype.h"
#include "core/math/common.h"
#include "core/vote.h"

// A majority vote over the signs of gradients, as cpu/vote.h has it: one launch for each function, on `stream`. Packed
// votes begin on a 16-byte boundary.
namespace sage_ext::cuda {

struct Ballot {
  const void* grad;
  void* exp_avg;  // null without momentum
  int64_t numel;
  DType grad_dtype, exp_avg_dtype;
};

void pack_votes(const Ballot& ballot, const MomentumCoefficients& momentum, uint32_t* packed, int64_t voters,
                int64_t words, cudaStream_t stream);

void count_votes(const uint32_t* received, uint32_t* result, int64_t voters, int64_t words, cudaStream_t stream);

void unpack_votes(const uint32_t* packed, void* grad, DType dtype, int64_t numel, int64_t voters, int64_t words,
                  cudaStream_t stream);

}  // namespace sage_ext::cuda
