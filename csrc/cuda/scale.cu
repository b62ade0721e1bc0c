#include "cuda/scale.h"

#include <array>
#include <bit>

#include "cuda/common/matrix_place.cuh"
#include "cuda/common/workspace.h"
#include "cuda/scale_columns.cuh"
#include "cuda/scale_rows.cuh"

// Between the launches lives the workspace: 1 / norm of every row; or slots of partial sums of squares, whose first row
// becomes 1 / norm of every column.
namespace sage_ext::cuda {

namespace {

struct UpdateEntry {
  void* param;
  const void* x;
  const float* inverses;
  int64_t inverses_size;  // from one matrix to the next
  int64_t numel, cols;    // of a matrix
};

struct UpdateCommon {
  double weight_decay;
  bool has_momentum;  // x is the momentum, which needs no factor
  StepScalars scalars;
};

using UpdateTable = TensorTable<UpdateCommon, UpdateEntry>;

// The last launch: W.
template <typename W, typename X, template <int, int> typename Inverses>
__global__ void __launch_bounds__(kMapThreads) scale_update_kernel(const UpdateTable __grid_constant__ table) {
  const UpdateCommon& common = table.common;
  if (skips_step(common.scalars)) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const UpdateEntry& t = table.tensors[index];
  const int64_t blocks = (t.numel + kMapChunk - 1) / kMapChunk;
  const int64_t matrix = block / blocks;
  auto* param = static_cast<W*>(t.param) + matrix * t.numel;
  const auto* x_data = static_cast<const X*>(t.x) + matrix * t.numel;
  const double lr = learning_rate(common.scalars);
  const float decay = decay_factor(lr, common.weight_decay);
  const auto step = static_cast<float>(lr);
  const float factor = common.has_momentum ? 1.0f : grad_factor(common.scalars);

  const BlockElements range = elements_of_block(param, t.numel, block - matrix * blocks);
  constexpr int kN = kGroupSize<W, X>;
  constexpr int kU = kGroupsInFlight<W, X>;
  update_elements<kN, kU>(
      range, [&](float& w, float x, float inverse) { w = scale_update(w, x * factor, step, inverse, decay); },
      ArrayOperand<W, kN, kU>(param + range.begin), ArrayOperand<const X, kN, kU>(x_data + range.begin),
      Inverses<kN, kU>(t.inverses + matrix * t.inverses_size, t.cols, range));
}

// A tensor with its place in the workspace and, for columns, its plan.
struct Item {
  ScaleTensor tensor;
  ColumnBlocks plan;
  float* scratch;
  int64_t slots;   // rows of the scratch of a matrix; 0: one number for each row of all matrices
  double* totals;  // what other processes add to, if they do

  const void* x() const { return tensor.exp_avg != nullptr ? tensor.exp_avg : tensor.grad; }
  DType x_dtype() const { return tensor.exp_avg != nullptr ? tensor.exp_avg_dtype : tensor.grad_dtype; }
};

// Plans every tensor that is not empty and lays out the scratch in `workspace`; returns its size. With null it only
// counts.
int64_t make_items(std::span<const ScaleTensor> tensors, std::span<double* const> sums, const ScaleOptions& options,
                   void* workspace, std::vector<Item>& items) {
  WorkspaceLayout layout(workspace);
  for (size_t i = 0; i < tensors.size(); ++i) {
    ScaleTensor t = tensors[i];
    if (t.matrices * t.rows * t.cols == 0) continue;
    if (!options.columns) {
      t.rows *= t.matrices;
      t.matrices = 1;
    }
    Item item{t, {}, nullptr, 0, sums.empty() ? nullptr : sums[i]};
    int64_t floats = t.rows;
    if (options.columns) {
      const int64_t widest =
          t.exp_avg == nullptr ? itemsize(t.grad_dtype) : std::max(itemsize(t.grad_dtype), itemsize(t.exp_avg_dtype));
      item.plan = plan_column_blocks(t.rows, t.cols, kVecBytes / widest);
      item.slots = item.plan.slots;
      floats = t.matrices * item.slots * t.cols;
    }
    item.scratch = layout.take<float>(floats);
    items.push_back(item);
  }
  return layout.bytes();
}

// Calls `run(g, m, mix)` with the types of gradient and momentum for every mix of them; m is left open without
// momentum.
template <typename Run>
void for_each_source(std::span<const Item> items, bool has_momentum, const Run& run) {
  const auto dtypes_of = [&](const Item& item) {
    return std::array{item.tensor.grad_dtype, has_momentum ? item.tensor.exp_avg_dtype : DType::float32};
  };
  for_each_dtype_mix(items, dtypes_of, [&](const auto& dtypes, std::span<const Item> mix) {
    visit_dtypes([&](auto g, auto m) { run(g, m, mix); }, dtypes[0], dtypes[1]);
  });
}

void launch_rows(std::span<const Item> items, const ScaleOptions& options, const ScaleCommon& common,
                 cudaStream_t stream) {
  const bool has_momentum = options.momentum != 0.0;
  for_each_source(items, has_momentum, [&](auto g, auto m, std::span<const Item> mix) {
    using G = typename decltype(g)::type;
    using M = typename decltype(m)::type;
    std::vector<RowEntry> entries;
    std::vector<int64_t> blocks;
    for (const Item& item : mix) {
      const ScaleTensor& t = item.tensor;
      // Narrow rows share a warp; very wide ones have a block each.
      const auto vectors = static_cast<uint64_t>(ceil_div(t.cols, kVecSize<G>));
      const int64_t team = t.cols > 8192 ? kRowThreads : std::clamp<int64_t>(std::bit_ceil(vectors), 4, kWarpSize);
      const int64_t teams = kRowThreads / team;
      const int64_t rows_per_block = std::max<int64_t>(kMapChunk / t.cols / teams, 1) * teams;
      void* const out = common.puts_sums ? static_cast<void*>(item.totals) : item.scratch;
      entries.push_back({t.grad, t.exp_avg, out, t.rows, t.cols, scale_mean_factor(options.rms, t.cols),
                         static_cast<uint32_t>(team), static_cast<uint32_t>(rows_per_block)});
      blocks.push_back(ceil_div(t.rows, rows_per_block));
    }
    const auto run = [&](const char* name, auto kernel) {
      launch_tensors(name, kernel, kRowThreads, stream, common, std::span<const RowEntry>(entries),
                     std::span<const int64_t>(blocks));
    };
    if (has_momentum) {
      run("scale_momentum_rows", &scale_momentum_rows_kernel<G, M>);
    } else {
      run("scale_rows", &scale_rows_kernel<G>);
    }
  });
}

void launch_columns(std::span<const Item> items, const ScaleOptions& options, const ScaleCommon& common,
                    cudaStream_t stream) {
  const bool has_momentum = options.momentum != 0.0;
  for_each_source(items, has_momentum, [&](auto g, auto m, std::span<const Item> mix) {
    using G = typename decltype(g)::type;
    using M = typename decltype(m)::type;
    std::vector<ColumnEntry> entries;
    std::vector<int64_t> blocks;
    for (const Item& item : mix) {
      const ScaleTensor& t = item.tensor;
      const int64_t blocks_of_matrix = item.plan.row_blocks * item.plan.tiles;
      entries.push_back({t.grad, t.exp_avg, item.scratch, item.slots * t.cols, static_cast<uint32_t>(blocks_of_matrix),
                         column_panel(item.plan, t.rows, t.cols)});
      blocks.push_back(t.matrices * blocks_of_matrix);
    }
    const auto run = [&](const char* name, auto kernel) {
      launch_tensors(name, kernel, kSumThreads, stream, common, std::span<const ColumnEntry>(entries),
                     std::span<const int64_t>(blocks));
    };
    if (has_momentum) {
      run("scale_momentum_columns", &scale_momentum_columns_kernel<G, M>);
    } else {
      run("scale_columns", &scale_columns_kernel<G>);
    }
  });
}

void launch_norms(std::span<const Item> items, const ScaleOptions& options, bool puts_sums, const StepScalars& scalars,
                  cudaStream_t stream) {
  const NormCommon common{options.eps, options.momentum != 0.0, puts_sums, scalars};
  const auto dtype_of = [](const Item& item) { return item.x_dtype(); };
  for_each_dtype_mix(items, dtype_of, [&](DType dtype, std::span<const Item> mix) {
    std::vector<NormEntry> entries;
    std::vector<int64_t> blocks;
    for (const Item& item : mix) {
      const ScaleTensor& t = item.tensor;
      const int64_t blocks_of_matrix = ceil_div(t.cols, item.plan.average_cols);
      entries.push_back({item.x(),
                         item.scratch,
                         t.rows,
                         t.cols,
                         item.slots,
                         {scale_mean_factor(options.rms, t.rows)},
                         static_cast<uint32_t>(blocks_of_matrix),
                         static_cast<uint32_t>(item.plan.average_cols)});
      if (puts_sums) entries.back().totals = item.totals;
      blocks.push_back(t.matrices * blocks_of_matrix);
    }
    visit_dtypes(
        [&](auto x) {
          launch_tensors("scale_norms", &scale_norms_kernel<typename decltype(x)::type>, kSlotThreads, stream, common,
                         std::span<const NormEntry>(entries), std::span<const int64_t>(blocks));
        },
        dtype);
  });
}

template <template <int, int> typename Inverses>
void launch_update(std::span<const Item> items, const ScaleOptions& options, const StepScalars& scalars,
                   cudaStream_t stream) {
  const UpdateCommon common{options.weight_decay, options.momentum != 0.0, scalars};
  const auto dtypes_of = [](const Item& item) { return std::array{item.tensor.param_dtype, item.x_dtype()}; };
  for_each_dtype_mix(items, dtypes_of, [&](const auto& dtypes, std::span<const Item> mix) {
    std::vector<UpdateEntry> entries;
    std::vector<int64_t> blocks;
    for (const Item& item : mix) {
      const ScaleTensor& t = item.tensor;
      const int64_t numel = t.rows * t.cols;
      entries.push_back({t.param, item.x(), item.scratch, item.slots * t.cols, numel, t.cols});
      blocks.push_back(t.matrices * ceil_div(numel, kMapChunk));
    }
    visit_dtypes(
        [&](auto w, auto x) {
          launch_tensors(
              "scale_update", &scale_update_kernel<typename decltype(w)::type, typename decltype(x)::type, Inverses>,
              kMapThreads, stream, common, std::span<const UpdateEntry>(entries), std::span<const int64_t>(blocks));
        },
        dtypes[0], dtypes[1]);
  });
}

}  // namespace

int64_t scale_workspace_bytes(std::span<const ScaleTensor> tensors, const ScaleOptions& options) {
  std::vector<Item> items;
  return make_items(tensors, {}, options, nullptr, items);
}

void scale_step(std::span<const ScaleTensor> tensors, const ScaleOptions& options, const StepScalars& scalars,
                void* workspace, cudaStream_t stream) {
  std::vector<Item> items;
  make_items(tensors, {}, options, workspace, items);
  const ScaleCommon common{momentum_coefficients(options.momentum), options.eps, /*puts_sums=*/false, scalars};
  if (options.columns) {
    launch_columns(items, options, common, stream);
    launch_norms(items, options, /*puts_sums=*/false, scalars, stream);
    launch_update<ColumnValues>(items, options, scalars, stream);
  } else {
    launch_rows(items, options, common, stream);
    launch_update<RowValues>(items, options, scalars, stream);
  }
}

void scale_put_sums(std::span<const ScaleTensor> pieces, std::span<double* const> sums, const ScaleOptions& options,
                    const StepScalars& scalars, void* workspace, cudaStream_t stream) {
  std::vector<Item> items;
  make_items(pieces, sums, options, workspace, items);
  const ScaleCommon common{momentum_coefficients(options.momentum), options.eps, /*puts_sums=*/true, scalars};
  if (options.columns) {
    launch_columns(items, options, common, stream);
    launch_norms(items, options, /*puts_sums=*/true, scalars, stream);
  } else {
    launch_rows(items, options, common, stream);
  }
}

void scale_finish(std::span<const ScaleTensor> pieces, std::span<double* const> sums, const ScaleOptions& options,
                  const StepScalars& scalars, void* workspace, cudaStream_t stream) {
  std::vector<Item> items;
  make_items(pieces, sums, options, workspace, items);
  std::vector<InvertEntry> entries;
  std::vector<int64_t> blocks;
  for (const Item& item : items) {
    const ScaleTensor& t = item.tensor;
    const int64_t size = options.columns ? t.cols : t.rows;
    const int64_t length = options.columns ? t.whole.rows_of(t.rows) : t.whole.cols_of(t.cols);
    entries.push_back({item.totals, item.scratch, size, item.slots * t.cols, scale_mean_factor(options.rms, length),
                       ceil_div(size, kSlotThreads)});
    blocks.push_back(t.matrices * entries.back().blocks);
  }
  launch_tensors("scale_invert", &scale_invert_kernel, kSlotThreads, stream, InvertCommon{options.eps, scalars},
                 std::span<const InvertEntry>(entries), std::span<const int64_t>(blocks));
  if (options.columns) {
    launch_update<ColumnValues>(items, options, scalars, stream);
  } else {
    launch_update<RowValues>(items, options, scalars, stream);
  }
}

}  // namespace sage_ext::cuda
