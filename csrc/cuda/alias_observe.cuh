#pragma once

#include "core/math/alias.h"
#include "cuda/block_slots.cuh"
#include "cuda/multi_tensor.cuh"
#include "cuda/observe_signs.cuh"
#include "cuda/step_scalars.cuh"

// The first two launches of ALIAS: look at the gradients, then advance what the tensors share.
namespace sage_ext::cuda {

struct AliasCommon {
  AliasOptions options;
  StepScalars scalars;
  AliasScalars* shared;
  int64_t chunk;  // elements of a block
};

struct ObserveEntry {
  const void* grad;
  void* kept;               // of the gradient before it: bit planes, all of it, or nothing
  AliasObservation* slots;  // one for each block
  int64_t numel;
};

using ObserveTable = TensorTable<AliasCommon, ObserveEntry>;

// What is done with what is kept of a gradient. Nothing: this step does not look at gradients.
struct ObservePurpose {
  bool refreshes, records;  // reads what is kept; replaces it
};

// All threads of the block call it. Behind it none reads the step any more.
__device__ __forceinline__ ObservePurpose purpose_of_step(const AliasCommon& common) {
  SAGE_EXT_SHARED(ObservePurpose, purpose);
  if (threadIdx.x == 0) {  // 64-bit divisions
    AliasScalars s{};
    s.step = load_uniform(&common.shared->step);
    const double step = sage_ext::alias_step(s, common.options);
    purpose = {alias_refreshes(step, common.options), alias_records(step, common.options)};
  }
  __syncthreads();
  return purpose;
}

__device__ __forceinline__ void store_slot(AliasObservation* slot, const AliasObservation& seen) {
  if (threadIdx.x != 0) return;
  store_one(&slot->grad_max, seen.grad_max);
  store_one(&slot->grad_min, seen.grad_min);
  store_one(&slot->inner, seen.inner);
  store_one(&slot->difference, seen.difference);
}

// The memory-efficient form with descent.
template <typename G>
__global__ void __launch_bounds__(kMapThreads) alias_observe_signs_kernel(const __grid_constant__ ObserveTable table) {
  const AliasCommon& common = table.common;
  if (skips_step(common.scalars)) return;
  const ObservePurpose purpose = purpose_of_step(common);
  if (!purpose.refreshes && !purpose.records) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const ObserveEntry& t = table.tensors[index];
  const int64_t begin = block * common.chunk;
  const int64_t left = t.numel - begin;
  Extrema extrema;
  double inner[1] = {observe_signs(
      static_cast<const G*>(t.grad) + begin,
      SignPlanes(static_cast<uint32_t*>(t.kept), t.numel, begin, purpose.refreshes, purpose.records),
      static_cast<int>(left < common.chunk ? left : common.chunk), grad_factor(common.scalars), &extrema)};
  block_sum<kMapThreads>(inner);
  block_max<kMapThreads>(extrema.largest);
  store_slot(t.slots + block, {extrema.largest[0], -extrema.largest[1], inner[0], 0.0});
}

// The memory-efficient form with the lower bound.
template <typename G>
__global__ void __launch_bounds__(kMapThreads)
    alias_observe_extrema_kernel(const __grid_constant__ ObserveTable table) {
  const AliasCommon& common = table.common;
  if (skips_step(common.scalars)) return;
  const ObservePurpose purpose = purpose_of_step(common);
  if (!purpose.refreshes && !purpose.records) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const ObserveEntry& t = table.tensors[index];
  const float factor = grad_factor(common.scalars);
  const auto* grad = static_cast<const G*>(t.grad);
  const BlockElements range = elements_of_block(grad, t.numel, block, common.chunk);
  constexpr int kN = kGroupSize<G>;
  constexpr int kU = kGroupsInFlight<G>;
  Extrema extrema;
  update_elements<kN, kU>(
      range, [&](float g) { extrema.add(g * factor); }, ArrayOperand<const G, kN, kU>(grad + range.begin));
  block_max<kMapThreads>(extrema.largest);
  store_slot(t.slots + block, {extrema.largest[0], -extrema.largest[1], 0.0, 0.0});
}

// The gradient before this one.
template <typename G, int N, int U>
struct PreviousOperand : ArrayOperand<G, N, U> {
  using Base = ArrayOperand<G, N, U>;
  ObservePurpose purpose;

  __device__ __forceinline__ PreviousOperand(G* chunk, ObservePurpose purpose) : Base(chunk), purpose(purpose) {}

  __device__ __forceinline__ void load(int u, int i) {
    if (purpose.refreshes) Base::load(u, i);
  }
  __device__ __forceinline__ void unpack(int u) {
    if (purpose.refreshes) {
      Base::unpack(u);
    } else {
#pragma unroll
      for (float& value : Base::values) value = 0.0f;
    }
  }
  __device__ __forceinline__ void store(int u, int i) {
    if (purpose.records) Base::store(u, i);
  }
  __device__ __forceinline__ void load_one(int i) {
    if (purpose.refreshes) {
      Base::load_one(i);
    } else {
      Base::values[0] = 0.0f;
    }
  }
  __device__ __forceinline__ void store_one(int i) {
    if (purpose.records) Base::store_one(i);
  }
};

// The base form. The gradient is kept as it came, so that nothing is lost to a rounding.
template <typename G>
__global__ void __launch_bounds__(kMapThreads)
    alias_observe_difference_kernel(const __grid_constant__ ObserveTable table) {
  const AliasCommon& common = table.common;
  if (skips_step(common.scalars)) return;
  const ObservePurpose purpose = purpose_of_step(common);
  if (!purpose.refreshes && !purpose.records) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const ObserveEntry& t = table.tensors[index];
  const float factor = grad_factor(common.scalars);
  const auto previous_factor = static_cast<float>(load_uniform(&common.shared->grad_factor));
  const auto* grad = static_cast<const G*>(t.grad);
  const BlockElements range = elements_of_block(grad, t.numel, block, common.chunk);
  constexpr int kN = kGroupSize<G>;
  constexpr int kU = kGroupsInFlight<G, G>;
  double sums[2] = {0.0, 0.0};
  update_elements<kN, kU>(
      range,
      [&](float raw, float& kept, float& inner, float& difference) {
        const float g = raw * factor;
        const float p = kept * previous_factor;
        inner = g * sign_of(p);
        difference = fabsf(g - p);
        kept = raw;
      },
      ArrayOperand<const G, kN, kU>(grad + range.begin),
      PreviousOperand<G, kN, kU>(static_cast<G*>(t.kept) + range.begin, purpose), SumOperand<kN>(sums[0]),
      SumOperand<kN>(sums[1]));
  block_sum<kMapThreads>(sums);
  store_slot(t.slots + block, {0.0, 0.0, sums[0], sums[1]});
}

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
    sums[1] += load_one(&slot->difference);
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

// Launch 2, one block.
__global__ void __launch_bounds__(kAdvanceThreads) alias_advance_kernel(const __grid_constant__ AdvanceParams p) {
  if (skips_step(p.common.scalars)) return;
  const ObservePurpose purpose = purpose_of_step(p.common);
  AliasObservation seen{};
  if (purpose.refreshes || purpose.records) seen = sum_observations(p);
  if (threadIdx.x != 0) return;
  AliasScalars s = load_scalars(p.common.shared);
  const double loss = p.loss_tensor != nullptr ? static_cast<double>(load_uniform(p.loss_tensor)) : p.loss;
  alias_advance(s, seen, learning_rate(p.common.scalars), loss, grad_factor(p.common.scalars), p.common.options);
  // Without elements nothing moves.
  if (p.count == 0 && p.common.options.mode != AliasMode::refresh) s.displacement = 0.0;
  store_scalars(p.common.shared, s);
  store_one(p.finished, 0u);
}

}  // namespace sage_ext::cuda
