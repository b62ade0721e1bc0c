namespace {

template <typename G, typename M>
void scale_momentum(const ScaleMatrix& matrix, int64_t begin, int64_t end, const Scalars& scalars) {
  const float grad_factor = scalars.grad_factor;
  const MomentumCoefficients k = scalars.momentum;
  update_elements(
      end - begin,
      [=](int64_t, float g, float& m) SAGE_EXT_ALWAYS_INLINE { m = momentum_update(m, g * grad_factor, k); },
      static_cast<const G*>(matrix.grad) + begin, static_cast<M*>(matrix.exp_avg) + begin);
}

// The sum of (x[i] * factor)^2 over i in [0, count), in four streams, so that the additions do not wait for each other.
template <typename X>
float sum_squares(const X* __restrict x, int64_t count, float factor) {
  const int64_t quarter = count / 8 * 2;
  const X* __restrict x1 = x + quarter;
  const X* __restrict x2 = x + 2 * quarter;
  const X* __restrict x3 = x + 3 * quarter;
  float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
  if constexpr (is_16_bit<X>) {
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t i = 0; i < quarter / 2; ++i) {
      s0 = add_square(add_square(s0, load_first(x, i) * factor), load_second(x, i) * factor);
      s1 = add_square(add_square(s1, load_first(x1, i) * factor), load_second(x1, i) * factor);
      s2 = add_square(add_square(s2, load_first(x2, i) * factor), load_second(x2, i) * factor);
      s3 = add_square(add_square(s3, load_first(x3, i) * factor), load_second(x3, i) * factor);
    }
  } else {
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t i = 0; i < quarter; ++i) {
      s0 = add_square(s0, to_float(x[i]) * factor);
      s1 = add_square(s1, to_float(x1[i]) * factor);
      s2 = add_square(s2, to_float(x2[i]) * factor);
      s3 = add_square(s3, to_float(x3[i]) * factor);
    }
  }
  for (int64_t i = 4 * quarter; i < count; ++i) s0 = add_square(s0, to_float(x[i]) * factor);
  return (s0 + s1) + (s2 + s3);
}

// The sums of squares of a group's rows, a segment of each in turn.
template <typename X>
void scale_sum_rows(const void* data, const RowGroup& rows, int64_t cols, float factor, double* sums) {
  const X* x = static_cast<const X*>(data);
  for (int64_t k = 0; k < rows.count; ++k) sums[k] = 0.0;
  for (int64_t begin = 0; begin < cols; begin += kRowSegment) {
    const int64_t length = cols - begin < kRowSegment ? cols - begin : kRowSegment;
    for (int64_t k = 0; k < rows.count; ++k) {
      sums[k] += static_cast<double>(sum_squares(x + rows.at(k) * cols + begin, length, factor));
    }
  }
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
void scale_update_rows(const ScaleMatrix& matrix, const void* data, const RowGroup& rows, const Scalars& scalars,
                       const float* inverse_of_row) {
  const Scalars k = scalars;
  const int64_t cols = matrix.cols;
  for_strips_of_rows(0, rows.count, cols, [&](int64_t i, int64_t begin, int64_t end) SAGE_EXT_ALWAYS_INLINE {
    const float inverse = inverse_of_row[i];
    W* param = static_cast<W*>(matrix.param) + rows.at(i) * cols;
    prefetch_strips(param + begin);
    update_range(
        begin, end,
        [=](int64_t, float x, float& w)
            SAGE_EXT_ALWAYS_INLINE { w = scale_update(w, x * k.factor, k.lr, inverse, k.decay); },
        static_cast<const X*>(data) + rows.at(i) * cols, param);
  });
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
        return {nullptr,
                &scale_sum_rows<X>,
                &scale_exact_sum<X>,
                &scale_sum_columns<X>,
                &scale_update_rows<W, X>,
                &scale_update_columns<W, X>};
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
