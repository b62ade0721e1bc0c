#include "cuda/sinkgd.h"

#include <array>
#include <cmath>
#include <numeric>

#include "core/math/sinkgd.h"
#include "cuda/common/matrix_place.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/workspace.h"
#include "cuda/sinkgd_pieces.cuh"
#include "cuda/sinkgd_table.cuh"

namespace sage_ext::cuda {

namespace {

constexpr int kColumnThreads = 256;
constexpr int kColumnsPerLane = 4;
constexpr int kColumnsPerBlock = 32 * kColumnsPerLane;
constexpr int kColumnWarps = kColumnThreads / 32;

// The column half of an iteration: adds up the blocks' shares and rescales. A warp takes every kColumnWarps-th
// share, a lane kColumnsPerLane neighbouring columns.
template <typename G>
__global__ void __launch_bounds__(kColumnThreads) sinkgd_columns_kernel(const SinkGDTable __grid_constant__ table) {
  if (skips_step(table.common.scalars)) return;
  const auto [index, block] = place_of_block(table);
  const SinkGDEntry& e = table.tensors[index];
  const int64_t tiles = (e.cols + kColumnsPerBlock - 1) / kColumnsPerBlock;
  const int64_t matrix = block / tiles;
  const int64_t first_col = block % tiles * kColumnsPerBlock;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane_col = static_cast<int>(threadIdx.x) % 32 * kColumnsPerLane;
  const int64_t left = e.cols - first_col - lane_col;

  double sums[kColumnsPerLane] = {};
  const float* partial = e.partial + matrix * e.plan.row_blocks * e.cols + first_col + lane_col;
#pragma unroll 4
  for (int slot = warp; slot < e.plan.row_blocks; slot += kColumnWarps) {
    const float* part = partial + slot * e.cols;
    if (left >= kColumnsPerLane && is_vec_aligned(part)) {
      Pack<float, kColumnsPerLane> pack;
      pack.load(part);
      float values[kColumnsPerLane];
      pack.unpack(values);
#pragma unroll
      for (int c = 0; c < kColumnsPerLane; ++c) sums[c] += static_cast<double>(values[c]);
    } else {
#pragma unroll
      for (int c = 0; c < kColumnsPerLane; ++c) {
        if (c < left) sums[c] += static_cast<double>(load_one(part + c));
      }
    }
  }
  using Sums = double[kColumnWarps][kColumnsPerBlock];
  SAGE_EXT_SHARED(Sums, warp_sums);
#pragma unroll
  for (int c = 0; c < kColumnsPerLane; ++c) warp_sums[warp][lane_col + c] = sums[c];
  __syncthreads();

  const int64_t col = first_col + threadIdx.x;
  if (threadIdx.x >= kColumnsPerBlock || col >= e.cols) return;
  double sum = 0.0;
  for (int i = 0; i < kColumnWarps; ++i) sum += warp_sums[i][threadIdx.x];
  float* scale = e.col_scale + matrix * e.cols + col;
  const float old = table.common.is_first ? 1.0f : load_one(scale);
  // A column known to be zero needs no second look, and a NaN is one in any precision.
  if (!squares_are_safe(sum) && sum == sum && old != 0.0f) {
    const G* grad = static_cast<const G*>(e.grad) + matrix * e.rows * e.cols + col;
    const float* row_scale = e.row_scale + matrix * e.rows;
    sum = 0.0;
    for (int64_t row = 0; row < e.rows; ++row) {
      const auto r = static_cast<double>(load_uniform(row_scale + row));
      if (r != 0.0) sum = add_square(sum, static_cast<double>(to_float(load_one(grad + row * e.cols))) * r);
    }
  }
  if (table.common.puts_columns) {
    const int64_t place = matrix * e.cols + col;
    if (table.common.is_first) {
      store_one(static_cast<double*>(e.out) + place, sum);
    } else {
      const auto size = static_cast<double>(old);
      store_one(static_cast<float*>(e.out) + place, static_cast<float>(sum * size * size));
    }
    return;
  }
  const SinkGDNorm norm = sinkgd_col_norm(table.common.form(), e.whole_rows, e.whole_cols, table.common.is_last);
  store_one(scale, static_cast<float>(sinkgd_rescale(static_cast<double>(old), sum, norm.target, norm.eps)));
}

template <typename W, typename G>
__global__ void __launch_bounds__(kMapThreads) sinkgd_update_kernel(const SinkGDTable __grid_constant__ table) {
  const StepScalars& scalars = table.common.scalars;
  if (skips_step(scalars)) return;
  const auto [index, block] = place_of_block(table);
  const SinkGDEntry& e = table.tensors[index];
  const int64_t size = e.rows * e.cols;
  const int64_t blocks = (size + kMapChunk - 1) / kMapChunk;
  const int64_t matrix = block / blocks;
  auto* param = static_cast<W*>(e.out) + matrix * size;
  const auto* grad = static_cast<const G*>(e.grad) + matrix * size;
  const double lr = learning_rate(scalars);
  const float decay = decay_factor(lr, table.common.weight_decay);
  const auto lr_alpha = static_cast<float>(lr * table.common.alpha);

  const BlockElements range = elements_of_block(param, size, block % blocks);
  constexpr int kN = kGroupSize<W, G>;
  constexpr int kU = kGroupsInFlight<W, G>;
  update_elements<kN, kU>(
      range, [&](float& w, float g, float r, float c) { w = sinkgd_update(w, g, lr_alpha * r, c, decay); },
      ArrayOperand<W, kN, kU>(param + range.begin), ArrayOperand<const G, kN, kU>(grad + range.begin),
      RowValues<kN, kU>(e.row_scale + matrix * e.rows, e.cols, range),
      ColumnValues<kN, kU>(e.col_scale + matrix * e.cols, e.cols, range));
}

int64_t vec_size(DType dtype) { return kVecBytes / itemsize(dtype); }

bool has_aligned_rows(const SinkGDTensor& t, int64_t vec) {
  return reinterpret_cast<uintptr_t>(t.grad) % kVecBytes == 0 && t.cols % vec == 0;
}

// Matrices with gradients of one dtype: the row and column launches do not care about the parameters' dtype.
struct Group {
  DType grad_dtype;
  int32_t threads;
  // Of each tensor that is not empty:
  std::vector<SinkGDEntry> entries;
  std::vector<int64_t> matrices;
  std::vector<DType> param_dtypes;
  std::vector<size_t> indices;  // in the list
};

// Plans every tensor and lays out the scratch in `workspace`; returns its size. With null it only counts.
int64_t make_groups(std::span<const SinkGDTensor> tensors, void* workspace, std::vector<Group>& groups) {
  WorkspaceLayout layout(workspace);
  std::vector<size_t> indices(tensors.size());
  std::iota(indices.begin(), indices.end(), size_t{0});
  const auto grad_dtype_of = [&](size_t i) { return tensors[i].grad_dtype; };
  for_each_dtype_mix(
      std::span<const size_t>(indices), grad_dtype_of, [&](DType grad_dtype, std::span<const size_t> mix) {
        const int64_t vec = vec_size(grad_dtype);
        int64_t total = 0;
        Group group{grad_dtype, kSinkhornThreads, {}, {}, {}, {}};
        for (const size_t i : mix) {
          const SinkGDTensor& t = tensors[i];
          total += t.matrices * t.rows * t.cols;
          group.threads = std::max(group.threads, sinkhorn_threads(t.cols, vec, has_aligned_rows(t, vec)));
        }
        for (const size_t i : mix) {
          const SinkGDTensor& t = tensors[i];
          if (t.matrices * t.rows * t.cols == 0) continue;
          const bool aligned = has_aligned_rows(t, vec);
          const SinkhornPlan plan = plan_sinkhorn(t.rows, t.cols, vec, aligned, group.threads, total);
          group.entries.push_back({t.param, t.grad, layout.take<float>(t.matrices * t.rows),
                                   layout.take<float>(t.matrices * t.cols),
                                   layout.take<float>(t.matrices * plan.row_blocks * t.cols), t.rows, t.cols,
                                   static_cast<int32_t>(t.whole.rows_of(t.rows)),
                                   static_cast<int32_t>(t.whole.cols_of(t.cols)), plan, aligned});
          group.matrices.push_back(t.matrices);
          group.param_dtypes.push_back(t.param_dtype);
          group.indices.push_back(i);
        }
        groups.push_back(std::move(group));
      });
  return layout.bytes();
}

// blocks_of(entry) for each matrix.
template <typename BlocksOf>
std::vector<int64_t> count_blocks(const Group& group, BlocksOf&& blocks_of) {
  std::vector<int64_t> blocks;
  blocks.reserve(group.entries.size());
  for (size_t i = 0; i < group.entries.size(); ++i) blocks.push_back(group.matrices[i] * blocks_of(group.entries[i]));
  return blocks;
}

void launch_rows(const Group& group, const SinkGDCommon& common, cudaStream_t stream) {
  const auto blocks = count_blocks(group, [](const SinkGDEntry& e) { return int64_t{e.plan.row_blocks}; });
  launch_sinkgd_rows(group.grad_dtype, group.threads, common, group.entries, blocks, stream);
}

void launch_columns(const Group& group, const SinkGDCommon& common, cudaStream_t stream) {
  const auto blocks = count_blocks(group, [](const SinkGDEntry& e) { return ceil_div(e.cols, kColumnsPerBlock); });
  visit_dtypes(
      [&](auto g) {
        launch_tensors("sinkgd_columns", &sinkgd_columns_kernel<typename decltype(g)::type>, kColumnThreads, stream,
                       common, std::span<const SinkGDEntry>(group.entries), std::span<const int64_t>(blocks));
      },
      group.grad_dtype);
}

void launch_update(const Group& group, const SinkGDCommon& common, cudaStream_t stream) {
  for (const DType param_dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    std::vector<SinkGDEntry> entries;
    std::vector<int64_t> blocks;
    for (size_t i = 0; i < group.entries.size(); ++i) {
      if (group.param_dtypes[i] != param_dtype) continue;
      const SinkGDEntry& e = entries.emplace_back(group.entries[i]);
      blocks.push_back(group.matrices[i] * ceil_div(e.rows * e.cols, kMapChunk));
    }
    if (entries.empty()) continue;
    visit_dtypes(
        [&](auto w, auto g) {
          launch_tensors("sinkgd_update", &sinkgd_update_kernel<typename decltype(w)::type, typename decltype(g)::type>,
                         kMapThreads, stream, common, std::span<const SinkGDEntry>(entries),
                         std::span<const int64_t>(blocks));
        },
        param_dtype, group.grad_dtype);
  }
}

// Of an iteration. Every one goes through the matrices in the opposite order of the one before.
SinkGDCommon common_of(const SinkGDOptions& options, int iteration, const StepScalars& scalars) {
  return {options.alpha,
          options.eps,
          options.weight_decay,
          options.unit,
          /*is_first=*/iteration == 0,
          /*is_last=*/iteration == options.iterations - 1,
          /*reverse=*/iteration % 2 == 1,
          /*puts_columns=*/false,
          scalars};
}

}  // namespace

int64_t sinkgd_workspace_bytes(std::span<const SinkGDTensor> tensors) {
  std::vector<Group> groups;
  return make_groups(tensors, nullptr, groups);
}

void sinkgd_step(std::span<const SinkGDTensor> tensors, const SinkGDOptions& options, const StepScalars& scalars,
                 void* workspace, cudaStream_t stream) {
  std::vector<Group> groups;
  make_groups(tensors, workspace, groups);
  for (const Group& group : groups) {
    if (group.entries.empty()) continue;
    SinkGDCommon common = common_of(options, 0, scalars);
    for (int i = 0; i < options.iterations; ++i) {
      common = common_of(options, i, scalars);
      launch_rows(group, common, stream);
      launch_columns(group, common, stream);
    }
    common.reverse = !common.reverse;
    launch_update(group, common, stream);
  }
}

namespace {

// Calls body(group) for the tensors of each dtype, where `out` of an entry is what its column half puts.
template <typename Body>
void for_each_group(const SinkGDPieces& pieces, bool is_first, const Body& body) {
  std::vector<Group> groups;
  make_groups(pieces.tensors, pieces.workspace, groups);
  for (Group& group : groups) {
    if (group.entries.empty()) continue;
    for (size_t i = 0; i < group.entries.size(); ++i) {
      const SinkGDSums& sums = pieces.sums[group.indices[i]];
      group.entries[i].out = is_first ? static_cast<void*>(sums.first_columns) : sums.columns;
    }
    body(group);
  }
}

// New scales of rows or columns from sums of squares of the iterate.
template <typename Sum, typename EntryOf>
void launch_scales(const SinkGDPieces& pieces, bool is_first, bool is_rows, const StepScalars& scalars,
                   cudaStream_t stream, const EntryOf& entry_of) {
  std::vector<ScalesEntry<Sum>> entries;
  std::vector<int64_t> blocks;
  for_each_group(pieces, is_first, [&](const Group& group) {
    for (size_t i = 0; i < group.entries.size(); ++i) {
      entries.push_back(entry_of(group.entries[i], group.matrices[i], pieces.sums[group.indices[i]]));
      blocks.push_back(ceil_div(entries.back().count, kScaleThreads));
    }
  });
  launch_tensors(is_rows ? "sinkgd_row_scales" : "sinkgd_column_scales", &sinkgd_scales_kernel<Sum>, kScaleThreads,
                 stream, ScalesCommon{is_first, is_rows, scalars}, std::span<const ScalesEntry<Sum>>(entries),
                 std::span<const int64_t>(blocks));
}

}  // namespace

void sinkgd_rows_and_columns(const SinkGDPieces& pieces, int iteration, const StepScalars& scalars,
                             cudaStream_t stream) {
  SinkGDCommon common = common_of(pieces.options, iteration, scalars);
  common.puts_columns = true;
  for_each_group(pieces, iteration == 0, [&](const Group& group) {
    launch_rows(group, common, stream);
    launch_columns(group, common, stream);
  });
}

void sinkgd_put_rows(const SinkGDPieces& pieces, int iteration, const StepScalars& scalars, cudaStream_t stream) {
  const SinkGDCommon common = common_of(pieces.options, iteration, scalars);
  for_each_group(pieces, iteration == 0, [&](Group& group) {
    std::vector<int64_t> blocks;
    for (size_t i = 0; i < group.entries.size(); ++i) {
      SinkGDEntry& e = group.entries[i];
      e.out = pieces.sums[group.indices[i]].rows;
      blocks.push_back(group.matrices[i] * ceil_div(e.rows, kPieceRows));
    }
    visit_dtypes(
        [&](auto g) {
          launch_tensors("sinkgd_row_sums", &sinkgd_row_sums_kernel<typename decltype(g)::type>, kPieceThreads, stream,
                         common, std::span<const SinkGDEntry>(group.entries), std::span<const int64_t>(blocks));
        },
        group.grad_dtype);
  });
}

void sinkgd_take_rows(const SinkGDPieces& pieces, int iteration, const StepScalars& scalars, cudaStream_t stream) {
  const SinkGDForm form{pieces.options.unit, pieces.options.eps};
  launch_scales<double>(pieces, iteration == 0, /*is_rows=*/true, scalars, stream,
                        [&](const SinkGDEntry& e, int64_t matrices, const SinkGDSums& sums) {
                          return ScalesEntry<double>{sums.rows, e.row_scale, matrices * e.rows,
                                                     sinkgd_row_norm(form, e.whole_rows, e.whole_cols, iteration == 0)};
                        });
}

void sinkgd_put_columns(const SinkGDPieces& pieces, int iteration, const StepScalars& scalars, cudaStream_t stream) {
  SinkGDCommon common = common_of(pieces.options, iteration, scalars);
  common.puts_columns = true;
  for_each_group(pieces, iteration == 0, [&](const Group& group) {
    const auto blocks = count_blocks(
        group, [](const SinkGDEntry& e) { return int64_t{e.plan.row_blocks} * ceil_div(e.cols, kPieceColumns); });
    visit_dtypes(
        [&](auto g) {
          launch_tensors("sinkgd_row_shares", &sinkgd_row_shares_kernel<typename decltype(g)::type>, kPieceThreads,
                         stream, common, std::span<const SinkGDEntry>(group.entries), std::span<const int64_t>(blocks));
        },
        group.grad_dtype);
    launch_columns(group, common, stream);
  });
}

void sinkgd_take_columns(const SinkGDPieces& pieces, int iteration, const StepScalars& scalars, cudaStream_t stream) {
  const SinkGDForm form{pieces.options.unit, pieces.options.eps};
  const auto norm_of = [&](const SinkGDEntry& e) {
    return sinkgd_col_norm(form, e.whole_rows, e.whole_cols, iteration == pieces.options.iterations - 1);
  };
  if (iteration == 0) {
    launch_scales<double>(pieces, /*is_first=*/true, /*is_rows=*/false, scalars, stream,
                          [&](const SinkGDEntry& e, int64_t matrices, const SinkGDSums& sums) {
                            return ScalesEntry<double>{sums.first_columns, e.col_scale, matrices * e.cols, norm_of(e)};
                          });
  } else {
    launch_scales<float>(pieces, /*is_first=*/false, /*is_rows=*/false, scalars, stream,
                         [&](const SinkGDEntry& e, int64_t matrices, const SinkGDSums& sums) {
                           return ScalesEntry<float>{sums.columns, e.col_scale, matrices * e.cols, norm_of(e)};
                         });
  }
}

void sinkgd_finish(const SinkGDPieces& pieces, const StepScalars& scalars, cudaStream_t stream) {
  std::vector<Group> groups;
  make_groups(pieces.tensors, pieces.workspace, groups);
  SinkGDCommon common = common_of(pieces.options, pieces.options.iterations - 1, scalars);
  common.reverse = !common.reverse;
  for (const Group& group : groups) launch_update(group, common, stream);
}

}  // namespace sage_ext::cuda
