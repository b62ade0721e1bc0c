#include "cuda/sinkgd.h"

#include <array>
#include <cmath>

#include "core/math/sinkgd.h"
#include "cuda/common/matrix_place.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/common/workspace.h"
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
__global__ void __launch_bounds__(kColumnThreads) sinkgd_columns_kernel(const __grid_constant__ SinkGDTable table) {
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
  const SinkGDNorm norm = sinkgd_col_norm(table.common.form(), e.rows, e.cols, table.common.is_last);
  store_one(scale, static_cast<float>(sinkgd_rescale(static_cast<double>(old), sum, norm.target, norm.eps)));
}

template <typename W, typename G>
__global__ void __launch_bounds__(kMapThreads) sinkgd_update_kernel(const __grid_constant__ SinkGDTable table) {
  const StepScalars& scalars = table.common.scalars;
  if (skips_step(scalars)) return;
  const auto [index, block] = place_of_block(table);
  const SinkGDEntry& e = table.tensors[index];
  const int64_t size = e.rows * e.cols;
  const int64_t blocks = (size + kMapChunk - 1) / kMapChunk;
  const int64_t matrix = block / blocks;
  auto* param = static_cast<W*>(e.param) + matrix * size;
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
  std::vector<SinkGDEntry> entries;
  std::vector<DType> param_dtypes;  // of the entries
};

// Plans every tensor and lays out the scratch in `workspace`; returns its size. With null it only counts.
int64_t make_groups(std::span<const SinkGDTensor> tensors, void* workspace, std::vector<Group>& groups) {
  WorkspaceLayout layout(workspace);
  const auto grad_dtype_of = [](const SinkGDTensor& t) { return t.grad_dtype; };
  for_each_dtype_mix(tensors, grad_dtype_of, [&](DType grad_dtype, std::span<const SinkGDTensor> mix) {
    const int64_t vec = vec_size(grad_dtype);
    int64_t total = 0;
    Group group{grad_dtype, kSinkhornThreads, {}, {}};
    for (const SinkGDTensor& t : mix) {
      total += t.matrices * t.rows * t.cols;
      group.threads = std::max(group.threads, sinkhorn_threads(t.cols, vec, has_aligned_rows(t, vec)));
    }
    for (const SinkGDTensor& t : mix) {
      if (t.matrices * t.rows * t.cols == 0) continue;
      const bool aligned = has_aligned_rows(t, vec);
      const SinkhornPlan plan = plan_sinkhorn(t.rows, t.cols, vec, aligned, group.threads, total);
      group.entries.push_back(
          {t.param, t.grad, layout.take<float>(t.matrices * t.rows), layout.take<float>(t.matrices * t.cols),
           layout.take<float>(t.matrices * plan.row_blocks * t.cols), t.matrices, t.rows, t.cols, plan, aligned});
      group.param_dtypes.push_back(t.param_dtype);
    }
    groups.push_back(std::move(group));
  });
  return layout.bytes();
}

template <typename BlocksOf>
std::vector<int64_t> count_blocks(std::span<const SinkGDEntry> entries, BlocksOf&& blocks_of) {
  std::vector<int64_t> blocks;
  blocks.reserve(entries.size());
  for (const SinkGDEntry& entry : entries) blocks.push_back(entry.matrices * blocks_of(entry));
  return blocks;
}

// L times rows and columns.
void launch_iterations(const Group& group, int iterations, SinkGDCommon& common, cudaStream_t stream) {
  const std::span<const SinkGDEntry> entries(group.entries);
  const auto row_blocks = count_blocks(entries, [](const SinkGDEntry& e) { return int64_t{e.plan.row_blocks}; });
  const auto tiles = count_blocks(entries, [](const SinkGDEntry& e) { return ceil_div(e.cols, kColumnsPerBlock); });
  for (int i = 0; i < iterations; ++i) {
    common.is_first = i == 0;
    common.is_last = i == iterations - 1;
    launch_sinkgd_rows(group.grad_dtype, group.threads, common, entries, row_blocks, stream);
    visit_dtypes(
        [&](auto g) {
          launch_tensors("sinkgd_columns", &sinkgd_columns_kernel<typename decltype(g)::type>, kColumnThreads, stream,
                         common, entries, std::span<const int64_t>(tiles));
        },
        group.grad_dtype);
    common.reverse = !common.reverse;
  }
}

void launch_update(const Group& group, const SinkGDCommon& common, cudaStream_t stream) {
  for (const DType param_dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    std::vector<SinkGDEntry> entries;
    for (size_t i = 0; i < group.entries.size(); ++i) {
      if (group.param_dtypes[i] == param_dtype) entries.push_back(group.entries[i]);
    }
    if (entries.empty()) continue;
    const auto blocks =
        count_blocks(entries, [](const SinkGDEntry& e) { return ceil_div(e.rows * e.cols, kMapChunk); });
    visit_dtypes(
        [&](auto w, auto g) {
          launch_tensors("sinkgd_update", &sinkgd_update_kernel<typename decltype(w)::type, typename decltype(g)::type>,
                         kMapThreads, stream, common, std::span<const SinkGDEntry>(entries),
                         std::span<const int64_t>(blocks));
        },
        param_dtype, group.grad_dtype);
  }
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
    SinkGDCommon common{options.alpha,    options.eps,       options.weight_decay,
                        options.unit,     /*is_first=*/true,
                        /*is_last=*/true, /*reverse=*/false, scalars};
    launch_iterations(group, options.iterations, common, stream);
    launch_update(group, common, stream);
  }
}

}  // namespace sage_ext::cuda
