#pragma once

#include "cuda/alias_observe.cuh"

// The last launch of ALIAS: the parameters, and how far they move.
namespace sage_ext::cuda {

struct MoveEntry {
  void* param;
  const void* source;  // of the signs: bit planes, or the gradient
  double* slots;       // one for each block
  int64_t numel;
};

struct MoveCommon {
  AliasCommon alias;
  bool looks_at_step;  // two launches, of which only one is for the step at hand
  const double* slots;
  unsigned blocks;     // of all launches that move, which is the number of slots
  unsigned* finished;  // those that are done
};

using MoveTable = TensorTable<MoveCommon, MoveEntry>;

// Whether the planes have the signs of this step's gradient; the step has been advanced. All threads of the block call
// it.
__device__ __forceinline__ bool planes_are_new(const AliasCommon& common) {
  SAGE_EXT_SHARED(bool, is_recorded);
  if (threadIdx.x == 0) is_recorded = alias_records(load_uniform(&common.shared->step), common.options);
  __syncthreads();
  return is_recorded;
}

struct MoveCoefficients {
  float step, decay;
};

__device__ __forceinline__ MoveCoefficients move_coefficients(const AliasCommon& common) {
  const double step_size = load_uniform(&common.shared->step_size);
  return {static_cast<float>(step_size), decay_factor(step_size, common.options.weight_decay)};
}

// How far this thread's elements moved.
struct Displacement {
  double sum = 0.0;
  float largest = 0.0f;
};

// Moves an element; returns by how much, as it will be stored.
template <typename W>
__device__ __forceinline__ float move_element(float& param, float direction, const MoveCoefficients& k,
                                              float& largest) {
  const float before = param;
  sign_sgd_update(param, direction, k.step, k.decay);
  param = to_float(from_float<W>(param));
  const float distance = fabsf(param - before);
  largest = nan_max(largest, distance);
  return distance;
}

// Puts the block's share into its slot; the last block has them all. All threads of the block call it.
__device__ __forceinline__ void reduce_displacement(const MoveCommon& common, double* slot, const Displacement& moved) {
  const bool wants_sum = alias_adds_distances(common.alias.options);
  const auto combine = [wants_sum](double a, double b) { return wants_sum ? a + b : nan_max(a, b); };
  double total[1] = {wants_sum ? moved.sum : static_cast<double>(moved.largest)};
  block_reduce<kMapThreads>(total, combine);
  if (threadIdx.x == 0) store_one(slot, total[0]);
  if (!is_last_block(common.finished, common.blocks)) return;
  total[0] = 0.0;
#pragma unroll 4
  for (unsigned i = threadIdx.x; i < common.blocks; i += kMapThreads) {
    total[0] = combine(total[0], load_one(common.slots + i));
  }
  block_reduce<kMapThreads>(total, combine);
  if (threadIdx.x == 0) store_one(&common.alias.shared->displacement, total[0]);
}

// With signs from the planes: the gradient is not read again.
template <typename W>
__global__ void __launch_bounds__(kMapThreads) alias_move_signs_kernel(const MoveTable __grid_constant__ table) {
  const MoveCommon& common = table.common;
  const AliasCommon& alias = common.alias;
  if (skips_step(alias.scalars)) return;
  if (common.looks_at_step && !planes_are_new(alias)) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const MoveEntry& t = table.tensors[index];
  const MoveCoefficients k = move_coefficients(alias);
  const int64_t begin = block * alias.chunk;
  const int64_t left = t.numel - begin;
  auto* const signs = const_cast<uint32_t*>(static_cast<const uint32_t*>(t.source));
  Displacement moved;
  float group = 0.0f;
  update_with_signs(
      static_cast<W*>(t.param) + begin, SignPlanes(signs, t.numel, begin, /*reads=*/true, /*writes=*/false),
      static_cast<int>(left < alias.chunk ? left : alias.chunk),
      [&](float& w, float sign) {
        group += move_element<W>(w, sign, k, moved.largest);
        return 0.0f;
      },
      [&] {
        moved.sum += static_cast<double>(group);
        group = 0.0f;
      });
  reduce_displacement(common, t.slots + block, moved);
}

// With signs of the gradient.
template <typename W, typename G>
__global__ void __launch_bounds__(kMapThreads) alias_move_kernel(const MoveTable __grid_constant__ table) {
  const MoveCommon& common = table.common;
  const AliasCommon& alias = common.alias;
  if (skips_step(alias.scalars)) return;
  if (common.looks_at_step && planes_are_new(alias)) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const MoveEntry& t = table.tensors[index];
  const MoveCoefficients k = move_coefficients(alias);
  const float factor = grad_factor(alias.scalars);

  auto* param = static_cast<W*>(t.param);
  const BlockElements range = elements_of_block(param, t.numel, block, alias.chunk);
  constexpr int kN = kGroupSize<W, G>;
  constexpr int kU = kGroupsInFlight<W, G>;
  Displacement moved;
  update_elements<kN, kU>(
      range, [&](float& w, float g, float& distance) { distance = move_element<W>(w, g * factor, k, moved.largest); },
      ArrayOperand<W, kN, kU>(param + range.begin),
      ArrayOperand<const G, kN, kU>(static_cast<const G*>(t.source) + range.begin), SumOperand<kN>(moved.sum));
  reduce_displacement(common, t.slots + block, moved);
}

}  // namespace sage_ext::cuda
