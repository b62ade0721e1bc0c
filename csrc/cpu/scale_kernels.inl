#include "cpu/common/blocks.inl"

namespace {

inline constexpr int64_t kBlocksPerSum = 16;  // whose squares are added up in fp32

template <typename G, typename M>
void scale_momentum(const ScaleMatrix& matrix, int64_t begin, int64_t end, const Scalars& scalars) {
  const float grad_factor = scalars.grad_factor;
  const MomentumCoefficients k = scalars.momentum;
  update_elements(
      end - begin,
      [=](int64_t, float g, float& m) SAGE_EXT_ALWAYS_INLINE { m = momentum_update(m, g * grad_factor, k); },
      static_cast<const G*>(matrix.grad) + begin, static_cast<M*>(matrix.exp_avg) + begin);
}

// The pass over rows that scale.cpp describes, of blocks: the next row's sum of squares, and the update of this one.
template <bool kSums, bool kUpdates, typename W, typename X>
double scale_row_pass(const ScaleMatrix& matrix, const X* data, const ScaleRows& rows, const Scalars& scalars,
                      ScaleMomentum momentum) {
  constexpr bool kHalves = is_16_bit<W> && is_16_bit<X>;
  const float factor = scalars.factor;
  const int64_t cols = matrix.cols;
  const X* next = data + rows.next * cols;
  const X* x = data + rows.current * cols;
  W* param = static_cast<W*>(matrix.param) + rows.current * cols;
  const auto update_momentum = [&](int64_t begin, int64_t end) SAGE_EXT_ALWAYS_INLINE {
    if (kSums && momentum != nullptr && begin < end) {
      momentum(matrix, rows.next * cols + begin, rows.next * cols + end, scalars);
    }
  };
  const int64_t blocks = cols / kBlock;
  WideLanes sum;
  for (int64_t block = 0; block < blocks;) {
    const int64_t end = blocks - block < kBlocksPerSum ? blocks : block + kBlocksPerSum;
    update_momentum(block * kBlock, end * kBlock);
    Lanes squares(0.0f);
    for (; block < end; ++block) {
      Floats parts[kParts];
      if constexpr (kSums) {
        prefetch_strips(next + block * kBlock);
        load_parts<kHalves>(next + block * kBlock, parts);
        SAGE_EXT_FOR_PARTS {
          parts[k] *= factor;
          squares.of(k) += parts[k] * parts[k];
        }
      }
      if constexpr (kUpdates) {
        prefetch_strips(param + block * kBlock);
        Floats updated[kParts];
        load_parts<kHalves>(x + block * kBlock, parts);
        load_parts<kHalves>(param + block * kBlock, updated);
        SAGE_EXT_FOR_PARTS {
          updated[k] = scale_update<Floats>(updated[k], parts[k] * factor, scalars.lr, rows.inverse, scalars.decay);
        }
        store_parts<kHalves>(param + block * kBlock, updated);
      }
    }
    if constexpr (kSums) sum.take(squares);
  }
  update_momentum(blocks * kBlock, cols);
  float left = 0.0f;
  for (int64_t j = blocks * kBlock; j < cols; ++j) {
    if constexpr (kSums) {
      const float value = to_float(next[j]) * factor;
      left += value * value;
    }
    if constexpr (kUpdates) {
      param[j] = from_float<W>(
          scale_update(to_float(param[j]), to_float(x[j]) * factor, scalars.lr, rows.inverse, scalars.decay));
    }
  }
  return sum.sum() + static_cast<double>(left);
}

template <typename W, typename X>
double scale_rows(const ScaleMatrix& matrix, const void* data, const ScaleRows& rows, const Scalars& scalars,
                  ScaleMomentum momentum) {
  const X* x = static_cast<const X*>(data);
  if (rows.current < 0) return scale_row_pass<true, false, W, X>(matrix, x, rows, scalars, momentum);
  if (rows.next < 0) return scale_row_pass<false, true, W, X>(matrix, x, rows, scalars, momentum);
  return scale_row_pass<true, true, W, X>(matrix, x, rows, scalars, momentum);
}

template <typename X>
double scale_exact_sum(const void* data, int64_t begin, int64_t count, int64_t stride, float factor) {
  const X* x = static_cast<const X*>(data) + begin;
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    const auto value = static_cast<double>(to_float(x[i * stride]) * factor);
    sum += value * value;
  }
  return sum;
}

template <typename X>
void scale_sum_columns(const ScaleMatrix& matrix, const void* data, const ColumnTiling& tiling, Chunk rows, Chunk cols,
                       const Scalars& scalars, ScaleMomentum momentum, float* __restrict out) {
  const X* x = static_cast<const X*>(data) + cols.begin;
  const float factor = scalars.factor;
  const int64_t full_rows = tiling.numel / tiling.width;
  // Of a row of the panel: the last one may be partial.
  const auto count_of = [&](int64_t row) {
    const int64_t left = tiling.numel - row * tiling.width - cols.begin;
    return left < cols.end - cols.begin ? left : cols.end - cols.begin;
  };
  const auto update_momentum = [&](int64_t row) {
    const int64_t begin = row * tiling.width + cols.begin;
    if (momentum != nullptr && count_of(row) > 0) momentum(matrix, begin, begin + count_of(row), scalars);
  };
  const int64_t count = cols.end - cols.begin;
  float sums[kColumnTile];
  double totals[kColumnTile];
  for (int64_t j = 0; j < count; ++j) totals[j] = 0.0;
  for (int64_t row = rows.begin; row < rows.end;) {
    const int64_t group_end = rows.end - row < kRowsPerFlush ? rows.end : row + kRowsPerFlush;
    for (int64_t j = 0; j < count; ++j) sums[j] = 0.0f;
    const int64_t distance = ((full_rows < group_end ? full_rows : group_end) - row) / kAddedRows;
    for (int64_t i = 0; i < distance; ++i) {
      for (int64_t k = 0; k < kAddedRows; ++k) update_momentum(row + i + k * distance);
      add_rows(
          x + (row + i) * tiling.width, distance * tiling.width, count,
          [=](float sum, float x0, float x1, float x2, float x3)
              SAGE_EXT_ALWAYS_INLINE { return add_squares(sum, x0 * factor, x1 * factor, x2 * factor, x3 * factor); },
          sums);
    }
    if (distance > 0) row += kAddedRows * distance;
    for (; row < group_end; ++row) {
      update_momentum(row);
      for_elements(
          count_of(row),
          [&](int64_t j, float value) SAGE_EXT_ALWAYS_INLINE { sums[j] = add_square(sums[j], value * factor); },
          x + row * tiling.width);
    }
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) totals[j] += static_cast<double>(sums[j]);
  }
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) out[cols.begin + j] = static_cast<float>(totals[j]);
}

template <typename W, typename X>
void scale_update_columns(const ScaleMatrix& matrix, const void* data, int64_t width, int64_t begin, int64_t end,
                          const Scalars& scalars, const float* inverse_of_column) {
  const Scalars k = scalars;
  update_columns_of(
      begin, end, width,
      [=](int64_t column, float x, float& w)
          SAGE_EXT_ALWAYS_INLINE { w = scale_update(w, x * k.factor, k.lr, inverse_of_column[column], k.decay); },
      static_cast<const X*>(data), static_cast<W*>(matrix.param));
}

ScaleKernels select_scale_kernels(const ScaleMatrix& matrix) {
  const bool has_momentum = matrix.exp_avg != nullptr;
  ScaleKernels kernels = visit_dtypes(
      [](auto w, auto x) -> ScaleKernels {
        using W = typename decltype(w)::type;
        using X = typename decltype(x)::type;
        return {nullptr, &scale_rows<W, X>, &scale_exact_sum<X>, &scale_sum_columns<X>, &scale_update_columns<W, X>};
      },
      matrix.param_dtype, has_momentum ? matrix.exp_avg_dtype : matrix.grad_dtype);
  if (has_momentum) {
    kernels.momentum = visit_dtypes(
        [](auto g, auto m) -> ScaleMomentum {
          return &scale_momentum<typename decltype(g)::type, typename decltype(m)::type>;
        },
        matrix.grad_dtype, matrix.exp_avg_dtype);
  }
  return kernels;
}

}  // namespace
