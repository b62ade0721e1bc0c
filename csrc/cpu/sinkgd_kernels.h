#pragma once

#include <algorithm>

#include "core/math/sinkgd.h"
#include "cpu/sinkgd.h"

// What the schedules of SinkGD share: sinkgd.cpp for whole matrices, sinkgd_stages.cpp for pieces.
namespace sage_ext::cpu {

// A matrix with its scale vectors; the buffers are a step's scratch.
struct SinkGDWork {
  SinkGDMatrix matrix;
  RowBlocks blocks;
  double* row_scale;   // [rows]
  float* col_scale;    // [cols]
  float* col_partial;  // [blocks, cols]: each block's share of the column sums of squares

  int64_t row_begin(int64_t block) const { return block * blocks.rows_per_block; }
  int64_t row_end(int64_t block) const { return std::min(row_begin(block + 1), matrix.rows); }
  float* partial(int64_t block) const { return col_partial + block * matrix.cols; }
};

inline void reset_scales(const SinkGDWork& work, double grad_factor) {
  std::fill_n(work.row_scale, work.matrix.rows, grad_factor);
  std::fill_n(work.col_scale, work.matrix.cols, 1.0f);
}

// What the halves of an iteration do to a matrix.
struct SinkGDNorms {
  SinkGDNorm row, col;
};

inline SinkGDNorms sinkgd_norms(const SinkGDMatrix& m, const SinkGDOptions& options, int iteration) {
  const SinkGDForm form{options.unit, options.eps};
  const int64_t rows = m.whole.rows_of(m.rows);
  const int64_t cols = m.whole.cols_of(m.cols);
  return {sinkgd_row_norm(form, rows, cols, iteration == 0),
          sinkgd_col_norm(form, rows, cols, iteration == options.iterations - 1)};
}

// Rows and columns up to which a matrix is tiny.
inline constexpr int64_t kTinySide = 32;

inline bool is_tiny(const SinkGDMatrix& m) { return m.rows <= kTinySide && m.cols <= kTinySide; }

// A step of tiny matrices.
struct SinkGDTinyStep {
  SinkGDNorms first, middle, last;  // of the iterations; the only one is the last
  int iterations;
  double grad_factor, lr_alpha;
  float decay;
};

struct SinkGDKernels {
  // Of an iteration: its row half, and its column half, for some of the rows or columns.
  void (*rows)(const SinkGDWork&, int64_t row_begin, int64_t row_end, const SinkGDNorm&, float* partial);
  void (*columns)(const SinkGDWork&, int64_t col_begin, int64_t col_end, const SinkGDNorm&);
  void (*update)(const SinkGDWork&, int64_t row_begin, int64_t row_end, double lr_alpha, float decay);
  // The halves of a piece, whose sums have to meet those of other processes before they become scales: sums of squares
  // of the iterate by row; the rows' share of the column sums; sums of squares of the iterate by column.
  void (*row_sums)(const SinkGDWork&, int64_t row_begin, int64_t row_end, double* sums);
  void (*row_shares)(const SinkGDWork&, int64_t row_begin, int64_t row_end, float* partial);
  void (*column_sums)(const SinkGDWork&, int64_t col_begin, int64_t col_end, const SinkGDSums&, bool is_first);
  // The whole step of a tiny matrix. False if it needs the other kernels: nothing has changed then.
  bool (*tiny)(const SinkGDMatrix&, const SinkGDTinyStep&);
};

// Those for the matrix's dtypes, as compiled for the instruction set in use.
SinkGDKernels sinkgd_kernels(const SinkGDMatrix& matrix);

}  // namespace sage_ext::cpu
