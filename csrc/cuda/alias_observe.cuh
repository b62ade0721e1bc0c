#pragma once

#include "core/math/alias.h"
#include "cuda/common/block_slots.cuh"
#include "cuda/common/multi_tensor.cuh"
#include "cuda/common/observe_signs.cuh"
#include "cuda/common/step_scalars.cuh"

// The first launch of ALIAS: looks at the gradients, and records them.
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
  store_one(&slot->norm, seen.norm);
}

// What all threads of the block have seen, in each of them.
__device__ __forceinline__ AliasObservation reduce_observation(double inner, Extrema& extrema) {
  double sums[1] = {inner};
  block_sum<kMapThreads>(sums);
  block_max<kMapThreads>(extrema.largest);
  return {extrema.largest[0], -extrema.largest[1], sums[0], 0.0};
}

__device__ __forceinline__ AliasObservation reduce_observation(double inner, const Norm& norm) {
  double sums[2] = {inner, norm.sum};
  block_sum<kMapThreads>(sums);
  return {0.0, 0.0, sums[0], sums[1]};
}

// The forms that keep signs. `Taken`: Extrema or Norm.
template <typename G, typename Taken>
__global__ void __launch_bounds__(kMapThreads) alias_observe_signs_kernel(const ObserveTable __grid_constant__ table) {
  const AliasCommon& common = table.common;
  if (skips_step(common.scalars)) return;
  const ObservePurpose purpose = purpose_of_step(common);
  if (!purpose.refreshes && !purpose.records) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const ObserveEntry& t = table.tensors[index];
  const int64_t begin = block * common.chunk;
  const int64_t left = t.numel - begin;
  Taken taken;
  const double inner =
      observe_signs(static_cast<const G*>(t.grad) + begin,
                    SignPlanes(static_cast<uint32_t*>(t.kept), t.numel, begin, purpose.refreshes, purpose.records),
                    static_cast<int>(left < common.chunk ? left : common.chunk), grad_factor(common.scalars), taken);
  store_slot(t.slots + block, reduce_observation(inner, taken));
}

// The forms that keep nothing.
template <typename G>
__global__ void __launch_bounds__(kMapThreads)
    alias_observe_extrema_kernel(const ObserveTable __grid_constant__ table) {
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

template <typename G>
__global__ void __launch_bounds__(kMapThreads) alias_observe_norm_kernel(const ObserveTable __grid_constant__ table) {
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
  double norm[1] = {0.0};
  update_elements<kN, kU>(
      range, [&](float g, float& size) { size = fabsf(g * factor); }, ArrayOperand<const G, kN, kU>(grad + range.begin),
      SumOperand<kN>(norm[0]));
  block_sum<kMapThreads>(norm);
  store_slot(t.slots + block, {0.0, 0.0, 0.0, norm[0]});
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
    alias_observe_difference_kernel(const ObserveTable __grid_constant__ table) {
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

}  // namespace sage_ext::cuda
