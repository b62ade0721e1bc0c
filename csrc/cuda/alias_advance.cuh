#pragma once

#include <cstring>

#include "cuda/alias_observe.cuh"

// The second launch of ALIAS: advances what the tensors share, between looking at gradients and moving parameters.
namespace sage_ext::cuda {

inline constexpr int kAdvanceThreads = 1024;

struct AdvanceParams {
  AliasCommon common;
  const AliasObservation* slots;
  int64_t count;
  const float* loss_tensor;  // if not null, in loss's place
  double loss;
  unsigned* finished;  // blocks of the launch that moves the parameters
};

// What all slots hold, of which thread 0 makes use.
__device__ __forceinline__ AliasObservation sum_observations(const AdvanceParams& p) {
  if (p.count == 0) return {0.0, 0.0, 0.0, 0.0};
  double sums[2] = {0.0, 0.0};
  double largest[2] = {-kInfinity<double>, -kInfinity<double>};
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < p.count; i += kAdvanceThreads) {
    const AliasObservation* const slot = p.slots + i;
    largest[0] = nan_max(largest[0], load_one(&slot->grad_max));
    largest[1] = nan_max(largest[1], -load_one(&slot->grad_min));
    sums[0] += load_one(&slot->inner);
    sums[1] += load_one(&slot->norm);
  }
  block_max<kAdvanceThreads>(largest);
  block_sum<kAdvanceThreads>(sums);
  return {largest[0], -largest[1], sums[0], sums[1]};
}

__device__ __forceinline__ AliasScalars load_scalars(const AliasScalars* shared) {
  double values[kAliasScalars];
#pragma unroll
  for (int i = 0; i < kAliasScalars; ++i) values[i] = load_one(reinterpret_cast<const double*>(shared) + i);
  AliasScalars s;
  std::memcpy(&s, values, sizeof(s));
  return s;
}

__device__ __forceinline__ void store_scalars(AliasScalars* shared, const AliasScalars& s) {
  double values[kAliasScalars];
  std::memcpy(values, &s, sizeof(s));
#pragma unroll
  for (int i = 0; i < kAliasScalars; ++i) store_one(reinterpret_cast<double*>(shared) + i, values[i]);
}

// One block.
__global__ void __launch_bounds__(kAdvanceThreads) alias_advance_kernel(const AdvanceParams __grid_constant__ p) {
  if (skips_step(p.common.scalars)) return;
  const ObservePurpose purpose = purpose_of_step(p.common);
  AliasObservation seen{};
  if (purpose.refreshes || purpose.records) seen = sum_observations(p);
  if (threadIdx.x != 0) return;
  AliasScalars s = load_scalars(p.common.shared);
  const double loss = p.loss_tensor != nullptr ? static_cast<double>(load_uniform(p.loss_tensor)) : p.loss;
  alias_advance(s, seen, learning_rate(p.common.scalars), loss, grad_factor(p.common.scalars), p.common.options);
  // Without elements nothing moves.
  if (p.count == 0 && p.common.options.phase != AliasPhase::refresh) s.displacement = 0.0;
  store_scalars(p.common.shared, s);
  store_one(p.finished, 0u);
}

}  // namespace sage_ext::cuda
