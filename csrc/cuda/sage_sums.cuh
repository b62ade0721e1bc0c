#pragma once

#include <cmath>

#include "cuda/common/column_sums.cuh"
#include "cuda/common/multi_tensor.cuh"
#include "cuda/common/step_scalars.cuh"

// The first launch of SAGE: partial sums of |g| over blocks of rows.
namespace sage_ext::cuda {

struct SumEntry {
  const void* grad;
  float* sums;
  unsigned* finished;
  ColumnPanel panel;
};

using SumTable = TensorTable<StepScalars, SumEntry>;

// A source for sum_columns(): |g|.
template <typename G>
struct AbsoluteGradients {
  static constexpr int kVec = kVecSize<G>;
  const G* grad;
  bool aligned;
  Pack<G, kVec> packs[kRowsInFlight];
  G singles[kVec];

  __device__ __forceinline__ explicit AbsoluteGradients(const G* data)
      : grad(data), aligned(Pack<G, kVec>::is_aligned(data)) {}

  __device__ __forceinline__ void load(int u, int64_t i) { packs[u].load(grad + i); }
  __device__ __forceinline__ void terms(int u, int64_t, float (&terms)[kVec]) {
    packs[u].unpack(terms);
#pragma unroll
    for (int e = 0; e < kVec; ++e) terms[e] = fabsf(terms[e]);
  }
  __device__ __forceinline__ void load_one(int e, int64_t i) { singles[e] = cuda::load_one(grad + i); }
  __device__ __forceinline__ float term_one(int e, int64_t) { return fabsf(to_float(singles[e])); }
};

template <typename G>
__global__ void __launch_bounds__(kSumThreads) sage_sums_kernel(const SumTable __grid_constant__ table) {
  if (skips_step(table.common)) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const SumEntry& t = table.tensors[index];
  if (block == 0 && threadIdx.x == 0) store_one(t.finished, 0u);
  AbsoluteGradients<G> source(static_cast<const G*>(t.grad));
  sum_columns(source, t.panel, static_cast<uint32_t>(block), t.sums);
}

}  // namespace sage_ext::cuda
