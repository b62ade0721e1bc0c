#pragma once

#include "cuda/sage_average.cuh"

// The second launch of SAGE for pieces of tensors, in three parts: other processes have their share of the sums over
// rows, and of those over columns.
namespace sage_ext::cuda {

struct ColumnsEntry {
  const float* sums;
  float* columns;
  int64_t slots, cols;
  uint32_t block_cols;
};

using ColumnsTable = TensorTable<StepScalars, ColumnsEntry>;

// Adds up the slots.
__global__ void __launch_bounds__(kAverageThreads) sage_columns_kernel(const ColumnsTable __grid_constant__ table) {
  if (skips_step(table.common)) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const ColumnsEntry& t = table.tensors[index];
  for_column_totals({t.sums, t.slots, t.cols}, block, static_cast<int>(t.block_cols),
                    [&](int64_t column, double total) { store_one(t.columns + column, static_cast<float>(total)); });
}

// `average.sums` are the columns' sums, one slot, and become s. `rows` are those of the whole tensor.
struct PieceEntry {
  AverageEntry average;
  double* squares;  // [2]
  int64_t cols;     // of the whole tensor
};

using PieceTable = TensorTable<AverageCommon, PieceEntry>;

// s, the average S, and their sums of squares.
__global__ void __launch_bounds__(kAverageThreads, 2) sage_squares_kernel(const PieceTable __grid_constant__ table) {
  const AverageCommon& common = table.common;
  if (skips_step(common.scalars)) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const PieceEntry& piece = table.tensors[index];
  const AverageEntry& t = piece.average;
  SAGE_EXT_SHARED(AverageScalars, shared_scalars);
  if (threadIdx.x == 0) shared_scalars = average_scalars(t, common);
  __syncthreads();
  const Squares squares = average_columns(t, block, common.beta2, shared_scalars);
  if (threadIdx.x == 0) {
    store_one(&t.squares[block].s, squares.s);
    store_one(&t.squares[block].s_hat, squares.s_hat);
  }
  if (!is_last_block(t.finished, t.blocks)) return;
  const Squares total = add_squares_of_blocks(t);
  if (threadIdx.x == 0) {
    store_one(piece.squares, total.s);
    store_one(piece.squares + 1, total.s_hat);
  }
}

// The step of every column: a block for each tensor. Also counts the step.
__global__ void __launch_bounds__(kAverageThreads) sage_steps_kernel(const PieceTable __grid_constant__ table) {
  if (skips_step(table.common.scalars)) return;
  const PieceEntry& piece = table.tensors[blockIdx.x];
  SAGE_EXT_SHARED(AverageScalars, shared_scalars);
  if (threadIdx.x == 0) shared_scalars = average_scalars(piece.average, table.common);
  __syncthreads();
  const AverageScalars k = shared_scalars;
  write_steps(piece.average, table.common, k.inv_correction,
              {load_uniform(piece.squares), load_uniform(piece.squares + 1)}, piece.cols);
  if (threadIdx.x == 0) store_one(piece.average.step, k.step);
}

}  // namespace sage_ext::cuda
