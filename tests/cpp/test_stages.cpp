// SAGE, SCALE and SinkGD on tensors that lie in pieces on several processes: stage by stage, against fp64; the same
// bits whatever the threads, and for a single piece those of the step of the whole.
#include "cpu/sinkgd_stages.h"
#include "stage_cases.h"

namespace sage_ext {
namespace {

using testing::kSageOptions;
using testing::kSinkGDOptions;
using testing::make_problems;
using testing::Mesh;
using testing::Mix;
using testing::Over;
using testing::Pieces;
using testing::result_bytes;
using testing::SageProblem;
using testing::scale_options;
using testing::ScaleProblem;
using testing::SinkGDStack;
using testing::Size;
using testing::step_in_pieces;

// The stages on all processes, in the order in which a plan of each calls them.
template <int kThreads>
struct Cpu {
  static std::vector<Mesh> some_meshes() { return {std::begin(testing::kMeshes), std::end(testing::kMeshes)}; }
  static std::vector<Size> large_sizes() { return {{64, 4097}, {300, 1025}, {513, 768}}; }

  static void run(Pieces<SageProblem>& pieces, const cpu::SageOptions& options) {
    testing::SageBuffers sums(pieces, /*empty_are_zero=*/false);
    std::vector<cpu::SageStep> steps;
    for (size_t process = 0; process < pieces.processes.size(); ++process) {
      std::vector<cpu::SageTensor> tensors;
      for (size_t i = 0; i < pieces.num_tensors(); ++i) {
        tensors.push_back(pieces.processes[process][i].view(options));
        tensors.back().whole = pieces.whole(i);
      }
      steps.emplace_back(std::move(tensors), options);
    }
    const auto on_all = [&](const auto& stage) {
      for (size_t process = 0; process < steps.size(); ++process) {
        stage(steps[process], sums.of(process, pieces.num_tensors()));
      }
    };
    on_all([](cpu::SageStep& step, const std::vector<SageSums>& own) {
      step.sum_columns(kThreads);
      step.put_columns(kThreads, own);
    });
    sums.columns.add_up(Over::rows);
    on_all([](cpu::SageStep& step, const std::vector<SageSums>& own) { step.put_squares(kThreads, own); });
    sums.squares.add_up(Over::columns);
    on_all([](cpu::SageStep& step, const std::vector<SageSums>& own) {
      step.take_squares(own);
      step.compute_steps(kThreads);
      step.update(kThreads);
    });
  }

  static void run(Pieces<ScaleProblem>& pieces, const cpu::ScaleOptions& options) {
    testing::Sums<double> sums = scale_sums(pieces, options.columns, /*empty_are_zero=*/false);
    std::vector<cpu::ScaleStep> steps;
    std::vector<std::vector<double*>> own;
    for (size_t process = 0; process < pieces.processes.size(); ++process) {
      std::vector<cpu::ScaleMatrix> matrices;
      own.emplace_back();
      for (size_t i = 0; i < pieces.num_tensors(); ++i) {
        ScaleProblem& p = pieces.processes[process][i];
        p.append_views(options, matrices);
        for (int64_t m = 0; m < p.matrices; ++m) {
          matrices[matrices.size() - static_cast<size_t>(p.matrices - m)].whole = pieces.whole(i);
          own.back().push_back(sums.of(process, i) + m * (options.columns ? p.cols : p.rows));
        }
      }
      steps.emplace_back(std::move(matrices), options);
    }
    for (size_t process = 0; process < steps.size(); ++process) steps[process].put_sums(kThreads, own[process]);
    sums.add_up(options.columns ? Over::rows : Over::columns);
    for (size_t process = 0; process < steps.size(); ++process) steps[process].update(kThreads, own[process]);
  }

  static void run(Pieces<SinkGDStack>& pieces, const cpu::SinkGDOptions& options) {
    run(pieces, options, pieces.mesh.columns > 1);
  }

  static void run(Pieces<SinkGDStack>& pieces, const cpu::SinkGDOptions& options, bool rows_are_cut) {
    testing::SinkGDBuffers sums(pieces, /*empty_are_zero=*/false);
    std::vector<cpu::SinkGDStages> stages;
    std::vector<std::vector<SinkGDSums>> own;
    for (size_t process = 0; process < pieces.processes.size(); ++process) {
      std::vector<cpu::SinkGDMatrix> matrices;
      own.emplace_back();
      for (size_t i = 0; i < pieces.num_tensors(); ++i) {
        SinkGDStack& p = pieces.processes[process][i];
        for (int64_t m = 0; m < p.matrices; ++m) {
          const int64_t at = m * p.rows * p.cols;
          matrices.push_back({static_cast<char*>(p.param.data()) + at * itemsize(p.param.dtype()),
                              static_cast<const char*>(p.grad.data()) + at * itemsize(p.grad.dtype()), p.rows, p.cols,
                              p.param.dtype(), p.grad.dtype(), pieces.whole(i)});
          const SinkGDSums of = sums.of(process, i);
          own.back().push_back({of.rows + m * p.rows, of.first_columns + m * p.cols, of.columns + m * p.cols});
        }
      }
      stages.emplace_back(matrices, options);
    }
    const auto on_all = [&](const auto& stage) {
      for (size_t process = 0; process < stages.size(); ++process) stage(stages[process], own[process]);
    };
    using Own = std::vector<SinkGDSums>;
    for (int i = 0; i < options.iterations; ++i) {
      if (rows_are_cut) {
        on_all([](cpu::SinkGDStages& stage, const Own& of) { stage.put_rows(kThreads, of); });
        sums.rows.add_up(Over::columns);
        on_all([=](cpu::SinkGDStages& stage, const Own& of) {
          stage.take_rows(i, of);
          stage.put_columns(kThreads, i, of);
        });
      } else {
        on_all([=](cpu::SinkGDStages& stage, const Own& of) { stage.rows_and_columns(kThreads, i, of); });
      }
      sums.add_up_columns(i);
      on_all([=](cpu::SinkGDStages& stage, const Own& of) { stage.take_columns(i, of); });
    }
    on_all([](cpu::SinkGDStages& stage, const Own&) { stage.update(kThreads); });
  }
};

cpu::SinkGDOptions with_iterations(int iterations) {
  cpu::SinkGDOptions options = kSinkGDOptions;
  options.iterations = iterations;
  return options;
}

TEST(SageStages, PiecesOfEverySize) { testing::check_sizes<Cpu<1>, SageProblem>(kSageOptions); }
TEST(SageStages, Options) { testing::check_sage_options<Cpu<1>>(); }
TEST(SageStages, HardCases) { testing::check_hard_cases<Cpu<1>, SageProblem>(kSageOptions, {0.0, 1e-8}); }
TEST(SageStages, ANaNReachesAllPieces) { testing::check_nan_reaches_all<Cpu<1>, SageProblem>(kSageOptions); }
TEST(SageStages, MixesInOneCall) { testing::check_mixes<Cpu<1>, SageProblem>(kSageOptions); }
TEST(SageStages, LongSums) { testing::check_long_sums<Cpu<2>, SageProblem>(kSageOptions, 40'000); }

class ScaleStages : public ::testing::TestWithParam<cpu::ScaleOptions> {};

TEST_P(ScaleStages, PiecesOfEverySize) { testing::check_sizes<Cpu<1>, ScaleProblem>(GetParam()); }
TEST_P(ScaleStages, HardCases) { testing::check_hard_cases<Cpu<1>, ScaleProblem>(GetParam(), {0.0, 1e-8}); }
TEST_P(ScaleStages, MixesInOneCall) { testing::check_mixes<Cpu<1>, ScaleProblem>(GetParam()); }
TEST_P(ScaleStages, LongSums) { testing::check_long_sums<Cpu<2>, ScaleProblem>(GetParam(), 40'000); }

INSTANTIATE_TEST_SUITE_P(All, ScaleStages, ::testing::ValuesIn(testing::all_scale_options()));

TEST(ScaleStagesOptions, All) { testing::check_scale_options<Cpu<1>>(); }

TEST(SinkGDStages, PiecesOfEverySize) { testing::check_sizes<Cpu<1>, SinkGDStack>(with_iterations(2)); }
TEST(SinkGDStages, Options) { testing::check_sinkgd_options<Cpu<1>>(); }
TEST(SinkGDStages, HardCases) {
  for (const int iterations : {1, 5}) {
    testing::check_hard_cases<Cpu<1>, SinkGDStack>(with_iterations(iterations), {0.0, 1e-8, 1e-3});
  }
}
TEST(SinkGDStages, ANaNReachesAllPieces) { testing::check_nan_reaches_all<Cpu<1>, SinkGDStack>(kSinkGDOptions); }
TEST(SinkGDStages, ASmallColumn) { testing::check_sinkgd_small_columns<Cpu<1>>(); }
TEST(SinkGDStages, MixesInOneCall) { testing::check_mixes<Cpu<1>, SinkGDStack>(with_iterations(2)); }
TEST(SinkGDStages, LongSums) { testing::check_long_sums<Cpu<2>, SinkGDStack>(with_iterations(2), 40'000); }

// Many tasks, in each stage. PiecesOfEverySize has every mesh with every mix; here rows and columns are cut once in
// each.
std::vector<Size> sizes_of_tasks() { return {{300, 1025}, {5, 7}, {20'000, 3}, {3, 9000}, {64, 4097}, {1, 30}}; }

template <typename Problem, typename Options>
void check_threads(const Options& options) {
  for (const Mesh& mesh : testing::kMeshes) {
    const Mix mix = mesh.size() == 3 ? testing::kBFloat : testing::kFloat;
    SCOPED_TRACE(describe(mesh) + ", " + describe(mix));
    const std::vector<Problem> start = make_problems<Problem>(mix, sizes_of_tasks(), 8);
    const auto run = [&](auto device) {
      std::vector<Problem> problems = start;
      step_in_pieces<decltype(device)>(problems, options, mesh, 80);
      return result_bytes(problems);
    };
    const std::vector<std::byte> first = run(Cpu<1>());
    EXPECT_TRUE(run(Cpu<1>()) == first) << "again";
    EXPECT_TRUE(run(Cpu<2>()) == first) << "2 threads";
    EXPECT_TRUE(run(Cpu<3>()) == first) << "3 threads";
  }
}

TEST(SageStages, ThreadsAndRunsGiveTheSameBits) { check_threads<SageProblem>(kSageOptions); }
TEST_P(ScaleStages, ThreadsAndRunsGiveTheSameBits) { check_threads<ScaleProblem>(GetParam()); }
TEST(SinkGDStages, ThreadsAndRunsGiveTheSameBits) { check_threads<SinkGDStack>(with_iterations(2)); }

// A single piece, which is the whole.
constexpr Mesh kOne{1, 1};

// Sums of columns pass through fp32 between the stages. Where they are one slot they have been fp32 all along;
// elsewhere a rounding is added.
TEST(SageStages, ASinglePieceIsTheWhole) {
  for (const Mix& mix : testing::piece_mixes()) {
    for (const Size& size : {Size{5, 777}, {1, 4097}, {100, 300}, {60'000, 3}, {700, 300}, {300, 1025}}) {
      SCOPED_TRACE(describe(mix) + ", " + std::to_string(size.rows) + " x " + std::to_string(size.cols));
      const ColumnTiling tiling = tile_columns(size.rows, size.cols);
      const bool is_one_slot = tiling.row_blocks * tiling.fold == 1;
      std::vector<SageProblem> staged = make_problems<SageProblem>(mix, {size}, 9);
      std::vector<SageProblem> fused = make_problems<SageProblem>(mix, {size}, 9);
      for (int step = 0; step < 2; ++step) {
        step_in_pieces<Cpu<1>>(staged, kSageOptions, kOne, 90);
        ++fused[0].step;
        sage_step(fused, kSageOptions, 1);
      }
      ASSERT_EQ(staged[0].exp_avg.bytes(), fused[0].exp_avg.bytes());
      if (is_one_slot) {
        EXPECT_EQ(result_bytes(staged), result_bytes(fused));
        continue;
      }
      for (int64_t j = 0; j < size.cols; ++j) {
        ASSERT_NEAR(staged[0].s_range[j], fused[0].s_range[j], 4 * testing::kUlp * fused[0].s_range[j]) << j;
      }
      for (int64_t i = 0; i < staged[0].param.numel(); ++i) {
        const double w = fused[0].param[i];
        const double slack = 8 * testing::kUlp * (std::abs(w) + kSageOptions.lr);
        ASSERT_NEAR(staged[0].param[i], w, slack + 2 * testing::half_ulp(mix.param, std::abs(w) + slack)) << i;
      }
    }
  }
}

// Sums of squares stay in fp64: the same bits.
TEST_P(ScaleStages, ASinglePieceIsTheWhole) {
  for (const Mix& mix : testing::piece_mixes()) {
    for (const Size& size : {Size{5, 777}, {1, 4097}, {60'000, 3}, {700, 300}, {9, 200, 4}}) {
      std::vector<ScaleProblem> staged = make_problems<ScaleProblem>(mix, {size}, 10);
      std::vector<ScaleProblem> fused = make_problems<ScaleProblem>(mix, {size}, 10);
      for (int step = 0; step < 2; ++step) {
        step_in_pieces<Cpu<2>>(staged, GetParam(), kOne, 100);
        scale_step(fused, GetParam(), 2);
      }
      EXPECT_EQ(result_bytes(staged), result_bytes(fused)) << describe(mix) << ", " << size.rows << " x " << size.cols;
    }
  }
}

// Other roundings: sums are of the iterate, which is the scaled gradient, where the whole step takes the other vector's
// scales alone; and those of columns pass through fp32.
TEST(SinkGDStages, ASinglePieceIsNearlyTheWhole) {
  for (const bool rows_are_cut : {false, true}) {
    for (const Size& size : {Size{5, 777}, {1, 4097}, {20'000, 3}, {300, 1025}, {9, 200, 4}}) {
      SCOPED_TRACE(std::to_string(size.rows) + " x " + std::to_string(size.cols));
      std::vector<SinkGDStack> staged = make_problems<SinkGDStack>(testing::kFloat, {size}, 11);
      fill(staged[0].param, 0.0);
      std::vector<testing::SinkGDProblem> fused;
      for (int64_t m = 0; m < size.matrices; ++m) fused.push_back(staged[0].matrix(m));
      Pieces<SinkGDStack> pieces(staged, kOne, 110);
      Cpu<1>::run(pieces, with_iterations(3), rows_are_cut);
      pieces.gather();
      sinkgd_step(fused, with_iterations(3), 1);
      for (int64_t i = 0; i < staged[0].param.numel(); ++i) {
        const int64_t matrix = i / (size.rows * size.cols);
        const double w = fused[static_cast<size_t>(matrix)].param[i % (size.rows * size.cols)];
        ASSERT_NEAR(staged[0].param[i], w, 16 * testing::kUlp * std::abs(w)) << i;
      }
    }
  }
}

TEST(SageStages, NothingToDo) {
  for (const Mesh& mesh : testing::kMeshes) {
    std::vector<SageProblem> sage;
    step_in_pieces<Cpu<2>>(sage, kSageOptions, mesh, 120);
    std::vector<ScaleProblem> scale;
    step_in_pieces<Cpu<2>>(scale, scale_options(true, true), mesh, 120);
    std::vector<SinkGDStack> sinkgd;
    step_in_pieces<Cpu<2>>(sinkgd, kSinkGDOptions, mesh, 120);
  }
}

}  // namespace
}  // namespace sage_ext
