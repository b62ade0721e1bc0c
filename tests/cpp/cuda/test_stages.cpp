// The stages of SAGE, SCALE and SinkGD on the emulator: pieces of tensors against fp64, and where the stages of a
// single piece give the bits of the whole step.
#include "cuda/stages_support.h"

namespace sage_ext {
namespace {

using testing::Emulator;
using testing::kSageOptions;
using testing::kSinkGDOptions;
using testing::make_problems;
using testing::Mesh;
using testing::Pieces;
using testing::result_bytes;
using testing::SageProblem;
using testing::ScaleProblem;
using testing::SinkGDStack;
using testing::Size;
using testing::step_in_pieces;

cpu::SinkGDOptions with_iterations(int iterations) {
  cpu::SinkGDOptions options = kSinkGDOptions;
  options.iterations = iterations;
  return options;
}

TEST(CudaSageStages, PiecesOfEverySize) { testing::check_sizes<Emulator<>, SageProblem>(kSageOptions); }
TEST(CudaSageStages, Options) { testing::check_sage_options<Emulator<true>>(); }
TEST(CudaSageStages, HardCases) { testing::check_hard_cases<Emulator<>, SageProblem>(kSageOptions, {0.0, 1e-8}); }
TEST(CudaSageStages, ANaNReachesAllPieces) { testing::check_nan_reaches_all<Emulator<>, SageProblem>(kSageOptions); }
TEST(CudaSageStages, MixesInOneCall) { testing::check_mixes<Emulator<>, SageProblem>(kSageOptions); }
TEST(CudaSageStages, LongSums) { testing::check_long_sums<Emulator<>, SageProblem>(kSageOptions, 6000); }

class CudaScaleStages : public ::testing::TestWithParam<cpu::ScaleOptions> {};

TEST_P(CudaScaleStages, PiecesOfEverySize) { testing::check_sizes<Emulator<>, ScaleProblem>(GetParam()); }
TEST_P(CudaScaleStages, HardCases) { testing::check_hard_cases<Emulator<>, ScaleProblem>(GetParam(), {0.0, 1e-8}); }
TEST_P(CudaScaleStages, MixesInOneCall) { testing::check_mixes<Emulator<>, ScaleProblem>(GetParam()); }
TEST_P(CudaScaleStages, LongSums) { testing::check_long_sums<Emulator<>, ScaleProblem>(GetParam(), 6000); }

TEST(CudaScaleStagesOptions, All) { testing::check_scale_options<Emulator<true>>(); }

TEST(CudaSinkGDStages, PiecesOfEverySize) { testing::check_sizes<Emulator<>, SinkGDStack>(with_iterations(2)); }
TEST(CudaSinkGDStages, Options) { testing::check_sinkgd_options<Emulator<true>>(); }
TEST(CudaSinkGDStages, HardCases) {
  testing::check_hard_cases<Emulator<>, SinkGDStack>(with_iterations(1), {1e-8, 1e-3});
  testing::check_hard_cases<Emulator<>, SinkGDStack>(with_iterations(3), {0.0});
}
TEST(CudaSinkGDStages, ANaNReachesAllPieces) {
  testing::check_nan_reaches_all<Emulator<>, SinkGDStack>(kSinkGDOptions);
}
TEST(CudaSinkGDStages, MixesInOneCall) { testing::check_mixes<Emulator<>, SinkGDStack>(with_iterations(2)); }
TEST(CudaSinkGDStages, ASmallColumn) { testing::check_sinkgd_small_columns<Emulator<>>(); }
TEST(CudaSinkGDStages, LongSums) { testing::check_long_sums<Emulator<>, SinkGDStack>(with_iterations(1), 6000); }

// A single piece, which is the whole.
constexpr Mesh kOne{1, 1};

// Column sums pass through fp32 between the stages, as a single slot has done all along.
TEST(CudaSageStages, ASinglePieceIsTheWhole) {
  for (const testing::Mix& mix : testing::piece_mixes()) {
    for (const Size& size : {Size{5, 776}, {1, 4097}, {100, 8}, {600, 300}}) {
      SCOPED_TRACE(describe(mix) + ", " + std::to_string(size.rows) + " x " + std::to_string(size.cols));
      const bool is_one_slot = plan_column_blocks(size.rows, size.cols, 16 / itemsize(mix.grad)).slots == 1;
      EXPECT_EQ(is_one_slot, size.rows < 600);
      std::vector<SageProblem> staged = make_problems<SageProblem>(mix, {size}, 9);
      std::vector<SageProblem> fused = make_problems<SageProblem>(mix, {size}, 9);
      for (int step = 0; step < 2; ++step) {
        step_in_pieces<Emulator<>>(staged, kSageOptions, kOne, 90);
        ++fused[0].step;
        cuda_sage_step(fused, kSageOptions);
      }
      ASSERT_EQ(staged[0].exp_avg.bytes(), fused[0].exp_avg.bytes());
      if (is_one_slot) {
        EXPECT_EQ(result_bytes(staged), result_bytes(fused));
        continue;
      }
      for (int64_t j = 0; j < size.cols; ++j) {
        ASSERT_NEAR(staged[0].s_range[j], fused[0].s_range[j], 4 * testing::kUlp * fused[0].s_range[j]) << j;
      }
    }
  }
}

// Sums of squares stay in fp64: the same bits.
TEST_P(CudaScaleStages, ASinglePieceIsTheWhole) {
  for (const testing::Mix& mix : testing::piece_mixes()) {
    for (const Size& size : {Size{5, 777}, {1, 9000}, {3000, 3}, {100, 304}, {9, 40, 4}}) {
      std::vector<ScaleProblem> staged = make_problems<ScaleProblem>(mix, {size}, 10);
      std::vector<ScaleProblem> fused = make_problems<ScaleProblem>(mix, {size}, 10);
      for (int step = 0; step < 2; ++step) {
        step_in_pieces<Emulator<>>(staged, GetParam(), kOne, 100);
        cuda_scale_step(fused, GetParam());
      }
      EXPECT_EQ(result_bytes(staged), result_bytes(fused)) << describe(mix) << ", " << size.rows << " x " << size.cols;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaScaleStages, ::testing::ValuesIn(testing::all_scale_options()));

// Other roundings: the sums are those of the iterate, and of columns in fp32.
TEST(CudaSinkGDStages, ASinglePieceIsNearlyTheWhole) {
  for (const bool rows_are_cut : {false, true}) {
    for (const Size& size : {Size{5, 777}, {1, 4096}, {2000, 3}, {9, 40, 4}}) {
      SCOPED_TRACE(std::to_string(size.rows) + " x " + std::to_string(size.cols));
      std::vector<SinkGDStack> staged = make_problems<SinkGDStack>(testing::kFloat, {size}, 11);
      std::vector<SinkGDStack> fused = make_problems<SinkGDStack>(testing::kFloat, {size}, 11);
      fill(staged[0].param, 0.0);
      fill(fused[0].param, 0.0);
      const testing::DeviceScalars scalars(kSinkGDOptions.lr);
      Pieces<SinkGDStack> pieces(staged, kOne, 110);
      testing::CudaSinkGDStages(pieces, with_iterations(3), scalars.get()).run(rows_are_cut);
      pieces.gather();
      SinkGDStack& p = fused[0];
      testing::cuda_sinkgd_step(
          {{p.param.data(), p.grad.data(), p.matrices, p.rows, p.cols, p.param.dtype(), p.grad.dtype()}},
          with_iterations(3), scalars.get());
      for (int64_t i = 0; i < p.param.numel(); ++i) {
        ASSERT_NEAR(staged[0].param[i], p.param[i], 16 * testing::kUlp * std::abs(p.param[i])) << i;
      }
    }
  }
}

template <typename Problem, typename Options>
simt::Comparison schedules_agree(const Options& options, const Mesh& mesh) {
  return simt::same_under_schedules(
      [&] {
        std::vector<Problem> problems = make_problems<Problem>(testing::kBFloat, {{40, 72}, {5, 7}, {3, 1100}}, 12);
        step_in_pieces<Emulator<>>(problems, options, mesh, 120);
        return result_bytes(problems);
      },
      3);
}

TEST(CudaSageStages, SchedulesGiveTheSameBits) { EXPECT_TRUE(schedules_agree<SageProblem>(kSageOptions, Mesh{2, 2})); }
TEST_P(CudaScaleStages, SchedulesGiveTheSameBits) {
  EXPECT_TRUE(schedules_agree<ScaleProblem>(GetParam(), Mesh{2, 2}));
}
TEST(CudaSinkGDStages, SchedulesGiveTheSameBits) {
  for (const Mesh& mesh : {Mesh{2, 1}, {2, 2}}) {
    EXPECT_TRUE(schedules_agree<SinkGDStack>(with_iterations(2), mesh));
  }
}

}  // namespace
}  // namespace sage_ext
