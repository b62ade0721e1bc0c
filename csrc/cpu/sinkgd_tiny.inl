// All of a step of a matrix of few rows and columns, in the first-level cache and without a call between its parts:
// there are models with thousands of such matrices.
namespace {

constexpr int64_t kTinyLanes = 8;

using TinyLanes = float __attribute__((vector_size(kTinyLanes * sizeof(float))));

// sums[k] = sum over i in [0, count) of (x[i][k] * scale[i])^2 for k in [0, width), in rows of kTinySide.
inline __attribute__((always_inline)) void add_tiny_squares(const float* x, const float* scale, int64_t count,
                                                            int64_t width, float* sums) {
  for (int64_t begin = 0; begin < width; begin += kTinyLanes) {
    TinyLanes sum = {};
    for (int64_t i = 0; i < count; ++i) {
      const TinyLanes scaled = *reinterpret_cast<const TinyLanes*>(x + i * kTinySide + begin) * scale[i];
      sum += scaled * scaled;
    }
    *reinterpret_cast<TinyLanes*>(sums + begin) = sum;
  }
}

// New scales from the sums, as `scale` and in fp32; false if fp32 had no room for a sum.
inline __attribute__((always_inline)) bool rescale_tiny(const float* sums, int64_t count, const SinkGDNorm& norm,
                                                        double* __restrict scale, float* __restrict rounded) {
  int unsafe = 0;
#pragma omp simd reduction(+ : unsafe)
  for (int64_t k = 0; k < count; ++k) {
    const auto sum = static_cast<double>(sums[k]);
    unsafe += squares_are_safe(sum) ? 0 : 1;
    scale[k] = sinkgd_rescale(scale[k], sum, norm.target, norm.eps);
    rounded[k] = static_cast<float>(scale[k]);
  }
  return unsafe == 0;
}

// False, and nothing has changed, if a sum of squares left the safe range of fp32: a row of zeros is enough for that.
template <typename W, typename G>
bool sinkgd_tiny(const SinkGDMatrix& matrix, const SinkGDTinyStep& step) {
  const int64_t rows = matrix.rows;
  const int64_t cols = matrix.cols;
  const G* __restrict grad = static_cast<const G*>(matrix.grad);
  // The gradient and its transpose, so that sums of rows are taken as those of columns are: a vector at a time.
  alignas(64) float by_row[kTinySide * kTinySide];
  alignas(64) float by_col[kTinySide * kTinySide];
  const auto padded = [](int64_t count) { return (count + kTinyLanes - 1) / kTinyLanes * kTinyLanes; };
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = cols; j < padded(cols); ++j) by_row[i * kTinySide + j] = 0.0f;
    for (int64_t j = 0; j < cols; ++j) {
      by_row[i * kTinySide + j] = by_col[j * kTinySide + i] = to_float(grad[i * cols + j]);
    }
  }
  for (int64_t j = 0; j < cols; ++j) {
    for (int64_t i = rows; i < padded(rows); ++i) by_col[j * kTinySide + i] = 0.0f;
  }

  alignas(64) double row_scale[kTinySide];
  alignas(64) double col_scale[kTinySide];
  alignas(64) float row_rounded[kTinySide];
  alignas(64) float col_rounded[kTinySide];
  alignas(64) float sums[kTinySide];
  for (int64_t i = 0; i < rows; ++i) row_scale[i] = step.grad_factor;
  for (int64_t j = 0; j < cols; ++j) col_rounded[j] = 1.0f;
  for (int iteration = 0; iteration < step.iterations; ++iteration) {
    const SinkGDNorms& norm =
        iteration == step.iterations - 1 ? step.last : (iteration == 0 ? step.first : step.middle);
    add_tiny_squares(by_col, col_rounded, cols, rows, sums);
    if (!rescale_tiny(sums, rows, norm.row, row_scale, row_rounded)) return false;
    add_tiny_squares(by_row, row_rounded, rows, cols, sums);
    // What fp32 holds is the scale, here as for larger matrices.
    for (int64_t j = 0; j < cols; ++j) col_scale[j] = static_cast<double>(col_rounded[j]);
    if (!rescale_tiny(sums, cols, norm.col, col_scale, col_rounded)) return false;
  }

  alignas(64) float changes[kTinySide * kTinySide];
  for (int64_t i = 0; i < rows; ++i) {
    const auto size = static_cast<float>(step.lr_alpha * row_scale[i]);
    for (int64_t j = 0; j < cols; ++j) {
      changes[i * cols + j] = sinkgd_change(by_row[i * kTinySide + j], size, col_rounded[j]);
    }
  }
  const float decay = step.decay;
  const float* const change = changes;
  update_range(
      0, rows * cols, [=](int64_t k, float, float& w) SAGE_EXT_ALWAYS_INLINE { w = sinkgd_moved(w, change[k], decay); },
      grad, static_cast<W*>(matrix.param));
  return true;
}

}  // namespace
