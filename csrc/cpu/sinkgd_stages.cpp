#include "cpu/sinkgd_stages.h"

#include <algorithm>
#include <cmath>

#include "cpu/common/parallel.h"

namespace sage_ext::cpu {

namespace {

constexpr int64_t kTask = int64_t{1} << 16;  // elements
constexpr int64_t kColumns = 1024;           // of a task

}  // namespace

SinkGDStages::SinkGDStages(std::span<const SinkGDMatrix> pieces, const SinkGDOptions& options) : options_(options) {
  int64_t doubles = 0;
  int64_t floats = 0;
  for (const SinkGDMatrix& m : pieces) {
    const RowBlocks blocks = plan_row_blocks(m.rows, m.cols);
    const auto index = static_cast<int64_t>(works_.size());
    for (int64_t block = 0; block < blocks.blocks; ++block) {
      row_plan_.add({index, block, block + 1}, blocks.rows_per_block * m.cols, kTask);
    }
    for (int64_t begin = 0; begin < m.cols; begin += kColumns) {
      const int64_t end = std::min(begin + kColumns, m.cols);
      column_plan_.add({index, begin, end}, (end - begin) * blocks.blocks, kTask);
    }
    works_.push_back({m, blocks, nullptr, nullptr, nullptr});
    kernels_.push_back(sinkgd_kernels(m));
    doubles += m.rows;
    floats += m.cols * (1 + blocks.blocks);
  }
  doubles_.reset(new double[static_cast<size_t>(doubles)]);
  floats_.reset(new float[static_cast<size_t>(floats)]);
  double* next_double = doubles_.get();
  float* next_float = floats_.get();
  for (SinkGDWork& work : works_) {
    const SinkGDMatrix& m = work.matrix;
    work.row_scale = next_double;
    work.col_scale = next_float;
    work.col_partial = next_float + m.cols;
    next_double += m.rows;
    next_float += m.cols * (1 + work.blocks.blocks);
    reset_scales(work, options.grad_factor);
  }
}

template <typename Body>
void SinkGDStages::for_blocks(int threads, const Body& body) const {
  parallel_tasks(row_plan_.num_tasks(), threads, [&](int64_t task) {
    for (const Chunk& chunk : row_plan_.task(task)) {
      const auto i = static_cast<size_t>(chunk.tensor);
      body(i, works_[i], works_[i].row_begin(chunk.begin), works_[i].row_end(chunk.begin),
           works_[i].partial(chunk.begin));
    }
  });
}

void SinkGDStages::add_columns(int threads, int iteration, std::span<const SinkGDSums> sums) const {
  parallel_tasks(column_plan_.num_tasks(), threads, [&](int64_t task) {
    for (const Chunk& chunk : column_plan_.task(task)) {
      const auto i = static_cast<size_t>(chunk.tensor);
      kernels_[i].column_sums(works_[i], chunk.begin, chunk.end, sums[i], iteration == 0);
    }
  });
}

void SinkGDStages::rows_and_columns(int threads, int iteration, std::span<const SinkGDSums> sums) {
  for_blocks(threads, [&](size_t i, const SinkGDWork& work, int64_t begin, int64_t end, float* partial) {
    kernels_[i].rows(work, begin, end, sinkgd_norms(work.matrix, options_, iteration).row, partial);
  });
  add_columns(threads, iteration, sums);
}

void SinkGDStages::put_rows(int threads, std::span<const SinkGDSums> sums) {
  for (size_t i = 0; i < works_.size(); ++i) {  // a piece without columns has no blocks
    if (works_[i].matrix.cols == 0) std::fill_n(sums[i].rows, works_[i].matrix.rows, 0.0);
  }
  for_blocks(threads, [&](size_t i, const SinkGDWork& work, int64_t begin, int64_t end, float*) {
    kernels_[i].row_sums(work, begin, end, sums[i].rows);
  });
}

void SinkGDStages::take_rows(int iteration, std::span<const SinkGDSums> sums) {
  for (size_t i = 0; i < works_.size(); ++i) {
    const SinkGDNorm norm = sinkgd_norms(works_[i].matrix, options_, iteration).row;
    for (int64_t row = 0; row < works_[i].matrix.rows; ++row) {
      double& scale = works_[i].row_scale[row];
      scale = sinkgd_rescale_by(std::sqrt(sums[i].rows[row]), scale, norm.target, norm.eps);
    }
  }
}

void SinkGDStages::put_columns(int threads, int iteration, std::span<const SinkGDSums> sums) {
  for_blocks(threads, [&](size_t i, const SinkGDWork& work, int64_t begin, int64_t end, float* partial) {
    kernels_[i].row_shares(work, begin, end, partial);
  });
  add_columns(threads, iteration, sums);
}

void SinkGDStages::take_columns(int iteration, std::span<const SinkGDSums> sums) {
  for (size_t i = 0; i < works_.size(); ++i) {
    const SinkGDNorm norm = sinkgd_norms(works_[i].matrix, options_, iteration).col;
    for (int64_t j = 0; j < works_[i].matrix.cols; ++j) {
      float& scale = works_[i].col_scale[j];
      const double sum = iteration == 0 ? sums[i].first_columns[j] : static_cast<double>(sums[i].columns[j]);
      scale = static_cast<float>(sinkgd_rescale_by(std::sqrt(sum), static_cast<double>(scale), norm.target, norm.eps));
    }
  }
}

void SinkGDStages::update(int threads) {
  const double lr_alpha = options_.lr * options_.alpha;
  const float decay = decay_factor(options_.lr, options_.weight_decay);
  for_blocks(threads, [&](size_t i, const SinkGDWork& work, int64_t begin, int64_t end, float*) {
    kernels_[i].update(work, begin, end, lr_alpha, decay);
  });
}

}  // namespace sage_ext::cpu
