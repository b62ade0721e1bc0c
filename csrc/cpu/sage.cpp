#include "cpu/sage.h"

#include <algorithm>
#include <cmath>

#include "cpu/common/isa.h"
#include "cpu/common/map.h"
#include "cpu/common/parallel.h"

namespace sage_ext::cpu {

namespace {

constexpr int64_t kRowsPerFlush = 128;  // fp32 additions in a row before the sum moves on to fp64

using Squares = SageStep::Squares;

// Some columns of one tensor: the average S, and the buffer that holds the sums of |g|, then s, then lr * H.
struct SageColumns {
  float* s_range;
  float* buffer;
  int64_t count;
};

using SageSumAbs = void (*)(const void* grad, const ColumnTiling&, int64_t row_begin, int64_t row_end,
                            int64_t col_begin, int64_t col_end, float* out);
using SageChunk = void (*)(const SageTensor&, int64_t width, int64_t begin, int64_t end, float grad_factor,
                           const float* step_of_column, const LionCoefficients&);

}  // namespace

}  // namespace sage_ext::cpu

#define SAGE_EXT_ISA_SOURCE "cpu/sage_kernels.inl"
#include "cpu/common/foreach_isa.inl"

namespace sage_ext::cpu {

SageStep::SageStep(std::vector<SageTensor> tensors, const SageOptions& options)
    : tensors_(std::move(tensors)), options_(options) {
  // An empty piece has its part in the average S.
  std::erase_if(tensors_, [](const SageTensor& t) { return t.rows * t.cols == 0 && !t.whole.is_cut(); });
  layouts_.reserve(tensors_.size());
  std::vector<int64_t> sizes;
  sizes.reserve(tensors_.size());
  int64_t floats = 0;
  int64_t squares = 0;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const SageTensor& tensor = tensors_[i];
    const ColumnTiling tiling = tile_columns(tensor.rows, tensor.cols);
    layouts_.push_back({tiling, floats, squares, 0.0, 0.0});
    floats += column_floats(tiling, tensor.cols);
    squares += ceil_div(tensor.cols, kColumnTile);
    sizes.push_back(tiling.numel);
    plans_.add(static_cast<int64_t>(i), tiling, tensor.cols);
  }
  update_plan_ = plan_chunks(sizes, kMapChunk);
  sums_.reset(new float[static_cast<size_t>(floats)]);
  squares_.resize(static_cast<size_t>(squares));
}

void SageStep::run(int threads) {
  sum_columns(threads);
  average(threads);
  compute_steps(threads);
  update(threads);
}

void SageStep::sum_columns(int threads) {
  parallel_tasks(plans_.reduce.num_tasks(), threads, [&](int64_t task) {
    for (const Chunk& chunk : plans_.reduce.task(task)) {
      const auto i = static_cast<size_t>(chunk.tensor);
      const ColumnTiling& t = layouts_[i].tiling;
      const ColumnBlock block = column_block(t, chunk.begin);
      SAGE_EXT_FOR_ACTIVE_ISA(select_sum_abs(tensors_[i].grad_dtype))
      (tensors_[i].grad, t, block.row_begin, block.row_end, block.col_begin, block.col_end, sums(i) + block.slot_begin);
    }
  });
}

template <typename Body>
void SageStep::for_column_totals(int threads, const Body& body) {
  parallel_tasks(plans_.columns.num_tasks(), threads, [&](int64_t task) {
    for (const Chunk& chunk : plans_.columns.task(task)) {
      const auto i = static_cast<size_t>(chunk.tensor);
      double totals[kColumnTile];
      add_up_slots(sums(i), layouts_[i].tiling, chunk.begin, chunk.end, totals);
      body(i, chunk.begin, totals, chunk.end - chunk.begin);
    }
  });
}

void SageStep::average_tile(size_t i, int64_t first, const double* totals, int64_t count) {
  const SageTensor& tensor = tensors_[i];
  const SageColumns columns{tensor.s_range + first, sums(i) + first, count};
  const auto rows = static_cast<double>(tensor.whole.rows_of(tensor.rows));
  squares_[static_cast<size_t>(layouts_[i].squares_begin + first / kColumnTile)] = SAGE_EXT_FOR_ACTIVE_ISA(
      average_columns(columns, totals, std::abs(options_.grad_factor) / rows, options_.beta2, tensor.bias_correction));
}

SageStep::Squares SageStep::squares_of(size_t i) const {
  Squares total{0.0, 0.0};
  for (int64_t tile = 0; tile < ceil_div(tensors_[i].cols, kColumnTile); ++tile) {
    const Squares& part = squares_[static_cast<size_t>(layouts_[i].squares_begin + tile)];
    total.s += part.s;
    total.s_hat += part.s_hat;
  }
  return total;
}

void SageStep::average(int threads) {
  for_column_totals(threads, [&](size_t i, int64_t first, const double* totals, int64_t count) {
    average_tile(i, first, totals, count);
  });
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const Squares total = squares_of(i);
    layouts_[i].rms_s = root_mean_square(total.s, tensors_[i].cols);
    layouts_[i].rms_s_hat = root_mean_square(total.s_hat, tensors_[i].cols);
  }
}

void SageStep::put_columns(int threads, std::span<const SageSums> sums) {
  for_column_totals(threads, [&](size_t i, int64_t first, const double* totals, int64_t count) {
    for (int64_t j = 0; j < count; ++j) sums[i].columns[first + j] = static_cast<float>(totals[j]);
  });
}

void SageStep::put_squares(int threads, std::span<const SageSums> sums) {
  parallel_tasks(plans_.columns.num_tasks(), threads, [&](int64_t task) {
    for (const Chunk& chunk : plans_.columns.task(task)) {
      const auto i = static_cast<size_t>(chunk.tensor);
      double totals[kColumnTile];
      std::copy(sums[i].columns + chunk.begin, sums[i].columns + chunk.end, totals);
      average_tile(i, chunk.begin, totals, chunk.end - chunk.begin);
    }
  });
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const Squares total = squares_of(i);
    sums[i].squares[0] = total.s;
    sums[i].squares[1] = total.s_hat;
  }
}

void SageStep::take_squares(std::span<const SageSums> sums) {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const int64_t cols = tensors_[i].whole.cols_of(tensors_[i].cols);
    layouts_[i].rms_s = root_mean_square(sums[i].squares[0], cols);
    layouts_[i].rms_s_hat = root_mean_square(sums[i].squares[1], cols);
  }
}

void SageStep::compute_steps(int threads) {
  parallel_tasks(plans_.columns.num_tasks(), threads, [&](int64_t task) {
    for (const Chunk& chunk : plans_.columns.task(task)) {
      const auto i = static_cast<size_t>(chunk.tensor);
      const Layout& layout = layouts_[i];
      float* const step = sums(i);
      const SageDamper damper{static_cast<float>(layout.rms_s), static_cast<float>(layout.rms_s_hat),
                              static_cast<float>(1.0 / tensors_[i].bias_correction), static_cast<float>(options_.eps)};
      const SageColumns columns{tensors_[i].s_range + chunk.begin, step + chunk.begin, chunk.end - chunk.begin};
      const auto lr = static_cast<float>(options_.lr);
      if (options_.instant_damper) {
        SAGE_EXT_FOR_ACTIVE_ISA(step_columns<true>(columns, lr, damper));
      } else {
        SAGE_EXT_FOR_ACTIVE_ISA(step_columns<false>(columns, lr, damper));
      }
      // Narrow tensors are one chunk: repeat it for every row that a panel row holds.
      for (int64_t fold = 1; fold < layout.tiling.fold; ++fold) {
        std::copy_n(step, layout.tiling.cols, step + fold * layout.tiling.cols);
      }
    }
  });
}

void SageStep::update(int threads) {
  const LionCoefficients k =
      lion_coefficients(options_.lr, options_.beta1, options_.beta2, options_.weight_decay, options_.momentum_first);
  const auto grad_factor = static_cast<float>(options_.grad_factor);
  parallel_tasks(update_plan_.num_tasks(), threads, [&](int64_t task) {
    for (const Chunk& chunk : update_plan_.task(task)) {
      const auto i = static_cast<size_t>(chunk.tensor);
      SAGE_EXT_FOR_ACTIVE_ISA(select_sage_chunk(tensors_[i]))
      (tensors_[i], layouts_[i].tiling.width, chunk.begin, chunk.end, grad_factor, sums(i), k);
    }
  });
}

}  // namespace sage_ext::cpu
