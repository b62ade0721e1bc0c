#pragma once

#include <cmath>

#include "core/math/sinkgd.h"
#include "cuda/common/multi_tensor.cuh"
#include "cuda/common/step_scalars.cuh"

// What the launches of SinkGD share.
namespace sage_ext::cuda {

struct SinkGDEntry {
  void* out;  // the parameter; or sums of a piece, by column (fp64 in the first iteration, fp32 in others) or by row
  const void* grad;
  float* row_scale;  // [matrices, rows]
  float* col_scale;  // [matrices, cols]
  float* partial;    // [matrices, row_blocks, cols]: column sums of squares of each block of rows
  int64_t rows, cols;
  int32_t whole_rows, whole_cols;  // of the matrix that this is a piece of, or its own
  SinkhornPlan plan;
  bool aligned;  // rows start on 16-byte boundaries
};

struct SinkGDCommon {
  double alpha, eps, weight_decay;
  bool unit;
  bool is_first, is_last;  // iteration
  bool reverse;            // the order of blocks
  bool puts_columns;       // the column half ends with sums, in which other processes have a share
  StepScalars scalars;

  __device__ __forceinline__ SinkGDForm form() const { return {unit, eps}; }
};

using SinkGDTable = TensorTable<SinkGDCommon, SinkGDEntry>;

// Each launch goes through the matrices in the opposite order of the one before, so that it starts with what the
// second-level cache still holds.
__device__ __forceinline__ BlockPlace place_of_block(const SinkGDTable& table) {
  const uint32_t block = blockIdx.x;
  return find_tensor(table, table.common.reverse ? gridDim.x - 1 - block : block);
}

// The row half of an iteration over all entries; blocks[i] is the number of blocks of entry i. Compiled on its own
// (sinkgd_rows.cu): it is most of the code.
void launch_sinkgd_rows(DType grad_dtype, int threads, const SinkGDCommon& common, std::span<const SinkGDEntry> entries,
                        std::span<const int64_t> blocks, cudaStream_t stream);

}  // namespace sage_ext::cuda
