#pragma once

#include "cuda/common/reduce.cuh"
#include "cuda/sinkgd_rows.cuh"
#include "cuda/sinkgd_table.cuh"

// What an iteration of SinkGD on a piece of a matrix has of its own: other processes have the rest of the rows or of
// the columns. Rows that are cut are read twice, once for the sums of rows and once for those of columns.
namespace sage_ext::cuda {

inline constexpr int kPieceThreads = 256;
inline constexpr int kPieceRows = kPieceThreads / kWarpSize;  // of a block: a warp has a row
inline constexpr int kPieceVectors = 4;                       // neighbouring columns of a thread
inline constexpr int kPieceColumns = kPieceThreads * kPieceVectors;

// Sums of squares of the iterate by row, into `out`, [matrices, rows] in fp64.
template <typename G>
__global__ void __launch_bounds__(kPieceThreads) sinkgd_row_sums_kernel(const SinkGDTable __grid_constant__ table) {
  const SinkGDCommon& common = table.common;
  if (skips_step(common.scalars)) return;
  const auto [index, block] = place_of_block(table);
  const SinkGDEntry& e = table.tensors[index];
  const int64_t blocks = (e.rows + kPieceRows - 1) / kPieceRows;
  const int64_t matrix = block / blocks;
  const int64_t row = block % blocks * kPieceRows + static_cast<int>(threadIdx.x) / kWarpSize;
  if (row >= e.rows) return;  // a whole warp
  const G* const grad = static_cast<const G*>(e.grad) + (matrix * e.rows + row) * e.cols;
  const float* const col_scale = common.is_first ? nullptr : e.col_scale + matrix * e.cols;
  const auto scale_of = [&](int64_t col) {
    float scale[1];
    load_col_scales(col_scale, col, scale);
    return scale[0];
  };
  constexpr int kVec = kVecSize<G>;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  double total = 0.0;
  if (e.aligned) {
    for (int64_t col = lane * kVec; col < e.cols; col += int64_t{kWarpSize} * kVec) {
      Pack<G, kVec> pack;
      pack.load(grad + col);
      float g[kVec], scales[kVec];
      pack.unpack(g);
      load_col_scales(col_scale, col, scales);
      float sum = 0.0f;
#pragma unroll
      for (int v = 0; v < kVec; ++v) sum = add_square(sum, g[v] * scales[v]);
      total += static_cast<double>(sum);
    }
  } else {
    for (int64_t col = lane; col < e.cols; col += kWarpSize) {
      const float x = to_float(load_one(grad + col)) * scale_of(col);
      total += static_cast<double>(x * x);
    }
  }
  total = lane_sum(total, kWarpSize);
  if (!squares_are_safe(total) && total == total) {  // of all lanes alike
    total = 0.0;
    for (int64_t col = lane; col < e.cols; col += kWarpSize) {
      total =
          add_square(total, static_cast<double>(to_float(load_one(grad + col))) * static_cast<double>(scale_of(col)));
    }
    total = lane_sum(total, kWarpSize);
  }
  if (lane != 0) return;
  const auto old = static_cast<double>(common.is_first ? grad_factor(common.scalars)
                                                       : load_one(e.row_scale + matrix * e.rows + row));
  store_one(static_cast<double*>(e.out) + matrix * e.rows + row, total * old * old);
}

// The share of a block of rows in the column sums, with the rows' new scales.
template <typename G>
__global__ void __launch_bounds__(kPieceThreads) sinkgd_row_shares_kernel(const SinkGDTable __grid_constant__ table) {
  if (skips_step(table.common.scalars)) return;
  const auto [index, block] = place_of_block(table);
  const SinkGDEntry& e = table.tensors[index];
  const int64_t tiles = (e.cols + kPieceColumns - 1) / kPieceColumns;
  const int64_t slot = block / tiles;  // of [matrices, row_blocks]
  const int64_t matrix = slot / e.plan.row_blocks;
  const int64_t first = slot % e.plan.row_blocks * e.plan.rows_per_block;
  const int64_t end = first + e.plan.rows_per_block < e.rows ? first + e.plan.rows_per_block : e.rows;
  // Neighbouring lanes have neighbouring columns.
  const int64_t col = block % tiles * kPieceColumns + threadIdx.x;
  float sums[kPieceVectors] = {};
  for (int64_t row = first; row < end; ++row) {
    const float scale = load_uniform(e.row_scale + matrix * e.rows + row);
    const G* const grad = static_cast<const G*>(e.grad) + (matrix * e.rows + row) * e.cols + col;
#pragma unroll
    for (int v = 0; v < kPieceVectors; ++v) {
      if (col + v * kPieceThreads >= e.cols) continue;
      sums[v] = add_square(sums[v], to_float(load_one(grad + v * kPieceThreads)) * scale);
    }
  }
#pragma unroll
  for (int v = 0; v < kPieceVectors; ++v) {
    if (col + v * kPieceThreads < e.cols) store_one(e.partial + slot * e.cols + col + v * kPieceThreads, sums[v]);
  }
}

inline constexpr int kScaleThreads = 256;

template <typename Sum>
struct ScalesEntry {
  const Sum* sums;  // of squares of the iterate, over all processes
  float* scales;
  int64_t count;
  SinkGDNorm norm;
};

struct ScalesCommon {
  bool is_first, is_rows;
  StepScalars scalars;
};

// New scales of rows, or of columns.
template <typename Sum>
__global__ void __launch_bounds__(kScaleThreads)
    sinkgd_scales_kernel(const TensorTable<ScalesCommon, ScalesEntry<Sum>> __grid_constant__ table) {
  const ScalesCommon& common = table.common;
  if (skips_step(common.scalars)) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const ScalesEntry<Sum>& e = table.tensors[index];
  const int64_t i = block * kScaleThreads + threadIdx.x;
  if (i >= e.count) return;
  float old = common.is_rows ? grad_factor(common.scalars) : 1.0f;
  if (!common.is_first) old = load_one(e.scales + i);
  const double norm = std::sqrt(static_cast<double>(load_one(e.sums + i)));
  store_one(e.scales + i,
            static_cast<float>(sinkgd_rescale_by(norm, static_cast<double>(old), e.norm.target, e.norm.eps)));
}

}  // namespace sage_ext::cuda
