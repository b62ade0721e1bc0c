namespace {

// Where the target has it, a fused multiply-add (one rounding); a libm call would be slow elsewhere.
inline __attribute__((always_inline)) float multiply_add(float a, float b, float c) {
#ifdef __FMA__
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// sum_j (g_j c_j)^2 for a row whose fp32 sum left the safe range.
template <typename G>
double exact_row_sum(const G* __restrict g, const float* __restrict col_scale, int64_t cols) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < cols; ++j) {
    const double x = static_cast<double>(to_float(g[j])) * static_cast<double>(col_scale[j]);
    sum += x * x;
  }
  return sum;
}

// Kernels for groups of `kRows` rows: each vector of column scales and of column sums is loaded once a group,
// and the rows' sums are independent chains of additions.
template <typename G, int kRows>
struct RowGroup {
  static void sums(const G* const* rows, const float* __restrict col_scale, int64_t cols, float* out);
  static void add_columns(const G* const* rows, const float* scale, int64_t cols, float* __restrict acc);
};

template <typename G>
struct RowGroup<G, 4> {
  static void sums(const G* const* rows, const float* __restrict col_scale, int64_t cols, float* out) {
    const G* __restrict g0 = rows[0];
    const G* __restrict g1 = rows[1];
    const G* __restrict g2 = rows[2];
    const G* __restrict g3 = rows[3];
    float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t j = 0; j < cols; ++j) {
      const float c = col_scale[j];
      const float x0 = to_float(g0[j]) * c;
      const float x1 = to_float(g1[j]) * c;
      const float x2 = to_float(g2[j]) * c;
      const float x3 = to_float(g3[j]) * c;
      s0 = multiply_add(x0, x0, s0);
      s1 = multiply_add(x1, x1, s1);
      s2 = multiply_add(x2, x2, s2);
      s3 = multiply_add(x3, x3, s3);
    }
    out[0] = s0;
    out[1] = s1;
    out[2] = s2;
    out[3] = s3;
  }

  static void add_columns(const G* const* rows, const float* scale, int64_t cols, float* __restrict acc) {
    const G* __restrict g0 = rows[0];
    const G* __restrict g1 = rows[1];
    const G* __restrict g2 = rows[2];
    const G* __restrict g3 = rows[3];
    const float r0 = scale[0], r1 = scale[1], r2 = scale[2], r3 = scale[3];
#pragma omp simd
    for (int64_t j = 0; j < cols; ++j) {
      const float x0 = to_float(g0[j]) * r0;
      const float x1 = to_float(g1[j]) * r1;
      const float x2 = to_float(g2[j]) * r2;
      const float x3 = to_float(g3[j]) * r3;
      const float low = multiply_add(x1, x1, x0 * x0);
      const float high = multiply_add(x3, x3, x2 * x2);
      acc[j] += low + high;
    }
  }
};

template <typename G>
struct RowGroup<G, 1> {
  static void sums(const G* const* rows, const float* __restrict col_scale, int64_t cols, float* out) {
    const G* __restrict g = rows[0];
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < cols; ++j) {
      const float x = to_float(g[j]) * col_scale[j];
      sum = multiply_add(x, x, sum);
    }
    out[0] = sum;
  }

  static void add_columns(const G* const* rows, const float* scale, int64_t cols, float* __restrict acc) {
    const G* __restrict g = rows[0];
    const float r = scale[0];
#pragma omp simd
    for (int64_t j = 0; j < cols; ++j) {
      const float x = to_float(g[j]) * r;
      acc[j] = multiply_add(x, x, acc[j]);
    }
  }
};

// Row norms of one group, the new row scales, and the group's share of the column sums while its rows are
// still in the cache.
template <typename G, int kRows>
void row_group(const G* grad, int64_t cols, const float* col_scale, double target, double eps, double* row_scale,
               float* acc) {
  const G* rows[kRows];
  for (int k = 0; k < kRows; ++k) rows[k] = grad + k * cols;
  float sums[kRows];
  float scale[kRows];
  RowGroup<G, kRows>::sums(rows, col_scale, cols, sums);
  for (int k = 0; k < kRows; ++k) {
    const double sum =
        sinkgd_sum_is_safe(sums[k]) ? static_cast<double>(sums[k]) : exact_row_sum(rows[k], col_scale, cols);
    row_scale[k] = sinkgd_rescale(row_scale[k], sum, target, eps);
    scale[k] = static_cast<float>(row_scale[k]);
  }
  RowGroup<G, kRows>::add_columns(rows, scale, cols, acc);
}

// The row half of an iteration for rows [row_begin, row_end); `partial` [cols] receives these rows' share of
// the column sums of squares.
template <typename G>
void sinkgd_rows(const SinkGDStep::Work& work, int64_t row_begin, int64_t row_end, double target, double eps,
                 float* partial) {
  const int64_t cols = work.matrix.cols;
  const G* grad = static_cast<const G*>(work.matrix.grad);
  for (int64_t j = 0; j < cols; ++j) partial[j] = 0.0f;
  int64_t row = row_begin;
  for (; row + 4 <= row_end; row += 4) {
    row_group<G, 4>(grad + row * cols, cols, work.col_scale, target, eps, work.row_scale + row, partial);
  }
  for (; row < row_end; ++row) {
    row_group<G, 1>(grad + row * cols, cols, work.col_scale, target, eps, work.row_scale + row, partial);
  }
}

// The column half of an iteration for columns [col_begin, col_end): adds up the blocks' shares in their order.
template <typename G>
void sinkgd_columns(const SinkGDStep::Work& work, int64_t col_begin, int64_t col_end, double target, double eps) {
  const int64_t cols = work.matrix.cols;
  const G* grad = static_cast<const G*>(work.matrix.grad);
  for (int64_t begin = col_begin; begin < col_end; begin += kColumnGroup) {
    const int64_t count = col_end - begin < kColumnGroup ? col_end - begin : kColumnGroup;
    double sums[kColumnGroup];
    int64_t unsafe[kColumnGroup];
    int64_t num_unsafe = 0;
    for (int64_t j = 0; j < count; ++j) sums[j] = 0.0;
    for (int64_t block = 0; block < work.blocks.blocks; ++block) {
      const float* __restrict part = work.col_partial + block * cols + begin;
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) sums[j] += static_cast<double>(part[j]);
    }
    float* __restrict scale = work.col_scale + begin;
    for (int64_t j = 0; j < count; ++j) {
      // A column known to be zero needs no second look, and a NaN is one in any precision.
      const bool is_nan = sums[j] != sums[j];
      if (!sinkgd_sum_is_safe(static_cast<float>(sums[j])) && !is_nan && scale[j] != 0.0f) unsafe[num_unsafe++] = j;
    }
    if (num_unsafe > 0) {
      for (int64_t k = 0; k < num_unsafe; ++k) sums[unsafe[k]] = 0.0;
      for (int64_t row = 0; row < work.matrix.rows; ++row) {
        const double r = work.row_scale[row];
        if (r == 0.0) continue;
        const G* g = grad + row * cols + begin;
        for (int64_t k = 0; k < num_unsafe; ++k) {
          const double x = static_cast<double>(to_float(g[unsafe[k]])) * r;
          sums[unsafe[k]] += x * x;
        }
      }
    }
    for (int64_t j = 0; j < count; ++j) {
      scale[j] = static_cast<float>(sinkgd_rescale(static_cast<double>(scale[j]), sums[j], target, eps));
    }
  }
}

template <typename W, typename G>
void sinkgd_update_rows(const SinkGDStep::Work& work, int64_t row_begin, int64_t row_end, double lr_alpha,
                        float decay) {
  const int64_t cols = work.matrix.cols;
  const float* __restrict col_scale = work.col_scale;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const auto step = static_cast<float>(lr_alpha * work.row_scale[row]);
    W* __restrict param = static_cast<W*>(work.matrix.param) + row * cols;
    const G* __restrict grad = static_cast<const G*>(work.matrix.grad) + row * cols;
#pragma omp simd
    for (int64_t j = 0; j < cols; ++j) {
      param[j] = from_float<W>(sinkgd_update(to_float(param[j]), to_float(grad[j]), step, col_scale[j], decay));
    }
  }
}

SinkGDKernels select_sinkgd_kernels(const SinkGDMatrix& matrix) {
  return visit_dtypes(
      [](auto w, auto g) -> SinkGDKernels {
        using W = typename decltype(w)::type;
        using G = typename decltype(g)::type;
        return {&sinkgd_rows<G>, &sinkgd_columns<G>, &sinkgd_update_rows<W, G>};
      },
      matrix.param_dtype, matrix.grad_dtype);
}

}  // namespace
