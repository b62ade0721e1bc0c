#include "cpu/scale.h"

#include <algorithm>

#include "core/math/scale.h"
#include "cpu/common/isa.h"
#include "cpu/common/map.h"
#include "cpu/common/parallel.h"

namespace sage_ext::cpu {

namespace {

constexpr int64_t kRowGroup = 4;                         // rows that are in the cache together
constexpr int64_t kRowGroupElements = int64_t{1} << 17;  // at most, for that; wider rows go one by one
constexpr int64_t kRowSegment = 1024;                    // entries of a row whose squares are added up in fp32
constexpr int64_t kRowsPerFlush = 128;  // fp32 additions in a row before a column's sum moves on to fp64

using Scalars = ScaleStep::Scalars;

// Rows that go together, far apart: they are the streams that a core reads from.
struct RowGroup {
  int64_t first, distance, count;

  int64_t at(int64_t k) const { return first + k * distance; }
};

// exp_avg of elements [begin, end).
using ScaleMomentum = void (*)(const ScaleMatrix&, int64_t begin, int64_t end, const Scalars&);

struct ScaleKernels {
  ScaleMomentum momentum;  // null without
  // The sums of squares of x in some rows.
  void (*sum_rows)(const void* x, const RowGroup& rows, int64_t cols, float factor, double* sums);
  // The same of `count` entries that are `stride` apart, in fp64.
  double (*exact_sum)(const void* x, int64_t begin, int64_t count, int64_t stride, float factor);
  // Sums of squares over panel rows [row_begin, row_end) of columns [col_begin, col_end), into out[col_begin ...].
  void (*sum_columns)(const ScaleMatrix&, const void* x, const ColumnTiling&, Chunk rows, Chunk cols, const Scalars&,
                      ScaleMomentum, float* out);
  // W of some rows, or of elements [begin, end) with one factor for each panel column.
  void (*update_rows)(const ScaleMatrix&, const void* x, const RowGroup& rows, const Scalars&,
                      const float* inverse_of_row);
  void (*update_columns)(const ScaleMatrix&, const void* x, int64_t width, int64_t begin, int64_t end, const Scalars&,
                         const float* inverse_of_column);
};

// What is normalised.
const void* source(const ScaleMatrix& m) { return m.exp_avg != nullptr ? m.exp_avg : m.grad; }

// The sums of squares of some rows, and the momentum on the way.
void sum_rows(const ScaleMatrix& m, const ScaleKernels& kernels, const RowGroup& rows, const Scalars& scalars,
              double* sums) {
  for (int64_t k = 0; kernels.momentum != nullptr && k < rows.count; ++k) {
    kernels.momentum(m, rows.at(k) * m.cols, (rows.at(k) + 1) * m.cols, scalars);
  }
  kernels.sum_rows(source(m), rows, m.cols, scalars.factor, sums);
  for (int64_t k = 0; k < rows.count; ++k) {
    if (squares_are_safe(sums[k])) continue;
    sums[k] = kernels.exact_sum(source(m), rows.at(k) * m.cols, m.cols, 1, scalars.factor);
  }
}

}  // namespace

}  // namespace sage_ext::cpu

#define SAGE_EXT_ISA_SOURCE "cpu/scale_kernels.inl"
#include "cpu/common/foreach_isa.inl"

namespace sage_ext::cpu {

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
    const int64_t rows = std::max(kMapChunk / m.cols, kRowGroup * m.cols <= kRowGroupElements ? kRowGroup : 1);
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
  for_row_groups(threads, [&](const ScaleMatrix& m, const ScaleKernels& kernels, const RowGroup& rows, size_t i) {
    double sums_of_rows[kRowGroup];
    sum_rows(m, kernels, rows, scalars_, sums_of_rows);
    for (int64_t k = 0; k < rows.count; ++k) sums[i][rows.at(k)] = sums_of_rows[k];
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
  for_row_groups(threads, [&](const ScaleMatrix& m, const ScaleKernels& kernels, const RowGroup& rows, size_t i) {
    const double mean_factor = scale_mean_factor(options_.rms, m.whole.cols_of(m.cols));
    float inverses[kRowGroup];
    for (int64_t k = 0; k < rows.count; ++k) {
      inverses[k] = scale_inverse(sums[i][rows.at(k)], mean_factor, options_.eps);
    }
    kernels.update_rows(m, source(m), rows, scalars_, inverses);
  });
}

template <typename Body>
void ScaleStep::for_row_groups(int threads, const Body& body) {
  parallel_tasks(row_plan_.num_tasks(), threads, [&](int64_t task) {
    for (const Chunk& chunk : row_plan_.task(task)) {
      const auto i = static_cast<size_t>(chunk.tensor);
      const ScaleKernels kernels = SAGE_EXT_FOR_ACTIVE_ISA(select_scale_kernels(matrices_[i]));
      const int64_t groups = ceil_div(chunk.end - chunk.begin, kRowGroup);
      for (int64_t row = chunk.begin; row < chunk.begin + groups; ++row) {
        body(matrices_[i], kernels, RowGroup{row, groups, ceil_div(chunk.end - row, groups)}, i);
      }
    }
  });
}

void ScaleStep::run_rows(int threads) {
  for_row_groups(threads, [&](const ScaleMatrix& m, const ScaleKernels& kernels, const RowGroup& rows, size_t) {
    const double mean_factor = scale_mean_factor(options_.rms, m.cols);
    double sums[kRowGroup];
    float inverses[kRowGroup];
    sum_rows(m, kernels, rows, scalars_, sums);
    for (int64_t k = 0; k < rows.count; ++k) inverses[k] = scale_inverse(sums[k], mean_factor, options_.eps);
    kernels.update_rows(m, source(m), rows, scalars_, inverses);
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
