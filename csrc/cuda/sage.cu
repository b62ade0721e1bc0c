#include "cuda/sage.h"

#include <array>
#include <cmath>

#include "cuda/common/matrix_place.cuh"
#include "cuda/common/workspace.h"
#include "cuda/sage_average.cuh"
#include "cuda/sage_pieces.cuh"
#include "cuda/sage_sums.cuh"

// Three launches. Between them lives the workspace: for each tensor a counter of blocks, the partial sums of squares
// of these blocks, and one fp32 array: slots of sums of |g|, [slots, cols], whose first row becomes s, then lr * H.
namespace sage_ext::cuda {

namespace {

struct UpdateEntry {
  void* param;
  const void* grad;
  void* exp_avg;
  const float* steps;
  int64_t numel, cols;
};

struct UpdateCommon {
  LionCoefficients coefficients;  // for scalars.lr; with a tensor lr the kernel replaces the decay
  double weight_decay;
  StepScalars scalars;
};

using UpdateTable = TensorTable<UpdateCommon, UpdateEntry>;

// Launch 3: W and exp_avg.
template <typename W, typename G, typename M>
__global__ void __launch_bounds__(kMapThreads) sage_update_kernel(const UpdateTable __grid_constant__ table) {
  const StepScalars& scalars = table.common.scalars;
  if (skips_step(scalars)) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const UpdateEntry& tensor = table.tensors[index];
  LionCoefficients k = table.common.coefficients;
  k.decay = decay_factor(learning_rate(scalars), table.common.weight_decay);
  const float factor = grad_factor(scalars);

  auto* param = static_cast<W*>(tensor.param);
  const BlockElements range = elements_of_block(param, tensor.numel, block);
  constexpr int kN = kGroupSize<W, G, M>;
  constexpr int kU = kGroupsInFlight<W, G, M>;
  update_elements<kN, kU>(
      range, [&](float& w, float g, float& m, float step) { lion_update(w, m, g * factor, step, k); },
      ArrayOperand<W, kN, kU>(param + range.begin),
      ArrayOperand<const G, kN, kU>(static_cast<const G*>(tensor.grad) + range.begin),
      ArrayOperand<M, kN, kU>(static_cast<M*>(tensor.exp_avg) + range.begin),
      ColumnValues<kN, kU>(tensor.steps, tensor.cols, range));
}

// A tensor with its plan and its places in the workspace.
struct Item {
  SageTensor tensor;
  ColumnBlocks plan;
  int64_t average_blocks;
  unsigned* finished;
  Squares* squares;
  float* sums;
  float* steps;  // where the update finds lr * H: the first row of the sums, unless other processes have a share
};

// Columns of a block that averages. A piece has one slot by then.
int64_t average_cols(const Item& item) {
  return item.tensor.whole.is_cut() ? 4 * kColumnThreads : item.plan.average_cols;
}

// Plans every tensor and lays out the scratch in `workspace`; returns its size. With null it only counts.
int64_t make_items(std::span<const SageTensor> tensors, void* workspace, std::vector<Item>& items) {
  WorkspaceLayout layout(workspace);
  int64_t average_blocks = 0;
  for (const SageTensor& t : tensors) {
    Item& item = items.emplace_back(Item{t, plan_column_blocks(t.rows, t.cols, kVecBytes / itemsize(t.grad_dtype)), 1,
                                         nullptr, nullptr, nullptr, nullptr});
    if (t.whole.is_cut() || item.plan.slots > 0) {
      item.average_blocks = std::max<int64_t>(ceil_div(t.cols, average_cols(item)), 1);
    }
    average_blocks += item.average_blocks;
  }
  auto* finished = layout.take<unsigned>(static_cast<int64_t>(items.size()));
  auto* squares = layout.take<Squares>(average_blocks);
  for (Item& item : items) {
    item.sums = item.steps = layout.take<float>(item.plan.slots * item.tensor.cols);
    if (workspace == nullptr) continue;
    item.finished = finished++;
    item.squares = squares;
    squares += item.average_blocks;
  }
  return layout.bytes();
}

void launch_sums(std::span<const Item> items, const StepScalars& scalars, cudaStream_t stream) {
  const auto dtypes_of = [](const Item& item) { return std::array{item.tensor.grad_dtype}; };
  for_each_dtype_mix(items, dtypes_of, [&](const auto& dtypes, std::span<const Item> mix) {
    std::vector<SumEntry> entries;
    std::vector<int64_t> blocks;
    for (const Item& item : mix) {
      const ColumnBlocks& p = item.plan;
      if (p.slots == 0) continue;
      const SageTensor& t = item.tensor;
      entries.push_back({t.grad, item.sums, item.finished, column_panel(p, t.rows, t.cols)});
      blocks.push_back(p.row_blocks * p.tiles);
    }
    visit_dtypes(
        [&](auto g) {
          launch_tensors("sage_sums", &sage_sums_kernel<typename decltype(g)::type>, kSumThreads, stream, scalars,
                         std::span<const SumEntry>(entries), std::span<const int64_t>(blocks));
        },
        dtypes[0]);
  });
}

AverageCommon average_common(const SageOptions& options, const StepScalars& scalars) {
  return {options.beta2, std::log(options.beta2), static_cast<float>(options.eps), options.instant_damper, scalars};
}

void launch_average(std::span<const Item> items, const SageOptions& options, const StepScalars& scalars,
                    cudaStream_t stream) {
  const AverageCommon common = average_common(options, scalars);
  std::vector<AverageEntry> entries;
  std::vector<int64_t> blocks;
  for (const Item& item : items) {
    const SageTensor& t = item.tensor;
    entries.push_back({item.sums, t.s_range, t.step, item.finished, item.squares, t.rows, t.cols, item.plan.slots,
                       static_cast<uint32_t>(item.average_blocks), static_cast<uint32_t>(item.plan.average_cols)});
    blocks.push_back(item.average_blocks);
  }
  launch_tensors("sage_average", &sage_average_kernel, kAverageThreads, stream, common,
                 std::span<const AverageEntry>(entries), std::span<const int64_t>(blocks));
}

void launch_update(std::span<const Item> items, const SageOptions& options, const StepScalars& scalars,
                   cudaStream_t stream) {
  const UpdateCommon common{
      lion_coefficients(scalars.lr, options.beta1, options.beta2, options.weight_decay, options.momentum_first),
      options.weight_decay, scalars};
  const auto dtypes_of = [](const Item& item) {
    return std::array{item.tensor.param_dtype, item.tensor.grad_dtype, item.tensor.exp_avg_dtype};
  };
  for_each_dtype_mix(items, dtypes_of, [&](const auto& dtypes, std::span<const Item> mix) {
    std::vector<UpdateEntry> entries;
    std::vector<int64_t> blocks;
    for (const Item& item : mix) {
      const SageTensor& t = item.tensor;
      if (item.plan.slots == 0) continue;
      entries.push_back({t.param, t.grad, t.exp_avg, item.steps, t.rows * t.cols, t.cols});
      blocks.push_back(ceil_div(t.rows * t.cols, kMapChunk));
    }
    visit_dtypes(
        [&](auto w, auto g, auto m) {
          launch_tensors(
              "sage_update",
              &sage_update_kernel<typename decltype(w)::type, typename decltype(g)::type, typename decltype(m)::type>,
              kMapThreads, stream, common, std::span<const UpdateEntry>(entries), std::span<const int64_t>(blocks));
        },
        dtypes[0], dtypes[1], dtypes[2]);
  });
}

}  // namespace

int64_t sage_workspace_bytes(std::span<const SageTensor> tensors) {
  std::vector<Item> items;
  return make_items(tensors, nullptr, items);
}

void sage_step(std::span<const SageTensor> tensors, const SageOptions& options, const StepScalars& scalars,
               void* workspace, cudaStream_t stream) {
  std::vector<Item> items;
  make_items(tensors, workspace, items);
  launch_sums(items, scalars, stream);
  launch_average(items, options, scalars, stream);
  launch_update(items, options, scalars, stream);
}

void sage_put_columns(std::span<const SageTensor> pieces, std::span<const SageSums> sums, const StepScalars& scalars,
                      void* workspace, cudaStream_t stream) {
  std::vector<Item> items;
  make_items(pieces, workspace, items);
  launch_sums(items, scalars, stream);
  std::vector<ColumnsEntry> entries;
  std::vector<int64_t> blocks;
  for (size_t i = 0; i < items.size(); ++i) {
    const ColumnBlocks& plan = items[i].plan;
    if (plan.slots == 0) continue;
    const int64_t cols = items[i].tensor.cols;
    entries.push_back({items[i].sums, sums[i].columns, plan.slots, cols, static_cast<uint32_t>(plan.average_cols)});
    blocks.push_back(ceil_div(cols, plan.average_cols));
  }
  launch_tensors("sage_columns", &sage_columns_kernel, kAverageThreads, stream, scalars,
                 std::span<const ColumnsEntry>(entries), std::span<const int64_t>(blocks));
}

namespace {

std::vector<PieceEntry> piece_entries(std::span<const Item> items, std::span<const SageSums> sums) {
  std::vector<PieceEntry> entries;
  for (size_t i = 0; i < items.size(); ++i) {
    const Item& item = items[i];
    const SageTensor& t = item.tensor;
    entries.push_back(
        {{sums[i].columns, t.s_range, t.step, item.finished, item.squares, t.whole.rows, t.cols,
          /*slots=*/1, static_cast<uint32_t>(item.average_blocks), static_cast<uint32_t>(average_cols(item))},
         sums[i].squares,
         t.whole.cols});
  }
  return entries;
}

}  // namespace

void sage_put_squares(std::span<const SageTensor> pieces, std::span<const SageSums> sums, const SageOptions& options,
                      const StepScalars& scalars, void* workspace, cudaStream_t stream) {
  std::vector<Item> items;
  make_items(pieces, workspace, items);
  if (items.empty()) return;
  // They stand at the beginning, one behind the other.
  fill_zero(items[0].finished, items.size() * sizeof(unsigned), stream);
  const std::vector<PieceEntry> entries = piece_entries(items, sums);
  std::vector<int64_t> blocks;
  for (const Item& item : items) blocks.push_back(item.average_blocks);
  launch_tensors("sage_squares", &sage_squares_kernel, kAverageThreads, stream, average_common(options, scalars),
                 std::span<const PieceEntry>(entries), std::span<const int64_t>(blocks));
}

void sage_finish(std::span<const SageTensor> pieces, std::span<const SageSums> sums, const SageOptions& options,
                 const StepScalars& scalars, void* workspace, cudaStream_t stream) {
  std::vector<Item> items;
  make_items(pieces, workspace, items);
  for (size_t i = 0; i < items.size(); ++i) items[i].steps = sums[i].columns;
  const std::vector<PieceEntry> entries = piece_entries(items, sums);
  const std::vector<int64_t> blocks(entries.size(), 1);
  launch_tensors("sage_steps", &sage_steps_kernel, kAverageThreads, stream, average_common(options, scalars),
                 std::span<const PieceEntry>(entries), std::span<const int64_t>(blocks));
  launch_update(items, options, scalars, stream);
}

}  // namespace sage_ext::cuda
