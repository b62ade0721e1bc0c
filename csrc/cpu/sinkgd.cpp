#include "cpu/sinkgd.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "core/math/sinkgd.h"
#include "cpu/common/parallel.h"
#include "cpu/sinkgd_kernels.h"

namespace sage_ext::cpu {

namespace {

constexpr int64_t kColumnGrain = 16;               // columns are shared out in cache lines
constexpr int64_t kSoloMatrix = int64_t{1} << 17;  // elements up to which a matrix is always one thread's
constexpr int64_t kSoloTask = int64_t{1} << 15;    // elements of small matrices that make one task

// The bytes of gradient that one core's second-level cache keeps from one iteration to the next.
int64_t cache_budget() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  const auto size = static_cast<int64_t>(sysconf(_SC_LEVEL2_CACHE_SIZE));
  if (size > 0) return size * 5 / 8;
#endif
  return int64_t{1} << 20;
}

int64_t numel(const SinkGDMatrix& m) { return m.rows * m.cols; }

using Work = SinkGDWork;

// Passes over the blocks [begin, end), every other one backwards: what a pass read last is what the cache still
// has for the next. Each block has a slot of its own, so the direction does not change a sum.
class Serpentine {
 public:
  Serpentine(int64_t begin, int64_t end) : begin_(begin), end_(end) {}

  template <typename Body>
  void run(Body&& body) {
    for (int64_t k = begin_; k < end_; ++k) body(backwards_ ? end_ - 1 - (k - begin_) : k);
    backwards_ = !backwards_;
  }

 private:
  int64_t begin_, end_;
  bool backwards_ = false;
};

// Scratch of one wave or of one thread's matrix.
struct Scratch {
  std::unique_ptr<double[]> doubles;
  std::unique_ptr<float[]> floats;

  Scratch(int64_t num_doubles, int64_t num_floats)
      : doubles(new double[static_cast<size_t>(num_doubles)]), floats(new float[static_cast<size_t>(num_floats)]) {}
};

}  // namespace

SinkGDStep::SinkGDStep(std::vector<SinkGDMatrix> matrices, const SinkGDOptions& options)
    : matrices_(std::move(matrices)), options_(options) {
  std::erase_if(matrices_, [](const SinkGDMatrix& m) { return numel(m) == 0; });
}

void SinkGDStep::run(int threads) {
  int64_t total = 0;
  for (const SinkGDMatrix& matrix : matrices_) total += numel(matrix);
  // With at least four such matrices a thread, the threads end at about the same time.
  const int64_t solo_limit = std::max(kSoloMatrix, total / (4 * int64_t{threads}));
  std::vector<SinkGDMatrix> solo;
  std::vector<SinkGDMatrix> shared;
  for (const SinkGDMatrix& matrix : matrices_) (numel(matrix) <= solo_limit ? solo : shared).push_back(matrix);
  if (!shared.empty()) run_shared(shared, threads);
  if (!solo.empty()) run_solo(std::move(solo), threads);
}

void SinkGDStep::run_solo(std::vector<SinkGDMatrix> matrices, int threads) const {
  // The largest first: what is left for the end is small.
  const auto is_larger = [](const SinkGDMatrix& a, const SinkGDMatrix& b) { return numel(a) > numel(b); };
  if (!std::is_sorted(matrices.begin(), matrices.end(), is_larger)) {
    std::stable_sort(matrices.begin(), matrices.end(), is_larger);
  }
  ChunkPlan plan;
  for (size_t i = 0; i < matrices.size(); ++i) {
    plan.add({static_cast<int64_t>(i), 0, matrices[i].rows}, numel(matrices[i]), kSoloTask);
  }
  const double lr_alpha = options_.lr * options_.alpha;
  const float decay = decay_factor(options_.lr, options_.weight_decay);
  const auto tiny_step = [&](const SinkGDMatrix& matrix) -> SinkGDTinyStep {
    const int last = options_.iterations - 1;
    const auto norms = [&](int iteration) { return sinkgd_norms(matrix, options_, iteration); };
    return {norms(0), norms(std::min(1, last)), norms(last), options_.iterations, options_.grad_factor, lr_alpha,
            decay};
  };
  parallel_tasks(plan.num_tasks(), threads, [&](int64_t task) {
    for (const Chunk& chunk : plan.task(task)) {
      const SinkGDMatrix& matrix = matrices[static_cast<size_t>(chunk.tensor)];
      const SinkGDKernels kernels = sinkgd_kernels(matrix);
      if (is_tiny(matrix) && kernels.tiny(matrix, tiny_step(matrix))) continue;
      const RowBlocks blocks = plan_row_blocks(matrix.rows, matrix.cols);
      const Scratch scratch(matrix.rows, matrix.cols * (1 + blocks.blocks));
      const Work work{matrix, blocks, scratch.doubles.get(), scratch.floats.get(), scratch.floats.get() + matrix.cols};
      reset_scales(work, options_.grad_factor);
      Serpentine pass(0, blocks.blocks);
      for (int i = 0; i < options_.iterations; ++i) {
        const SinkGDNorms norm = sinkgd_norms(matrix, options_, i);
        pass.run([&](int64_t block) {
          kernels.rows(work, work.row_begin(block), work.row_end(block), norm.row, work.partial(block));
        });
        kernels.columns(work, 0, matrix.cols, norm.col);
      }
      pass.run(
          [&](int64_t block) { kernels.update(work, work.row_begin(block), work.row_end(block), lr_alpha, decay); });
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
  std::vector<Work> works;
  struct Block {
    size_t work;    // index in works
    int64_t index;  // among that matrix's blocks
  };
  std::vector<Block> blocks;        // every row block of the wave
  std::vector<int64_t> block_work;  // running sum of the elements before each block, then the total
  int64_t num_doubles = 0;
  int64_t num_floats = 0;

  WaveLayout(std::span<const SinkGDMatrix> matrices, Wave wave, const Scratch* scratch) {
    int64_t total = 0;
    for (size_t i = wave.begin; i < wave.end; ++i) {
      const SinkGDMatrix& m = matrices[i];
      const RowBlocks plan = plan_row_blocks(m.rows, m.cols);
      Work work{m, plan, nullptr, nullptr, nullptr};
      if (scratch != nullptr) {
        work.row_scale = scratch->doubles.get() + num_doubles;
        work.col_scale = scratch->floats.get() + num_floats;
        work.col_partial = work.col_scale + m.cols;
      }
      num_doubles += m.rows;
      num_floats += m.cols * (1 + plan.blocks);
      for (int64_t block = 0; block < plan.blocks; ++block) {
        blocks.push_back({i - wave.begin, block});
        block_work.push_back(total);
        total += (work.row_end(block) - work.row_begin(block)) * m.cols;
      }
      works.push_back(work);
    }
    block_work.push_back(total);
  }

  // The first block of a member's share: the same blocks in every pass, so that they stay in its cache.
  int64_t share_begin(int member, int size) const {
    if (member == size) return static_cast<int64_t>(blocks.size());
    const int64_t target = block_work.back() / size * member;
    return std::lower_bound(block_work.begin(), block_work.end() - 1, target) - block_work.begin();
  }
};

}  // namespace

void SinkGDStep::run_shared(std::span<const SinkGDMatrix> matrices, int threads) const {
  const std::vector<Wave> waves = plan_waves(matrices, threads);
  int64_t num_doubles = 0;
  int64_t num_floats = 0;
  for (const Wave wave : waves) {
    const WaveLayout layout(matrices, wave, nullptr);
    num_doubles = std::max(num_doubles, layout.num_doubles);
    num_floats = std::max(num_floats, layout.num_floats);
  }
  const Scratch scratch(num_doubles, num_floats);
  std::vector<WaveLayout> layouts;
  layouts.reserve(waves.size());
  for (const Wave wave : waves) layouts.emplace_back(matrices, wave, &scratch);

  const double lr_alpha = options_.lr * options_.alpha;
  const float decay = decay_factor(options_.lr, options_.weight_decay);
  parallel_team(threads, [&](const Team& team) {
    for (const WaveLayout& wave : layouts) {
      // A member has the same blocks in every pass, so that they stay in its cache.
      Serpentine pass(wave.share_begin(team.rank, team.size), wave.share_begin(team.rank + 1, team.size));
      const auto for_my_blocks = [&](auto&& body) {
        pass.run([&](int64_t k) {
          const WaveLayout::Block block = wave.blocks[static_cast<size_t>(k)];
          const Work& work = wave.works[block.work];
          body(work, sinkgd_kernels(work.matrix), block.index);
        });
      };
      if (team.rank == 0) {
        for (const Work& work : wave.works) reset_scales(work, options_.grad_factor);
      }
      team.barrier();
      for (int i = 0; i < options_.iterations; ++i) {
        for_my_blocks([&](const Work& work, const SinkGDKernels& kernels, int64_t block) {
          kernels.rows(work, work.row_begin(block), work.row_end(block), sinkgd_norms(work.matrix, options_, i).row,
                       work.partial(block));
        });
        team.barrier();
        for (const Work& work : wave.works) {
          const int64_t begin = team.share_begin(work.matrix.cols, kColumnGrain, team.rank);
          const int64_t end = team.share_begin(work.matrix.cols, kColumnGrain, team.rank + 1);
          if (begin == end) continue;
          sinkgd_kernels(work.matrix).columns(work, begin, end, sinkgd_norms(work.matrix, options_, i).col);
        }
        team.barrier();
      }
      for_my_blocks([&](const Work& work, const SinkGDKernels& kernels, int64_t block) {
        kernels.update(work, work.row_begin(block), work.row_end(block), lr_alpha, decay);
      });
      team.barrier();
    }
  });
}

}  // namespace sage_ext::cpu
