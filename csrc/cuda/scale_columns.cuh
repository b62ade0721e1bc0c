#pragma once

#include "cuda/common/column_slots.cuh"
#include "cuda/scale_rows.cuh"

// The first two launches of SCALE over columns: partial sums of squares, and the momentum on the way; then 1 / norm.
namespace sage_ext::cuda {

struct ColumnEntry {
  const void* grad;
  void* exp_avg;
  float* sums;  // [matrices, slots, cols]
  int64_t slots_size;
  uint32_t blocks;  // of a matrix
  ColumnPanel panel;
};

using ColumnTable = TensorTable<ScaleCommon, ColumnEntry>;

template <typename G>
__global__ void __launch_bounds__(kSumThreads) scale_columns_kernel(const ColumnTable __grid_constant__ table) {
  if (skips_step(table.common.scalars)) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const ColumnEntry& t = table.tensors[index];
  const uint32_t matrix = static_cast<uint32_t>(block) / t.blocks;
  SquaresOf<GradientSource<G>> source(static_cast<const G*>(t.grad) + matrix * t.panel.numel,
                                      grad_factor(table.common.scalars));
  sum_columns(source, t.panel, static_cast<uint32_t>(block) - matrix * t.blocks, t.sums + matrix * t.slots_size);
}

template <typename G, typename M>
__global__ void __launch_bounds__(kSumThreads, 2)
    scale_momentum_columns_kernel(const ColumnTable __grid_constant__ table) {
  if (skips_step(table.common.scalars)) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const ColumnEntry& t = table.tensors[index];
  const uint32_t matrix = static_cast<uint32_t>(block) / t.blocks;
  const int64_t offset = matrix * t.panel.numel;
  SquaresOf<MomentumSource<G, M>> source(static_cast<const G*>(t.grad) + offset, static_cast<M*>(t.exp_avg) + offset,
                                         grad_factor(table.common.scalars), table.common.momentum);
  sum_columns(source, t.panel, static_cast<uint32_t>(block) - matrix * t.blocks, t.sums + matrix * t.slots_size);
}

struct NormEntry {
  const void* x;
  float* sums;  // [matrices, slots, cols]; the first row of each becomes 1 / norm
  int64_t rows, cols, slots;
  union {
    double mean_factor;
    double* totals;  // [matrices, cols]: where other processes have a share, in place of 1 / norm
  };
  uint32_t blocks;  // of a matrix
  uint32_t block_cols;
};

struct NormCommon {
  double eps;
  bool has_momentum;  // x is the momentum, which needs no factor
  bool puts_sums;
  StepScalars scalars;
};

using NormTable = TensorTable<NormCommon, NormEntry>;

template <typename X>
__global__ void __launch_bounds__(kSlotThreads) scale_norms_kernel(const NormTable __grid_constant__ table) {
  const NormCommon& common = table.common;
  if (skips_step(common.scalars)) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const NormEntry& t = table.tensors[index];
  const uint32_t matrix = static_cast<uint32_t>(block) / t.blocks;
  float* const sums = t.sums + matrix * t.slots * t.cols;
  const X* const x = static_cast<const X*>(t.x) + matrix * t.rows * t.cols;
  const auto block_of_matrix = static_cast<int64_t>(static_cast<uint32_t>(block) - matrix * t.blocks);
  for_column_totals({sums, t.slots, t.cols}, block_of_matrix, static_cast<int>(t.block_cols),
                    [&](int64_t column, double sum) {
                      // What fp32 cannot tell is added up in fp64; a NaN is one in any precision.
                      if (!squares_are_safe(sum) && sum == sum) {
                        const float factor = common.has_momentum ? 1.0f : grad_factor(common.scalars);
                        sum = 0.0;
#pragma unroll 4
                        for (int64_t row = 0; row < t.rows; ++row) {
                          const float value = to_float(load_one(x + row * t.cols + column)) * factor;
                          sum = add_square(sum, static_cast<double>(value));
                        }
                      }
                      if (common.puts_sums) {
                        store_one(t.totals + matrix * t.cols + column, sum);
                      } else {
                        store_one(sums + column, scale_inverse(sum, t.mean_factor, common.eps));
                      }
                    });
}

struct InvertEntry {
  const double* sums;
  float* inverses;
  int64_t sums_size, inverses_size;  // from one matrix to the next
  double mean_factor;
  int64_t blocks;  // of a matrix
};

struct InvertCommon {
  double eps;
  StepScalars scalars;
};

using InvertTable = TensorTable<InvertCommon, InvertEntry>;

// 1 / norm from the sums of all processes.
__global__ void __launch_bounds__(kSlotThreads) scale_invert_kernel(const InvertTable __grid_constant__ table) {
  if (skips_step(table.common.scalars)) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const InvertEntry& t = table.tensors[index];
  const int64_t matrix = block / t.blocks;
  const int64_t i = block % t.blocks * kSlotThreads + threadIdx.x;
  if (i >= t.sums_size) return;
  store_one(t.inverses + matrix * t.inverses_size + i,
            scale_inverse(load_one(t.sums + matrix * t.sums_size + i), t.mean_factor, table.common.eps));
}

}  // namespace sage_ext::cuda
