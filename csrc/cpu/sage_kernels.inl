namespace {

// Adds |g| over rows [row_begin, row_end) of the panel (rows of tiling.width elements, the last one possibly
// partial) for columns [col_begin, col_end) and writes the sums to out[col_begin .. col_end).
template <typename G>
void sum_abs(const void* grad_data, const ColumnTiling& tiling, int64_t row_begin, int64_t row_end,
             int64_t col_begin, int64_t col_end, float grad_factor, float* __restrict out) {
  const G* grad = static_cast<const G*>(grad_data);
  const int64_t count = col_end - col_begin;
  float sums[kMaxTile];
  double totals[kMaxTile];
  bool flushed = false;
  int64_t row = row_begin;
  while (row < row_end) {
    const int64_t group_end = row_end - row < kRowsPerFlush ? row_end : row + kRowsPerFlush;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) sums[j] = 0.0f;
    for (; row < group_end; ++row) {
      const int64_t begin = row * tiling.width + col_begin;
      const int64_t left = tiling.numel - begin;
      const int64_t length = left < count ? left : count;
      const G* __restrict g = grad + begin;
#pragma omp simd
      for (int64_t j = 0; j < length; ++j) sums[j] += fabsf(to_float(g[j]) * grad_factor);
    }
    if (row == row_end && !flushed) {
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) out[col_begin + j] = sums[j];
      return;
    }
    for (int64_t j = 0; j < count; ++j) totals[j] = (flushed ? totals[j] : 0.0) + static_cast<double>(sums[j]);
    flushed = true;
  }
  for (int64_t j = 0; j < count; ++j) out[col_begin + j] = static_cast<float>(totals[j]);
}

// W and exp_avg of elements [begin, end); step[j] is the step size of panel column j.
template <typename W, typename G, typename M>
void sage_chunk(const SageTensor& tensor, int64_t width, int64_t begin, int64_t end, float grad_factor,
                const float* step_of_column, const LionCoefficients& coefficients) {
  const LionCoefficients k = coefficients;
  int64_t column = begin % width;
  while (begin < end) {
    const int64_t length = end - begin < width - column ? end - begin : width - column;
    W* __restrict param = static_cast<W*>(tensor.param) + begin;
    const G* __restrict grad = static_cast<const G*>(tensor.grad) + begin;
    M* __restrict exp_avg = static_cast<M*>(tensor.exp_avg) + begin;
    const float* __restrict step = step_of_column + column;
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) {
      float w = to_float(param[i]);
      float m = to_float(exp_avg[i]);
      lion_update(w, m, to_float(grad[i]) * grad_factor, step[i], k);
      param[i] = from_float<W>(w);
      exp_avg[i] = from_float<M>(m);
    }
    begin += length;
    column = 0;
  }
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
