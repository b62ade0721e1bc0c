#include "cpu/scale.h"

#include <algorithm>

#include "core/math/scale.h"
#include "cpu/common/isa.h"
#include "cpu/common/map.h"
#include "cpu/common/parallel.h"
#include "cpu/common/x86_intrinsics.h"

namespace sage_ext::cpu {

namespace {

constexpr int64_t kMinRows = 8;         // of a task: all but one row's sum is taken while another row is updated
constexpr int64_t kRowsPerFlush = 128;  // fp32 additions in a row before a column's sum moves on to fp64

using Scalars = ScaleStep::Scalars;

// exp_avg of elements [begin, end).
using ScaleMomentum = void (*)(const ScaleMatrix&, int64_t begin, int64_t end, const Scalars&);

// A row whose squares are added up, and one that is updated with its 1 / norm; less than 0: none.
struct ScaleRows {
  int64_t next;
  int64_t current;
  float inverse;
};

struct ScaleKernels {
  ScaleMomentum momentum;  // null without
  // The sum of squares of the next row of x, behind its momentum, while the current row of W is updated: the memory
  // does not rest between the two, and the row that comes next is still in the cache when its turn is to be updated.
  double (*rows)(const ScaleMatrix&, const void* x, const ScaleRows&, const Scalars&, ScaleMomentum);
  // The sum of squares of `count` entries that are `stride` apart, in fp64.
  double (*exact_sum)(const void* x, int64_t begin, int64_t count, int64_t stride, float factor);
  // Sums of squares over panel rows [row_begin, row_end) of columns [col_begin, col_end), into out[col_begin ...].
  void (*sum_columns)(const ScaleMatrix&, const void* x, const ColumnTiling&, Chunk rows, Chunk cols, const Scalars&,
                      ScaleMomentum, float* out);
  // W of elements [begin, end), with one factor for each panel column.
  void (*update_columns)(const ScaleMatrix&, const void* x, int64_t width, int64_t begin, int64_t end, const Scalars&,
                         const float* inverse_of_column);
};

// What is normalised.
const void* source(const ScaleMatrix& m) { return m.exp_avg != nullptr ? m.exp_avg : m.grad; }

}  // namespace

}  // namespace sage_ext::cpu

#define SAGE_EXT_ISA_SOURCE "cpu/scale_kernels.inl"
#include "cpu/common/foreach_isa.inl"

namespace sage_ext::cpu {

namespace {

// The rows of one matrix.
class Rows {
 public:
  Rows(const ScaleMatrix& matrix, const ScaleOptions& options, const Scalars& scalars)
      : matrix_(matrix),
        scalars_(scalars),
        kernels_(SAGE_EXT_FOR_ACTIVE_ISA(select_scale_kernels(matrix))),
        mean_factor_(scale_mean_factor(options.rms, matrix.whole.cols_of(matrix.cols))),
        eps_(options.eps) {}

  // The sum of squares of a row, behind its momentum.
  double sum(int64_t row) const { return checked(row, pass({row, -1, 0.0f})); }

  // W of a row with this sum of squares.
  void update(int64_t row, double sum) const { pass({-1, row, inverse(sum)}); }

  // Both, of a row and the one behind it.
  double update_and_sum_next(int64_t row, double sum) const {
    return checked(row + 1, pass({row + 1, row, inverse(sum)}));
  }

 private:
  double pass(const ScaleRows& rows) const {
    return kernels_.rows(matrix_, source(matrix_), rows, scalars_, kernels_.momentum);
  }
  float inverse(double sum) const { return scale_inverse(sum, mean_factor_, eps_); }
  double checked(int64_t row, double sum) const {
    if (squares_are_safe(sum)) return sum;
    return kernels_.exact_sum(source(matrix_), row * matrix_.cols, matrix_.cols, 1, scalars_.factor);
  }

  const ScaleMatrix& matrix_;
  const Scalars& scalars_;
  ScaleKernels kernels_;
  double mean_factor_, eps_;
};

}  // namespace

ScaleStep::ScaleStep(std::vector<ScaleMatrix> matrices, const ScaleOptions& options)
    : matrices_(std::move(matrices)), options_(options) {
  // An empty piece has sums to put, which are zero.
  std::erase_if(matrices_, [](const ScaleMatrix& m) { return m.rows * m.cols == 0 && !m.whole.is_cut(); });
  const auto grad_factor = static_cast<float>(options.grad_factor);
  scalars_ = {static_cast<float>(options.lr), decay_factor(options.lr, options.weight_decay), grad_factor,
              options.momentum == 0.0 ? grad_factor : 1.0f, momentum_coefficients(options.momentum)};
  if (options.columns) {
    plan_columns();
    return;
  }
  for (size_t i = 0; i < matrices_.size(); ++i) {
    const ScaleMatrix& m = matrices_[i];
    if (m.cols == 0) continue;
    const int64_t rows = std::max(kMapChunk / m.cols, kMinRows);
    for (int64_t begin = 0; begin < m.rows; begin += rows) {
      const int64_t end = std::min(begin + rows, m.rows);
      row_plan_.add({static_cast<int64_t>(i), begin, end}, (end - begin) * m.cols, kMapChunk);
    }
  }
}

void ScaleStep::plan_columns() {
  layouts_.reserve(matrices_.size());
  std::vector<int64_t> sizes;
  int64_t floats = 0;
  for (size_t i = 0; i < matrices_.size(); ++i) {
    const ScaleMatrix& m = matrices_[i];
    const ColumnTiling tiling = tile_columns(m.rows, m.cols);
    layouts_.push_back({tiling, floats});
    floats += column_floats(tiling, m.cols);
    sizes.push_back(tiling.numel);
    plans_.add(static_cast<int64_t>(i), tiling, m.cols);
  }
  update_plan_ = plan_chunks(sizes, kMapChunk);
  sums_.reset(new float[static_cast<size_t>(floats)]);
}

void ScaleStep::run(int threads) {
  if (!options_.columns) {
    run_rows(threads);
    return;
  }
  sum_columns(threads);
  for_column_totals(threads, [&](size_t i, int64_t first, const double* totals, int64_t count) {
    invert_tile(i, first, totals, count);
  });
  update_columns(threads);
}

void ScaleStep::put_sums(int threads, std::span<double* const> sums) {
  if (options_.columns) {
    sum_columns(threads);
    for_column_totals(threads, [&](size_t i, int64_t first, const double* totals, int64_t count) {
      std::copy_n(totals, count, sums[i] + first);
    });
    return;
  }
  for (size_t i = 0; i < matrices_.size(); ++i) {
    if (matrices_[i].cols == 0) std::fill_n(sums[i], matrices_[i].rows, 0.0);
  }
  for_row_chunks(threads, [&](size_t i, const Rows& rows, const Chunk& chunk) {
    for (int64_t row = chunk.begin; row < chunk.end; ++row) sums[i][row] = rows.sum(row);
  });
}

void ScaleStep::update(int threads, std::span<double* const> sums) {
  if (options_.columns) {
    parallel_tasks(plans_.columns.num_tasks(), threads, [&](int64_t task) {
      for (const Chunk& chunk : plans_.columns.task(task)) {
        const auto i = static_cast<size_t>(chunk.tensor);
        invert_tile(i, chunk.begin, sums[i] + chunk.begin, chunk.end - chunk.begin);
      }
    });
    update_columns(threads);
    return;
  }
  for_row_chunks(threads, [&](size_t i, const Rows& rows, const Chunk& chunk) {
    for (int64_t row = chunk.begin; row < chunk.end; ++row) rows.update(row, sums[i][row]);
  });
}

template <typename Body>
void ScaleStep::for_row_chunks(int threads, const Body& body) {
  parallel_tasks(row_plan_.num_tasks(), threads, [&](int64_t task) {
    for (const Chunk& chunk : row_plan_.task(task)) {
      const auto i = static_cast<size_t>(chunk.tensor);
      body(i, Rows(matrices_[i], options_, scalars_), chunk);
    }
  });
}

void ScaleStep::run_rows(int threads) {
  for_row_chunks(threads, [&](size_t, const Rows& rows, const Chunk& chunk) {
    double sum = rows.sum(chunk.begin);
    for (int64_t row = chunk.begin; row + 1 < chunk.end; ++row) sum = rows.update_and_sum_next(row, sum);
    rows.update(chunk.end - 1, sum);
  });
}

void ScaleStep::sum_columns(int threads) {
  parallel_tasks(plans_.reduce.num_tasks(), threads, [&](int64_t task) {
    for (const Chunk& chunk : plans_.reduce.task(task)) {
      const auto i = static_cast<size_t>(chunk.tensor);
      const ScaleMatrix& m = matrices_[i];
      const ColumnTiling& t = layouts_[i].tiling;
      const ScaleKernels kernels = SAGE_EXT_FOR_ACTIVE_ISA(select_scale_kernels(m));
      const ColumnBlock block = column_block(t, chunk.begin);
      kernels.sum_columns(m, source(m), t, {chunk.tensor, block.row_begin, block.row_end},
                          {chunk.tensor, block.col_begin, block.col_end}, scalars_, kernels.momentum,
                          sums(i) + block.slot_begin);
    }
  });
}

template <typename Body>
void ScaleStep::for_column_totals(int threads, const Body& body) {
  parallel_tasks(plans_.columns.num_tasks(), threads, [&](int64_t task) {
    for (const Chunk& chunk : plans_.columns.task(task)) {
      const auto i = static_cast<size_t>(chunk.tensor);
      const ScaleMatrix& m = matrices_[i];
      const int64_t count = chunk.end - chunk.begin;
      double totals[kColumnTile];
      add_up_slots(sums(i), layouts_[i].tiling, chunk.begin, chunk.end, totals);
      for (int64_t j = 0; j < count; ++j) {
        double& sum = totals[j];
        if (!squares_are_safe(sum) && sum == sum) {  // a NaN is one in any precision
          sum = SAGE_EXT_FOR_ACTIVE_ISA(select_scale_kernels(m))
                    .exact_sum(source(m), chunk.begin + j, m.rows, m.cols, scalars_.factor);
        }
      }
      body(i, chunk.begin, totals, count);
    }
  });
}

// 1 / norm of some columns, from their sums.
void ScaleStep::invert_tile(size_t i, int64_t first, const double* totals, int64_t count) {
  const ColumnTiling& t = layouts_[i].tiling;
  float* const buffer = sums(i);
  const double mean_factor = scale_mean_factor(options_.rms, matrices_[i].whole.rows_of(matrices_[i].rows));
  for (int64_t j = 0; j < count; ++j) buffer[first + j] = scale_inverse(totals[j], mean_factor, options_.eps);
  // Narrow matrices are one chunk: repeat it for every row that a panel row holds.
  for (int64_t fold = 1; fold < t.fold; ++fold) std::copy_n(buffer, t.cols, buffer + fold * t.cols);
}

void ScaleStep::update_columns(int threads) {
  parallel_tasks(update_plan_.num_tasks(), threads, [&](int64_t task) {
    for (const Chunk& chunk : update_plan_.task(task)) {
      const auto i = static_cast<size_t>(chunk.tensor);
      const ScaleMatrix& m = matrices_[i];
      SAGE_EXT_FOR_ACTIVE_ISA(select_scale_kernels(m))
          .update_columns(m, source(m), layouts_[i].tiling.width, chunk.begin, chunk.end, scalars_, sums(i));
    }
  });
}

}  // namespace sage_ext::cpu
