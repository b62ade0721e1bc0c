#include "cuda/alias.h"

#include <array>

#include "cuda/alias_advance.cuh"
#include "cuda/alias_move.cuh"
#include "cuda/common/workspace.h"

// Between the launches lives the workspace: a slot for every block that looks at gradients, one for every block that
// moves parameters, and a counter of the latter.
namespace sage_ext::cuda {

namespace {

// A tensor with its blocks and their slots.
struct Item {
  AliasTensor tensor;
  int64_t blocks;
  AliasObservation* seen;
  double* moved;
};

struct Plan {
  std::vector<Item> items;  // of all tensors but empty ones
  int64_t chunk, blocks;
  unsigned* finished;
  AliasObservation* seen;
  double* moved;
  int64_t bytes;
};

// Plans every tensor and lays out the scratch in `workspace`. With null only its size counts.
Plan make_plan(std::span<const AliasTensor> tensors, void* workspace) {
  Plan plan{};
  int64_t total = 0;
  for (const AliasTensor& t : tensors) total += t.numel;
  plan.chunk = slot_chunk(total);
  for (const AliasTensor& t : tensors) {
    if (t.numel == 0) continue;
    plan.items.push_back({t, ceil_div(t.numel, plan.chunk), nullptr, nullptr});
    plan.blocks += plan.items.back().blocks;
  }
  WorkspaceLayout layout(workspace);
  plan.finished = layout.take<unsigned>(1);
  plan.seen = layout.take<AliasObservation>(plan.blocks);
  plan.moved = layout.take<double>(plan.blocks);
  plan.bytes = layout.bytes();
  if (workspace == nullptr) return plan;
  int64_t slot = 0;
  for (Item& item : plan.items) {
    item.seen = plan.seen + slot;
    item.moved = plan.moved + slot;
    slot += item.blocks;
  }
  return plan;
}

std::vector<int64_t> blocks_of(std::span<const Item> items) {
  std::vector<int64_t> blocks;
  for (const Item& item : items) blocks.push_back(item.blocks);
  return blocks;
}

void launch_observe(const Plan& plan, const AliasCommon& common, cudaStream_t stream) {
  const auto dtype_of = [](const Item& item) { return item.tensor.grad_dtype; };
  for_each_dtype_mix(std::span<const Item>(plan.items), dtype_of, [&](DType dtype, std::span<const Item> mix) {
    const AliasOptions& options = common.options;
    std::vector<ObserveEntry> entries;
    for (const Item& item : mix) {
      const AliasTensor& t = item.tensor;
      entries.push_back({t.grad, alias_keeps_grads(options) ? t.prev_grad : t.signs, item.seen, t.numel});
    }
    const std::vector<int64_t> blocks = blocks_of(mix);
    const auto run = [&](const char* name, auto kernel) {
      launch_tensors(name, kernel, kMapThreads, stream, common, std::span<const ObserveEntry>(entries),
                     std::span<const int64_t>(blocks));
    };
    visit_dtypes(
        [&](auto g) {
          using G = typename decltype(g)::type;
          if (alias_keeps_grads(options)) {
            run("alias_observe_difference", &alias_observe_difference_kernel<G>);
          } else if (options.form == AliasForm::sum) {
            if (options.descent) {
              run("alias_observe_signs", &alias_observe_signs_kernel<G, Norm>);
            } else {
              run("alias_observe_norm", &alias_observe_norm_kernel<G>);
            }
          } else if (options.descent) {
            run("alias_observe_signs", &alias_observe_signs_kernel<G, Extrema>);
          } else {
            run("alias_observe_extrema", &alias_observe_extrema_kernel<G>);
          }
        },
        dtype);
  });
}

void launch_move_signs(const Plan& plan, const MoveCommon& common, cudaStream_t stream) {
  const auto dtype_of = [](const Item& item) { return item.tensor.param_dtype; };
  for_each_dtype_mix(std::span<const Item>(plan.items), dtype_of, [&](DType dtype, std::span<const Item> mix) {
    std::vector<MoveEntry> entries;
    for (const Item& item : mix) {
      entries.push_back({item.tensor.param, item.tensor.signs, item.moved, item.tensor.numel});
    }
    visit_dtypes(
        [&](auto w) {
          launch_tensors("alias_move_signs", &alias_move_signs_kernel<typename decltype(w)::type>, kMapThreads, stream,
                         common, std::span<const MoveEntry>(entries), std::span<const int64_t>(blocks_of(mix)));
        },
        dtype);
  });
}

void launch_move(const Plan& plan, const MoveCommon& common, cudaStream_t stream) {
  const auto dtypes_of = [](const Item& item) { return std::array{item.tensor.param_dtype, item.tensor.grad_dtype}; };
  for_each_dtype_mix(std::span<const Item>(plan.items), dtypes_of, [&](const auto& dtypes, std::span<const Item> mix) {
    std::vector<MoveEntry> entries;
    for (const Item& item : mix) {
      entries.push_back({item.tensor.param, item.tensor.grad, item.moved, item.tensor.numel});
    }
    visit_dtypes(
        [&](auto w, auto g) {
          launch_tensors("alias_move", &alias_move_kernel<typename decltype(w)::type, typename decltype(g)::type>,
                         kMapThreads, stream, common, std::span<const MoveEntry>(entries),
                         std::span<const int64_t>(blocks_of(mix)));
        },
        dtypes[0], dtypes[1]);
  });
}

}  // namespace

int64_t alias_workspace_bytes(std::span<const AliasTensor> tensors) { return make_plan(tensors, nullptr).bytes; }

void alias_step(std::span<const AliasTensor> tensors, const AliasOptions& options, const AliasLoss& loss,
                const StepScalars& scalars, AliasScalars* shared, void* workspace, cudaStream_t stream) {
  const Plan plan = make_plan(tensors, workspace);
  const AliasCommon common{options, scalars, shared, plan.chunk};
  launch_observe(plan, common, stream);
  launch("alias_advance", &alias_advance_kernel, 1, kAdvanceThreads, stream,
         AdvanceParams{common, plan.seen, plan.blocks, loss.tensor, loss.value, plan.finished});
  if (options.phase == AliasPhase::refresh) return;
  // Planes have the signs of this gradient in steps that record it. Which steps do is known on the device.
  const bool has_signs = alias_keeps_signs(options);
  const bool looks_at_step = has_signs && options.phase == AliasPhase::step && options.update_every > 1;
  const MoveCommon move{common, looks_at_step, plan.moved, static_cast<unsigned>(plan.blocks), plan.finished};
  if (has_signs) launch_move_signs(plan, move, stream);
  if (!has_signs || looks_at_step) launch_move(plan, move, stream);
}

}  // namespace sage_ext::cuda
