#include "cpu/sinkgd.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "core/math/sinkgd.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace sage_ext::cpu {

namespace {

constexpr int64_t kColumnGroup = 256;  // columns added up at a time
constexpr int64_t kColumnGrain = 16;   // columns are shared out in cache lines
constexpr int64_t kSoloTask = int64_t{1} << 15;  // elements of small matrices that make one task

struct SinkGDKernels {
  void (*rows)(const SinkGDStep::Work&, int64_t row_begin, int64_t row_end, double target, double eps,
               float* partial);
  void (*columns)(const SinkGDStep::Work&, int64_t col_begin, int64_t col_end, double target, double eps);
  void (*update)(const SinkGDStep::Work&, int64_t row_begin, int64_t row_end, double lr_alpha, float decay);
};

// The bytes of gradient that one core's second-level cache keeps from one iteration to the next.
int64_t cache_budget() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  const auto size = static_cast<int64_t>(sysconf(_SC_LEVEL2_CACHE_SIZE));
  if (size > 0) return size * 5 / 8;
#endif
  return int64_t{1} << 20;
}

int64_t numel(const SinkGDMatrix& m) { return m.rows * m.cols; }

}  // namespace

}  // namespace sage_ext::cpu

#define SAGE_EXT_ISA_SOURCE "cpu/sinkgd_kernels.inl"
#include "cpu/foreach_isa.inl"

namespace sage_ext::cpu {

namespace {

struct Targets {
  double row, col;
};

Targets targets(const SinkGDMatrix& m, const SinkGDOptions& options) {
  if (options.unit) return {1.0, 1.0};
  return {std::sqrt(static_cast<double>(m.cols)), std::sqrt(static_cast<double>(m.rows))};
}

void reset_scales(const SinkGDStep::Work& work, const SinkGDOptions& options) {
  std::fill_n(work.row_scale, work.matrix.rows, options.grad_factor);
  std::fill_n(work.col_scale, work.matrix.cols, 1.0f);
}

// Scratch of one wave or of one thread's matrix: doubles first, then floats.
struct Scratch {
  std::unique_ptr<double[]> doubles;
  std::unique_ptr<float[]> floats;

  Scratch(int64_t num_doubles, int64_t num_floats)
      : doubles(new double[static_cast<size_t>(num_doubles)]), floats(new float[static_cast<size_t>(num_floats)]) {}
};

}  // namespace

SinkGDStep::SinkGDStep(std::vector<SinkGDMatrix> matrices, const SinkGDOptions& options) : options_(options) {
  for (const SinkGDMatrix& matrix : matrices) {
    const int64_t blocks = plan_row_blocks(matrix.rows, matrix.cols).blocks;
    if (blocks == 1) solo_.push_back(matrix);
    if (blocks > 1) large_.push_back(matrix);
  }
}

void SinkGDStep::run(int threads) {
  run_waves(threads);
  run_solo(threads);
}

void SinkGDStep::run_solo(int threads) {
  ChunkPlan plan;
  int64_t max_rows = 0;
  int64_t max_cols = 0;
  for (size_t i = 0; i < solo_.size(); ++i) {
    const auto index = static_cast<int64_t>(i);
    plan.add({index, 0, solo_[i].rows}, numel(solo_[i]), kSoloTask);
    max_rows = std::max(max_rows, solo_[i].rows);
    max_cols = std::max(max_cols, solo_[i].cols);
  }
  const double lr_alpha = options_.lr * options_.alpha;
  const auto decay = static_cast<float>(1.0 - options_.lr * options_.weight_decay);
  parallel_tasks(plan.num_tasks(), threads, [&](int64_t task) {
    const Scratch scratch(max_rows, 2 * max_cols);
    for (const Chunk& chunk : plan.task(task)) {
      const SinkGDMatrix& matrix = solo_[static_cast<size_t>(chunk.tensor)];
      const Work work{matrix, {matrix.rows, 1}, scratch.doubles.get(), scratch.floats.get(),
                      scratch.floats.get() + matrix.cols};
      const SinkGDKernels kernels = SAGE_EXT_FOR_ACTIVE_ISA(select_sinkgd_kernels(matrix));
      const Targets target = targets(matrix, options_);
      reset_scales(work, options_);
      for (int i = 0; i < options_.iterations; ++i) {
        kernels.rows(work, 0, matrix.rows, target.row, options_.eps, work.col_partial);
        kernels.columns(work, 0, matrix.cols, target.col, options_.eps);
      }
      kernels.update(work, 0, matrix.rows, lr_alpha, decay);
    }
  });
}

namespace {

// Matrices [begin, end) of the list go through all their iterations together.
struct Wave {
  size_t begin, end;
};

std::vector<Wave> plan_waves(std::span<const SinkGDMatrix> matrices, int threads) {
  const int64_t budget = cache_budget() * threads;
  std::vector<Wave> waves;
  int64_t bytes = 0;
  for (size_t i = 0; i < matrices.size(); ++i) {
    const int64_t size = numel(matrices[i]) * itemsize(matrices[i].grad_dtype);
    if (waves.empty() || bytes + size > budget) {
      waves.push_back({i, i});
      bytes = 0;
    }
    bytes += size;
    waves.back().end = i + 1;
  }
  return waves;
}

// Lays the buffers of a wave's matrices out in `scratch`; with a null scratch it only counts.
struct WaveLayout {
  std::vector<SinkGDStep::Work> works;
  std::vector<Chunk> blocks;        // every row block of the wave: matrix in the wave, rows [begin, end)
  std::vector<int64_t> block_work;  // running sum of the elements before each block, then the total
  int64_t num_doubles = 0;
  int64_t num_floats = 0;

  WaveLayout(std::span<const SinkGDMatrix> matrices, Wave wave, const Scratch* scratch) {
    int64_t total = 0;
    for (size_t i = wave.begin; i < wave.end; ++i) {
      const SinkGDMatrix& m = matrices[i];
      const RowBlocks plan = plan_row_blocks(m.rows, m.cols);
      SinkGDStep::Work work{m, plan, nullptr, nullptr, nullptr};
      if (scratch != nullptr) {
        work.row_scale = scratch->doubles.get() + num_doubles;
        work.col_scale = scratch->floats.get() + num_floats;
        work.col_partial = work.col_scale + m.cols;
      }
      num_doubles += m.rows;
      num_floats += m.cols * (1 + plan.blocks);
      for (int64_t block = 0; block < plan.blocks; ++block) {
        const int64_t begin = block * plan.rows_per_block;
        const int64_t end = std::min(begin + plan.rows_per_block, m.rows);
        blocks.push_back({static_cast<int64_t>(i - wave.begin), begin, end});
        block_work.push_back(total);
        total += (end - begin) * m.cols;
      }
      works.push_back(work);
    }
    block_work.push_back(total);
  }

  // The first block of a member's share: the same blocks in every pass, so that they stay in its cache.
  size_t share_begin(int member, int size) const {
    const int64_t target = block_work.back() / size * member;
    if (member == size) return blocks.size();
    return static_cast<size_t>(std::lower_bound(block_work.begin(), block_work.end() - 1, target) - block_work.begin());
  }
};

}  // namespace

void SinkGDStep::run_waves(int threads) {
  if (large_.empty()) return;
  const std::vector<Wave> waves = plan_waves(large_, threads);
  int64_t num_doubles = 0;
  int64_t num_floats = 0;
  for (const Wave wave : waves) {
    const WaveLayout layout(large_, wave, nullptr);
    num_doubles = std::max(num_doubles, layout.num_doubles);
    num_floats = std::max(num_floats, layout.num_floats);
  }
  const Scratch scratch(num_doubles, num_floats);
  std::vector<WaveLayout> layouts;
  layouts.reserve(waves.size());
  for (const Wave wave : waves) layouts.emplace_back(large_, wave, &scratch);

  const double lr_alpha = options_.lr * options_.alpha;
  const auto decay = static_cast<float>(1.0 - options_.lr * options_.weight_decay);
  parallel_team(threads, [&](const Team& team) {
    for (const WaveLayout& wave : layouts) {
      const size_t first = wave.share_begin(team.rank, team.size);
      const size_t last = wave.share_begin(team.rank + 1, team.size);
      // Every other pass goes backwards: what a pass read last is what the cache still has for the next.
      bool backwards = false;
      const auto for_my_blocks = [&](auto&& body) {
        for (size_t k = first; k < last; ++k) {
          const size_t index = backwards ? last - 1 - (k - first) : k;
          const Chunk& rows = wave.blocks[index];
          body(wave.works[static_cast<size_t>(rows.tensor)], rows);
        }
        backwards = !backwards;
      };
      const auto for_my_columns = [&](auto&& body) {
        for (const Work& work : wave.works) {
          const int64_t begin = team.share_begin(work.matrix.cols, kColumnGrain, team.rank);
          const int64_t end = team.share_begin(work.matrix.cols, kColumnGrain, team.rank + 1);
          if (begin < end) body(work, begin, end);
        }
      };
      if (team.rank == 0) {
        for (const Work& work : wave.works) reset_scales(work, options_);
      }
      team.barrier();
      for (int i = 0; i < options_.iterations; ++i) {
        for_my_blocks([&](const Work& work, const Chunk& rows) {
          float* partial = work.col_partial + rows.begin / work.blocks.rows_per_block * work.matrix.cols;
          SAGE_EXT_FOR_ACTIVE_ISA(select_sinkgd_kernels(work.matrix))
              .rows(work, rows.begin, rows.end, targets(work.matrix, options_).row, options_.eps, partial);
        });
        team.barrier();
        for_my_columns([&](const Work& work, int64_t begin, int64_t end) {
          SAGE_EXT_FOR_ACTIVE_ISA(select_sinkgd_kernels(work.matrix))
              .columns(work, begin, end, targets(work.matrix, options_).col, options_.eps);
        });
        team.barrier();
      }
      for_my_blocks([&](const Work& work, const Chunk& rows) {
        SAGE_EXT_FOR_ACTIVE_ISA(select_sinkgd_kernels(work.matrix))
            .update(work, rows.begin, rows.end, lr_alpha, decay);
      });
      team.barrier();
    }
  });
}

}  // namespace sage_ext::cpu
