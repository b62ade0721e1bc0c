#include "cpu/sinkgd_tiny.inl"

namespace {

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

// Both halves of the pass take rows in groups of four: a vector of column scales or of column sums is loaded once for
// four rows, and the rows' sums are independent chains of additions.
template <typename G>
struct FourRows {
  const G* row[4];

  FourRows from(int64_t column) const { return {row[0] + column, row[1] + column, row[2] + column, row[3] + column}; }
};

// For j in [0, count), in one loop, so that reading the rows of one half does not wait for the arithmetic of the other:
// kSums:     sums[k] = sum of (rows[k][j] * col_scale[j])^2
// kColumns:  acc[j] += sum over k of (last[k][j] * last_scale[k])^2
template <bool kSums, bool kColumns, typename G>
void pass_rows(const FourRows<G>& rows, const float* __restrict col_scale, float* sums, const FourRows<G>& last,
               const float* last_scale, float* __restrict acc, int64_t count) {
  const G* __restrict g0 = rows.row[0];
  const G* __restrict g1 = rows.row[1];
  const G* __restrict g2 = rows.row[2];
  const G* __restrict g3 = rows.row[3];
  const G* __restrict h0 = last.row[0];
  const G* __restrict h1 = last.row[1];
  const G* __restrict h2 = last.row[2];
  const G* __restrict h3 = last.row[3];
  const float r0 = last_scale[0], r1 = last_scale[1], r2 = last_scale[2], r3 = last_scale[3];
  float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
  int64_t done = 0;
  if constexpr (is_16_bit<G>) {
    const int64_t pairs = count / 2;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t i = 0; i < pairs; ++i) {
      if constexpr (kSums) {
        const float c = load_first(col_scale, i);
        const float d = load_second(col_scale, i);
        s0 = add_square(add_square(s0, load_first(g0, i) * c), load_second(g0, i) * d);
        s1 = add_square(add_square(s1, load_first(g1, i) * c), load_second(g1, i) * d);
        s2 = add_square(add_square(s2, load_first(g2, i) * c), load_second(g2, i) * d);
        s3 = add_square(add_square(s3, load_first(g3, i) * c), load_second(g3, i) * d);
      }
      if constexpr (kColumns) {
        acc[2 * i] = add_squares(acc[2 * i], load_first(h0, i) * r0, load_first(h1, i) * r1, load_first(h2, i) * r2,
                                 load_first(h3, i) * r3);
        acc[2 * i + 1] = add_squares(acc[2 * i + 1], load_second(h0, i) * r0, load_second(h1, i) * r1,
                                     load_second(h2, i) * r2, load_second(h3, i) * r3);
      }
    }
    done = 2 * pairs;
  }
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (int64_t j = done; j < count; ++j) {
    if constexpr (kSums) {
      s0 = add_square(s0, to_float(g0[j]) * col_scale[j]);
      s1 = add_square(s1, to_float(g1[j]) * col_scale[j]);
      s2 = add_square(s2, to_float(g2[j]) * col_scale[j]);
      s3 = add_square(s3, to_float(g3[j]) * col_scale[j]);
    }
    if constexpr (kColumns) {
      acc[j] =
          add_squares(acc[j], to_float(h0[j]) * r0, to_float(h1[j]) * r1, to_float(h2[j]) * r2, to_float(h3[j]) * r3);
    }
  }
  sums[0] = s0;
  sums[1] = s1;
  sums[2] = s2;
  sums[3] = s3;
}

// What is done to rows in a pass over them.
struct WholeRows {  // new scales, and their share of the column sums
  static constexpr bool kSums = true;
  static constexpr bool kColumns = true;
};
struct RowSums {
  static constexpr bool kSums = true;
  static constexpr bool kColumns = false;
};
struct RowShares {
  static constexpr bool kSums = false;
  static constexpr bool kColumns = true;
};

// A pass over rows [row_begin, row_end): finish(row, sum) gets a row's sum of squares, where Do takes them, and returns
// the row's scale; and in `partial` [cols] goes these rows' share of the column sums of squares. The share of four rows
// is added while the next four are read: they are still in the cache, and the memory does not rest. The four rows are
// far apart: a core reads several streams faster than one.
template <typename Do, typename G, typename Finish>
void pass_over_rows(const SinkGDWork& work, int64_t row_begin, int64_t row_end, float* partial, const Finish& finish) {
  const int64_t cols = work.matrix.cols;
  if constexpr (Do::kColumns) {
    for (int64_t j = 0; j < cols; ++j) partial[j] = 0.0f;
  }
  const int64_t groups = (row_end - row_begin + 3) / 4;
  FourRows<G> last{};
  float last_scale[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  float part[4];
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t row = row_begin + group;
    const G* first = static_cast<const G*>(work.matrix.grad) + row * cols;
    const int64_t count = (row_end - row + groups - 1) / groups;
    FourRows<G> rows;
    // A group that is not full repeats its last row, with scale 0.
    for (int64_t k = 0; k < 4; ++k) rows.row[k] = first + (k < count ? k : count - 1) * groups * cols;
    double sums[4] = {0.0, 0.0, 0.0, 0.0};
    for (int64_t begin = 0; Do::kSums && begin < cols; begin += kRowSegment) {
      const int64_t length = cols - begin < kRowSegment ? cols - begin : kRowSegment;
      if (group == 0 || !Do::kColumns) {
        pass_rows<true, false>(rows.from(begin), work.col_scale + begin, part, rows, last_scale, partial, length);
      } else {
        pass_rows<true, true>(rows.from(begin), work.col_scale + begin, part, last.from(begin), last_scale,
                              partial + begin, length);
      }
      for (int k = 0; k < 4; ++k) sums[k] += static_cast<double>(part[k]);
    }
    if constexpr (!Do::kSums) {
      if (group > 0) pass_rows<false, true>(last, work.col_scale, part, last, last_scale, partial, cols);
    }
    for (int64_t k = 0; k < 4; ++k) {
      last_scale[k] = 0.0f;
      if (k >= count) continue;
      if (Do::kSums && !squares_are_safe(sums[k])) sums[k] = exact_row_sum(rows.row[k], work.col_scale, cols);
      last_scale[k] = static_cast<float>(finish(row + k * groups, sums[k]));
    }
    last = rows;
  }
  if (Do::kColumns && groups > 0) {
    pass_rows<false, true>(last, work.col_scale, part, last, last_scale, partial, cols);
  }
}

// The row half of an iteration: new row scales, and the rows' share of the column sums.
template <typename G>
void sinkgd_rows(const SinkGDWork& work, int64_t row_begin, int64_t row_end, const SinkGDNorm& norm, float* partial) {
  pass_over_rows<WholeRows, G>(work, row_begin, row_end, partial, [&](int64_t row, double sum) {
    double& scale = work.row_scale[row];
    scale = sinkgd_rescale(scale, sum, norm.target, norm.eps);
    return scale;
  });
}

// The same in two passes, for rows of which other processes have the rest. `sums` [rows] is of the iterate's squares.
template <typename G>
void sinkgd_row_sums(const SinkGDWork& work, int64_t row_begin, int64_t row_end, double* sums) {
  pass_over_rows<RowSums, G>(work, row_begin, row_end, nullptr, [&](int64_t row, double sum) {
    sums[row] = sum * work.row_scale[row] * work.row_scale[row];
    return 0.0;
  });
}

template <typename G>
void sinkgd_row_shares(const SinkGDWork& work, int64_t row_begin, int64_t row_end, float* partial) {
  pass_over_rows<RowShares, G>(work, row_begin, row_end, partial,
                               [&](int64_t row, double) { return work.row_scale[row]; });
}

// Adds up the blocks' shares of columns [col_begin, col_end), in their order: finish(column, sum) for each.
template <typename G, typename Finish>
void add_shares(const SinkGDWork& work, int64_t col_begin, int64_t col_end, const Finish& finish) {
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
      if (!squares_are_safe(sums[j]) && !is_nan && scale[j] != 0.0f) unsafe[num_unsafe++] = j;
    }
    for (int64_t k = 0; k < num_unsafe; ++k) sums[unsafe[k]] = 0.0;
    for (int64_t row = 0; num_unsafe > 0 && row < work.matrix.rows; ++row) {
      const double r = work.row_scale[row];
      if (r == 0.0) continue;
      const G* g = grad + row * cols + begin;
      for (int64_t k = 0; k < num_unsafe; ++k) {
        const double x = static_cast<double>(to_float(g[unsafe[k]])) * r;
        sums[unsafe[k]] += x * x;
      }
    }
    for (int64_t j = 0; j < count; ++j) finish(begin + j, sums[j]);
  }
}

// The column half of an iteration for columns [col_begin, col_end).
template <typename G>
void sinkgd_columns(const SinkGDWork& work, int64_t col_begin, int64_t col_end, const SinkGDNorm& norm) {
  float* __restrict scale = work.col_scale;
  add_shares<G>(work, col_begin, col_end, [=](int64_t j, double sum) SAGE_EXT_ALWAYS_INLINE {
    scale[j] = static_cast<float>(sinkgd_rescale(static_cast<double>(scale[j]), sum, norm.target, norm.eps));
  });
}

// Its first part, where other processes have the rest of the columns: sums [cols] of the iterate's squares.
template <typename G>
void sinkgd_column_sums(const SinkGDWork& work, int64_t col_begin, int64_t col_end, const SinkGDSums& sums,
                        bool is_first) {
  add_shares<G>(work, col_begin, col_end, [&](int64_t j, double sum) SAGE_EXT_ALWAYS_INLINE {
    const auto scale = static_cast<double>(work.col_scale[j]);
    if (is_first) {
      sums.first_columns[j] = sum;
    } else {
      sums.columns[j] = static_cast<float>(sum * scale * scale);
    }
  });
}

template <typename W, typename G>
void sinkgd_update_rows(const SinkGDWork& work, int64_t row_begin, int64_t row_end, double lr_alpha, float decay) {
  const int64_t cols = work.matrix.cols;
  const float* col_scale = work.col_scale;
  for_strips_of_rows(row_begin, row_end, cols, [&](int64_t row, int64_t begin, int64_t end) SAGE_EXT_ALWAYS_INLINE {
    const G* grad = static_cast<const G*>(work.matrix.grad) + row * cols;
    W* param = static_cast<W*>(work.matrix.param) + row * cols;
    const auto step = static_cast<float>(lr_alpha * work.row_scale[row]);
    prefetch_strips(grad + begin, param + begin);
    update_range(
        begin, end,
        [=](int64_t j, float g, float& w)
            SAGE_EXT_ALWAYS_INLINE { w = sinkgd_update(w, g, step, col_scale[j], decay); },
        grad, param);
  });
}

SinkGDKernels select_kernels(const SinkGDMatrix& matrix) {
  return visit_dtypes(
      [](auto w, auto g) -> SinkGDKernels {
        using W = typename decltype(w)::type;
        using G = typename decltype(g)::type;
        return {&sinkgd_rows<G>,       &sinkgd_columns<G>,     &sinkgd_update_rows<W, G>, &sinkgd_row_sums<G>,
                &sinkgd_row_shares<G>, &sinkgd_column_sums<G>, &sinkgd_tiny<W, G>};
      },
      matrix.param_dtype, matrix.grad_dtype);
}

}  // namespace
