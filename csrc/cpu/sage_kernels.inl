namespace {

// Adds |g| over rows [row_begin, row_end) of the panel (rows of tiling.width elements, the last one possibly
// partial) for columns [col_begin, col_end) and writes the sums to out[col_begin .. col_end).
template <typename G>
void sum_abs(const void* grad_data, const ColumnTiling& tiling, int64_t row_begin, int64_t row_end, int64_t col_begin,
             int64_t col_end, float* __restrict out) {
  const G* grad = static_cast<const G*>(grad_data) + col_begin;
  const int64_t count = col_end - col_begin;
  const int64_t full_rows = tiling.numel / tiling.width;
  float sums[kColumnTile];
  double totals[kColumnTile];
  for (int64_t j = 0; j < count; ++j) totals[j] = 0.0;
  for (int64_t row = row_begin; row < row_end;) {
    const int64_t group_end = row_end - row < kRowsPerFlush ? row_end : row + kRowsPerFlush;
    for (int64_t j = 0; j < count; ++j) sums[j] = 0.0f;
    const int64_t distance = ((full_rows < group_end ? full_rows : group_end) - row) / kAddedRows;
    for (int64_t i = 0; i < distance; ++i) {
      add_rows(
          grad + (row + i) * tiling.width, distance * tiling.width, count,
          [](float sum, float x0, float x1, float x2, float x3)
              SAGE_EXT_ALWAYS_INLINE { return sum + ((fabsf(x0) + fabsf(x1)) + (fabsf(x2) + fabsf(x3))); },
          sums);
    }
    if (distance > 0) row += kAddedRows * distance;
    for (; row < group_end; ++row) {
      const int64_t begin = row * tiling.width;
      const int64_t left = tiling.numel - begin - col_begin;
      for_elements(
          left < count ? left : count, [&](int64_t j, float g) SAGE_EXT_ALWAYS_INLINE { sums[j] += fabsf(g); },
          grad + begin);
    }
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) totals[j] += static_cast<double>(sums[j]);
  }
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) out[col_begin + j] = static_cast<float>(totals[j]);
}

// The mean |g| (totals times mean_factor) and its exponential average for some columns; the means go into the
// columns' buffer.
Squares average_columns(const SageColumns& columns, const double* __restrict totals, double mean_factor, double beta2,
                        double bias_correction) {
  float* __restrict s_range = columns.s_range;
  float* __restrict buffer = columns.buffer;
  const double inv_correction = 1.0 / bias_correction;
  double squares = 0.0;
  double squares_hat = 0.0;
#pragma omp simd reduction(+ : squares, squares_hat)
  for (int64_t j = 0; j < columns.count; ++j) {
    const double s = totals[j] * mean_factor;
    const double average = sage_ema(static_cast<double>(s_range[j]), s, beta2);
    const double s_hat = average * inv_correction;
    s_range[j] = static_cast<float>(average);
    buffer[j] = static_cast<float>(s);
    squares += s * s;
    squares_hat += s_hat * s_hat;
  }
  return {squares, squares_hat};
}

// lr * H for some columns, over the means in their buffer.
template <bool kInstant>
void step_columns(const SageColumns& columns, float lr, const SageDamper& damper) {
  const float* __restrict s_range = columns.s_range;
  float* __restrict buffer = columns.buffer;
  const SageDamper k = damper;
#pragma omp simd
  for (int64_t j = 0; j < columns.count; ++j) buffer[j] = lr * sage_damper<kInstant>(s_range[j], buffer[j], k);
}

// W and exp_avg of elements [begin, end); step[j] is the step size of panel column j.
template <typename W, typename G, typename M>
void sage_chunk(const SageTensor& tensor, int64_t width, int64_t begin, int64_t end, float grad_factor,
                const float* step_of_column, const LionCoefficients& coefficients) {
  const LionCoefficients k = coefficients;
  update_columns_of(
      begin, end, width,
      [=](int64_t column, float g, float& w, float& m)
          SAGE_EXT_ALWAYS_INLINE { lion_update(w, m, g * grad_factor, step_of_column[column], k); },
      static_cast<const G*>(tensor.grad), static_cast<W*>(tensor.param), static_cast<M*>(tensor.exp_avg));
}

SageSumAbs select_sum_abs(DType grad) {
  return visit_dtypes([](auto g) -> SageSumAbs { return &sum_abs<typename decltype(g)::type>; }, grad);
}

SageChunk select_sage_chunk(const SageTensor& t) {
  return visit_dtypes(
      [](auto w, auto g, auto m) -> SageChunk {
        return &sage_chunk<typename decltype(w)::type, typename decltype(g)::type, typename decltype(m)::type>;
      },
      t.param_dtype, t.grad_dtype, t.exp_avg_dtype);
}

}  // namespace
