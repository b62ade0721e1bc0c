#include "cuda/alias_adam.h"

#include <array>

#include "cuda/common/block_slots.cuh"
#include "cuda/common/multi_tensor.cuh"
#include "cuda/common/observe_signs.cuh"
#include "cuda/common/step_scalars.cuh"
#include "cuda/common/workspace.h"

// Between the launches lives the workspace: a slot for every block that looks at gradients.
namespace sage_ext::cuda {

namespace {

struct ObserveEntry {
  const void* grad;
  uint32_t* signs;
  double* slots;  // one for each block
  int64_t numel;
};

struct ObserveCommon {
  StepScalars scalars;
  int64_t chunk;  // elements of a block
};

using ObserveTable = TensorTable<ObserveCommon, ObserveEntry>;

// Launch 1: <g, sign(p)>, where p is the gradient before g.
template <typename G>
__global__ void __launch_bounds__(kMapThreads) alias_adam_observe_kernel(const ObserveTable __grid_constant__ table) {
  const ObserveCommon& common = table.common;
  if (skips_step(common.scalars)) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const ObserveEntry& t = table.tensors[index];
  const int64_t begin = block * common.chunk;
  const int64_t left = t.numel - begin;
  Nothing nothing;
  double inner[1] = {observe_signs(
      static_cast<const G*>(t.grad) + begin, SignPlanes(t.signs, t.numel, begin, /*reads=*/true, /*writes=*/true),
      static_cast<int>(left < common.chunk ? left : common.chunk), grad_factor(common.scalars), nothing)};
  block_sum<kMapThreads>(inner);
  if (threadIdx.x == 0) store_one(t.slots + block, inner[0]);
}

struct AdvanceEntry {
  AliasAdamScalars* scalars;
  const double* slots;
  int64_t count;
};

struct AdvanceCommon {
  double beta2;
  StepScalars scalars;
};

using AdvanceTable = TensorTable<AdvanceCommon, AdvanceEntry>;

// Launch 2: a block for each tensor.
__global__ void __launch_bounds__(kMapThreads) alias_adam_advance_kernel(const AdvanceTable __grid_constant__ table) {
  if (skips_step(table.common.scalars)) return;
  const AdvanceEntry& t = table.tensors[blockIdx.x];
  double inner[1] = {0.0};
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < t.count; i += kMapThreads) inner[0] += load_one(t.slots + i);
  block_sum<kMapThreads>(inner);
  if (threadIdx.x != 0) return;
  AliasAdamScalars s{load_one(&t.scalars->r), load_one(&t.scalars->d)};
  alias_adam_advance(s, inner[0], table.common.beta2);
  store_one(&t.scalars->r, s.r);
  store_one(&t.scalars->d, s.d);
}

struct UpdateEntry {
  void* param;
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  const AliasAdamScalars* scalars;
  int64_t numel;
};

struct UpdateCommon {
  AliasAdamConstants constants;
  StepScalars scalars;
};

using UpdateTable = TensorTable<UpdateCommon, UpdateEntry>;

// Launch 3: the parameters and their moments.
template <typename W, typename G, typename S>
__global__ void __launch_bounds__(kMapThreads) alias_adam_kernel(const UpdateTable __grid_constant__ table) {
  const StepScalars& scalars = table.common.scalars;
  if (skips_step(scalars)) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const UpdateEntry& tensor = table.tensors[index];
  const AliasAdamCoefficients k =
      alias_adam_coefficients(learning_rate(scalars), load_uniform(&tensor.scalars->d),
                              static_cast<double>(grad_factor(scalars)), table.common.constants);

  auto* param = static_cast<W*>(tensor.param);
  const BlockElements range = elements_of_block(param, tensor.numel, block);
  constexpr int kN = kGroupSize<W, G, S>;
  constexpr int kU = kGroupsInFlight<W, G, S, S>;
  update_elements<kN, kU>(
      range, [&](float& w, float g, float& m, float& v) { alias_adam_update(w, m, v, g, k); },
      ArrayOperand<W, kN, kU>(param + range.begin),
      ArrayOperand<const G, kN, kU>(static_cast<const G*>(tensor.grad) + range.begin),
      ArrayOperand<S, kN, kU>(static_cast<S*>(tensor.exp_avg) + range.begin),
      ArrayOperand<S, kN, kU>(static_cast<S*>(tensor.exp_avg_sq) + range.begin));
}

// A tensor with its blocks and their slots.
struct Item {
  AliasAdamTensor tensor;
  int64_t blocks;
  double* slots;
};

struct Plan {
  std::vector<Item> items;
  int64_t chunk, bytes;
};

// Plans every tensor and lays out the scratch in `workspace`. With null only its size counts.
Plan make_plan(std::span<const AliasAdamTensor> tensors, void* workspace) {
  Plan plan{};
  int64_t total = 0;
  for (const AliasAdamTensor& t : tensors) total += t.numel;
  plan.chunk = slot_chunk(total);
  int64_t blocks = 0;
  for (const AliasAdamTensor& t : tensors) {
    plan.items.push_back({t, ceil_div(t.numel, plan.chunk), nullptr});
    blocks += plan.items.back().blocks;
  }
  WorkspaceLayout layout(workspace);
  auto* slots = layout.take<double>(blocks);
  plan.bytes = layout.bytes();
  if (workspace == nullptr) return plan;
  for (Item& item : plan.items) {
    item.slots = slots;
    slots += item.blocks;
  }
  return plan;
}

void launch_observe(const Plan& plan, const StepScalars& scalars, cudaStream_t stream) {
  const auto dtype_of = [](const Item& item) { return item.tensor.grad_dtype; };
  for_each_dtype_mix(std::span<const Item>(plan.items), dtype_of, [&](DType dtype, std::span<const Item> mix) {
    std::vector<ObserveEntry> entries;
    std::vector<int64_t> blocks;
    for (const Item& item : mix) {
      if (item.blocks == 0) continue;
      entries.push_back({item.tensor.grad, item.tensor.signs, item.slots, item.tensor.numel});
      blocks.push_back(item.blocks);
    }
    visit_dtypes(
        [&](auto g) {
          launch_tensors("alias_adam_observe", &alias_adam_observe_kernel<typename decltype(g)::type>, kMapThreads,
                         stream, ObserveCommon{scalars, plan.chunk}, std::span<const ObserveEntry>(entries),
                         std::span<const int64_t>(blocks));
        },
        dtype);
  });
}

void launch_advance(const Plan& plan, double beta2, const StepScalars& scalars, cudaStream_t stream) {
  std::vector<AdvanceEntry> entries;
  for (const Item& item : plan.items) entries.push_back({item.tensor.scalars, item.slots, item.blocks});
  const std::vector<int64_t> blocks(entries.size(), 1);
  launch_tensors("alias_adam_advance", &alias_adam_advance_kernel, kMapThreads, stream, AdvanceCommon{beta2, scalars},
                 std::span<const AdvanceEntry>(entries), std::span<const int64_t>(blocks));
}

void launch_update(const Plan& plan, const AliasAdamConstants& constants, const StepScalars& scalars,
                   cudaStream_t stream) {
  const auto dtypes_of = [](const Item& item) {
    return std::array{item.tensor.param_dtype, item.tensor.grad_dtype, item.tensor.state_dtype};
  };
  for_each_dtype_mix(std::span<const Item>(plan.items), dtypes_of, [&](const auto& dtypes, std::span<const Item> mix) {
    std::vector<UpdateEntry> entries;
    std::vector<int64_t> blocks;
    for (const Item& item : mix) {
      const AliasAdamTensor& t = item.tensor;
      if (t.numel == 0) continue;
      entries.push_back({t.param, t.grad, t.exp_avg, t.exp_avg_sq, t.scalars, t.numel});
      blocks.push_back(ceil_div(t.numel, kMapChunk));
    }
    visit_dtypes(
        [&](auto w, auto g, auto s) {
          launch_tensors(
              "alias_adam",
              &alias_adam_kernel<typename decltype(w)::type, typename decltype(g)::type, typename decltype(s)::type>,
              kMapThreads, stream, UpdateCommon{constants, scalars}, std::span<const UpdateEntry>(entries),
              std::span<const int64_t>(blocks));
        },
        dtypes[0], dtypes[1], dtypes[2]);
  });
}

}  // namespace

int64_t alias_adam_workspace_bytes(std::span<const AliasAdamTensor> tensors) {
  return make_plan(tensors, nullptr).bytes;
}

void alias_adam_step(std::span<const AliasAdamTensor> tensors, const AliasAdamConstants& constants,
                     const StepScalars& scalars, void* workspace, cudaStream_t stream) {
  const Plan plan = make_plan(tensors, workspace);
  launch_observe(plan, scalars, stream);
  launch_advance(plan, constants.beta2, scalars, stream);
  launch_update(plan, constants, scalars, stream);
}

}  // namespace sage_ext::cuda
