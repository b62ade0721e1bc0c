#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>
#include <vector>

#include "core/dtype.h"
#include "core/launch_plan.h"
#include "core/math/sinkgd.h"
#include "cuda/common/step_scalars.h"

namespace sage_ext::cuda {

// A contiguous parameter [matrices, rows, cols] with its gradient, on one device; each matrix is normalised on its
// own. It may be a piece of a tensor that lies on several processes.
struct SinkGDTensor {
  void* param;
  const void* grad;
  int64_t matrices, rows, cols;
  DType param_dtype, grad_dtype;
  WholeSize whole = {};  // of a matrix
};

struct SinkGDOptions {
  double alpha, eps, weight_decay;
  int iterations;
  bool unit;  // leave out the factors sqrt(rows) and sqrt(cols)
};

// Bytes of device memory that sinkgd_step() needs as scratch.
int64_t sinkgd_workspace_bytes(std::span<const SinkGDTensor> tensors);

// One SinkGD step over all tensors on `stream`: where all share their dtypes, one launch for the update, and in an
// iteration one for each kind of rows (on 16-byte boundaries or not, narrow or wide) and one for the columns. The
// gradient is read once an iteration and never written.
void sinkgd_step(std::span<const SinkGDTensor> tensors, const SinkGDOptions& options, const StepScalars& scalars,
                 void* workspace, cudaStream_t stream);

// The same for pieces, with as much scratch, which is kept from the first call to the last. In every iteration either
//   sinkgd_rows_and_columns()             where rows are whole: their scales, and the sums of columns;
// or, of the gradient read twice,
//   sinkgd_put_rows(), sinkgd_take_rows(), sinkgd_put_columns()    with the rows' sums added up in between;
// and then sinkgd_take_columns(), with those of the columns added up. In the end sinkgd_finish(). Sums of a piece
// without elements are zero from the start.
struct SinkGDPieces {
  std::span<const SinkGDTensor> tensors;
  std::span<const SinkGDSums> sums;  // [matrices, rows] and [matrices, cols]
  const SinkGDOptions& options;
  void* workspace;
};

void sinkgd_rows_and_columns(const SinkGDPieces& pieces, int iteration, const StepScalars& scalars,
                             cudaStream_t stream);
void sinkgd_put_rows(const SinkGDPieces& pieces, int iteration, const StepScalars& scalars, cudaStream_t stream);
void sinkgd_take_rows(const SinkGDPieces& pieces, int iteration, const StepScalars& scalars, cudaStream_t stream);
void sinkgd_put_columns(const SinkGDPieces& pieces, int iteration, const StepScalars& scalars, cudaStream_t stream);
void sinkgd_take_columns(const SinkGDPieces& pieces, int iteration, const StepScalars& scalars, cudaStream_t stream);
void sinkgd_finish(const SinkGDPieces& pieces, const StepScalars& scalars, cudaStream_t stream);

}  // namespace sage_ext::cuda
