// What the stages of SAGE, SCALE and SinkGD launch and move; and that found_inf keeps them from writing.
#include "cuda/stages_support.h"

namespace sage_ext {
namespace {

using testing::CudaSageStages;
using testing::CudaScaleStages;
using testing::CudaSinkGDStages;
using testing::DeviceScalars;
using testing::kSageOptions;
using testing::kSinkGDOptions;
using testing::launches_of;
using testing::make_problems;
using testing::Mesh;
using testing::Mix;
using testing::names_of;
using testing::Pieces;
using testing::result_bytes;
using testing::SageProblem;
using testing::scale_options;
using testing::ScaleProblem;
using testing::SinkGDStack;
using testing::Size;

using Launches = std::vector<simt::Launch>;
using Names = std::vector<std::string>;

constexpr Mesh kOne{1, 1};

cpu::SinkGDOptions with_iterations(int iterations) {
  cpu::SinkGDOptions options = kSinkGDOptions;
  options.iterations = iterations;
  return options;
}

std::vector<Mix> mixes() {
  return {testing::kFloat, testing::kBFloat, {DType::bfloat16, DType::bfloat16, DType::float32}};
}

// Some, among them pieces without rows or without columns.
std::vector<Size> some_sizes() { return {{9, 40}, {5, 7}, {2, 33}, {64, 9}, {1, 1}, {3, 2}}; }

void expect_bytes(const simt::Launch& launch, int64_t read, int64_t written) {
  EXPECT_EQ(launch.bytes_read, static_cast<uint64_t>(read)) << launch.kernel;
  EXPECT_EQ(launch.bytes_written, static_cast<uint64_t>(written)) << launch.kernel;
}

TEST(CudaSageStagesLaunches, FewForAllTensors) {
  std::vector<SageProblem> problems = make_problems<SageProblem>(testing::kBFloat, some_sizes(), 1);
  for (SageProblem& p : problems) ++p.step;
  const DeviceScalars scalars(kSageOptions.lr);
  Pieces<SageProblem> pieces(problems, kOne, 10);
  CudaSageStages stages(pieces, kSageOptions, scalars.get());
  EXPECT_EQ(names_of(launches_of([&] { stages.put_columns(); })), (Names{"sage_sums", "sage_columns"}));
  EXPECT_EQ(names_of(launches_of([&] { stages.put_squares(); })), (Names{"cudaMemsetAsync", "sage_squares"}));
  EXPECT_EQ(names_of(launches_of([&] { stages.finish(); })), (Names{"sage_steps", "sage_update"}));
}

// As the whole step: g twice, W and the momentum there and back; and some numbers a column.
TEST(CudaSageStagesLaunches, ExactBytes) {
  for (const Mix& mix : mixes()) {
    for (const Size& size : {Size{100, 768}, {130, 1025}, {1, 4096}, {1000, 3}}) {
      SCOPED_TRACE(describe(mix) + ", " + std::to_string(size.rows) + " x " + std::to_string(size.cols));
      std::vector<SageProblem> problems = make_problems<SageProblem>(mix, {size}, 2);
      ++problems[0].step;
      const DeviceScalars scalars(kSageOptions.lr);
      Pieces<SageProblem> pieces(problems, kOne, 20);
      CudaSageStages stages(pieces, kSageOptions, scalars.get());
      const int64_t numel = size.rows * size.cols, cols = size.cols;
      const int64_t w = itemsize(mix.param), g = itemsize(mix.grad), m = itemsize(mix.state);
      const int64_t slots = plan_column_blocks(size.rows, cols, 16 / g).slots;
      Launches launches = launches_of([&] { stages.put_columns(); });
      expect_bytes(launches[0], numel * g, slots * cols * 4 + 4);
      expect_bytes(launches[1], slots * cols * 4, cols * 4);
      launches = launches_of([&] { stages.put_squares(); });
      const auto blocks = int64_t{launches[1].grid.x};
      expect_bytes(launches[1], cols * 8 + blocks * (16 + 4), cols * 8 + blocks * (16 + 4) + 16);
      launches = launches_of([&] { stages.finish(); });
      expect_bytes(launches[0], cols * 8, cols * 4 + 4);
      expect_bytes(launches[1], numel * (w + g + m), numel * (w + m));
    }
  }
}

class CudaScaleStagesLaunches : public ::testing::TestWithParam<cpu::ScaleOptions> {};

Names put_names(const cpu::ScaleOptions& o) {
  const std::string momentum = o.momentum == 0.0 ? "" : "momentum_";
  if (o.columns) return {"scale_" + momentum + "columns", "scale_norms"};
  return {"scale_" + momentum + "rows"};
}

TEST_P(CudaScaleStagesLaunches, FewForAllTensors) {
  std::vector<ScaleProblem> problems = make_problems<ScaleProblem>(testing::kBFloat, some_sizes(), 3);
  const DeviceScalars scalars(0.25);
  Pieces<ScaleProblem> pieces(problems, kOne, 30);
  CudaScaleStages stages(pieces, GetParam(), scalars.get());
  EXPECT_EQ(names_of(launches_of([&] { stages.put_sums(); })), put_names(GetParam()));
  EXPECT_EQ(names_of(launches_of([&] { stages.finish(); })), (Names{"scale_invert", "scale_update"}));
}

// As the whole step, but that a norm is a number of fp64 first.
TEST_P(CudaScaleStagesLaunches, ExactBytes) {
  const cpu::ScaleOptions& o = GetParam();
  for (const Mix& mix : mixes()) {
    for (const Size& size : {Size{100, 768}, {130, 1025}, {3, 9000}, {1000, 8}}) {
      SCOPED_TRACE(describe(mix) + ", " + std::to_string(size.rows) + " x " + std::to_string(size.cols));
      std::vector<ScaleProblem> problems = make_problems<ScaleProblem>(mix, {size}, 4);
      fill(problems[0].grad, 0.25);  // no zeros, which are looked at twice
      const DeviceScalars scalars(o.lr);
      Pieces<ScaleProblem> pieces(problems, kOne, 40);
      CudaScaleStages stages(pieces, o, scalars.get());
      const int64_t numel = size.rows * size.cols, cols = size.cols, norms = o.columns ? cols : size.rows;
      const int64_t w = itemsize(mix.param), g = itemsize(mix.grad);
      const int64_t m = o.momentum == 0.0 ? 0 : itemsize(mix.state), x = m == 0 ? g : m;
      const int64_t slots = plan_column_blocks(size.rows, cols, 16 / std::max(g, m)).slots * cols * 4;
      Launches launches = launches_of([&] { stages.put_sums(); });
      expect_bytes(launches[0], numel * (g + m), numel * m + (o.columns ? slots : norms * 8));
      if (o.columns) expect_bytes(launches[1], slots, norms * 8);
      launches = launches_of([&] { stages.finish(); });
      expect_bytes(launches[0], norms * 8, norms * 4);
      expect_bytes(launches[1], numel * (w + x), numel * w);
    }
  }
}

TEST(CudaSinkGDStagesLaunches, FewForAllTensors) {
  std::vector<SinkGDStack> problems = make_problems<SinkGDStack>(testing::kBFloat, some_sizes(), 5);
  const DeviceScalars scalars(0.5);
  Pieces<SinkGDStack> pieces(problems, kOne, 50);
  CudaSinkGDStages stages(pieces, with_iterations(2), scalars.get());
  for (const int i : {0, 1}) {
    // Rows that start on 16-byte boundaries, and others.
    EXPECT_EQ(names_of(launches_of([&] { stages.rows_and_columns(i); })),
              (Names{"sinkgd_rows", "sinkgd_rows", "sinkgd_columns"}));
    EXPECT_EQ(names_of(launches_of([&] { stages.take_columns(i); })), (Names{"sinkgd_column_scales"}));
    EXPECT_EQ(names_of(launches_of([&] { stages.put_rows(i); })), (Names{"sinkgd_row_sums"}));
    EXPECT_EQ(names_of(launches_of([&] { stages.take_rows(i); })), (Names{"sinkgd_row_scales"}));
    EXPECT_EQ(names_of(launches_of([&] { stages.put_columns(i); })), (Names{"sinkgd_row_shares", "sinkgd_columns"}));
  }
  EXPECT_EQ(names_of(launches_of([&] { stages.finish(); })), (Names{"sinkgd_update"}));
}

// The gradient once an iteration where the columns are whole, as FSDP2 cuts; twice where they are cut.
TEST(CudaSinkGDStagesLaunches, ExactBytes) {
  for (const Mix& mix : mixes()) {
    for (const Size& size : {Size{100, 1024}, {1000, 72}, {1, 4096}, {70, 777}}) {
      SCOPED_TRACE(describe(mix) + ", " + std::to_string(size.rows) + " x " + std::to_string(size.cols));
      std::vector<SinkGDStack> problems = make_problems<SinkGDStack>(mix, {size}, 6);
      fill(problems[0].grad, 0.25);  // no zeros, which are looked at twice
      const DeviceScalars scalars(kSinkGDOptions.lr);
      Pieces<SinkGDStack> pieces(problems, kOne, 60);
      CudaSinkGDStages stages(pieces, with_iterations(2), scalars.get());
      const int64_t numel = size.rows * size.cols, rows = size.rows, cols = size.cols;
      const int64_t w = itemsize(mix.param), g = itemsize(mix.grad);
      const int64_t slots = testing::SinkGDPlans(stages.tensors()).plans[0].row_blocks;
      for (const int i : {0, 1}) {
        const int64_t old = i == 0 ? 0 : 1;  // scales, which are 1 before the first iteration
        Launches launches = launches_of([&] { stages.rows_and_columns(i); });
        expect_bytes(launches[0], numel * g + old * rows * 4, rows * 4 + slots * cols * 4);
        const int64_t sums = cols * (i == 0 ? 8 : 4);
        expect_bytes(launches[1], slots * cols * 4 + old * cols * 4, sums);
        launches = launches_of([&] { stages.take_columns(i); });
        expect_bytes(launches[0], sums + old * cols * 4, cols * 4);
      }
      for (const int i : {0, 1}) {
        const int64_t old = i == 0 ? 0 : 1;
        Launches launches = launches_of([&] { stages.put_rows(i); });
        expect_bytes(launches[0], numel * g + old * rows * 4, rows * 8);
        launches = launches_of([&] { stages.take_rows(i); });
        expect_bytes(launches[0], rows * 8 + old * rows * 4, rows * 4);
        launches = launches_of([&] { stages.put_columns(i); });
        expect_bytes(launches[0], numel * g, slots * cols * 4);
        expect_bytes(launches[1], slots * cols * 4 + old * cols * 4, cols * (i == 0 ? 8 : 4));
        launches_of([&] { stages.take_columns(i); });
      }
      const Launches launches = launches_of([&] { stages.finish(); });
      expect_bytes(launches[0], numel * (g + w), numel * w);
    }
  }
}

TEST(CudaSinkGDStagesLaunches, AccessesAreCoalesced) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    std::vector<SinkGDStack> problems = make_problems<SinkGDStack>(mix, {{64, 2048}}, 7);
    const DeviceScalars scalars(kSinkGDOptions.lr);
    Pieces<SinkGDStack> pieces(problems, kOne, 70);
    CudaSinkGDStages stages(pieces, with_iterations(2), scalars.get());
    for (const int i : {0, 1}) {
      const auto expect_coalesced = [&](const auto& stage) {
        for (const simt::Launch& launch : launches_of(stage, true)) {
          // A warp's row has one number.
          EXPECT_GT(launch.sector_efficiency_read(), 0.99) << launch.kernel;
          EXPECT_GE(launch.sector_efficiency_written(), launch.kernel == "sinkgd_row_sums" ? 0.2 : 1.0)
              << launch.kernel;
        }
      };
      expect_coalesced([&] { stages.put_rows(i); });
      expect_coalesced([&] { stages.take_rows(i); });
      expect_coalesced([&] { stages.put_columns(i); });
      expect_coalesced([&] { stages.take_columns(i); });
    }
  }
}

// Nothing is read or written, sums included: `run` gets pieces and scalars.
template <typename Problem, typename Run>
void check_found_inf(const Run& run) {
  for (const Mesh& mesh : testing::kMeshes) {
    std::vector<Problem> problems = make_problems<Problem>(testing::kBFloat, some_sizes(), 8);
    count_step(problems);
    const std::vector<std::byte> before = result_bytes(problems);
    Pieces<Problem> pieces(problems, mesh, 80);
    const DeviceScalars scalars(0.5, 1.0, false, /*found_inf=*/1.0f);
    const Launches launches = launches_of([&] { run(pieces, scalars.get()); });
    EXPECT_FALSE(launches.empty());
    for (const simt::Launch& launch : launches) {
      if (launch.kernel == "cudaMemsetAsync") continue;  // of the workspace
      EXPECT_EQ(launch.bytes_read + launch.bytes_written, 0u) << launch.kernel;
    }
    pieces.gather();
    EXPECT_EQ(result_bytes(problems), before);
  }
}

TEST(CudaSageStagesLaunches, FoundInfChangesNothing) {
  check_found_inf<SageProblem>([](Pieces<SageProblem>& pieces, const cuda::StepScalars& scalars) {
    CudaSageStages stages(pieces, kSageOptions, scalars);
    stages.run();
    stages.expect_counted(false);
  });
}

TEST_P(CudaScaleStagesLaunches, FoundInfChangesNothing) {
  check_found_inf<ScaleProblem>([](Pieces<ScaleProblem>& pieces, const cuda::StepScalars& scalars) {
    CudaScaleStages(pieces, GetParam(), scalars).run();
  });
}

TEST(CudaSinkGDStagesLaunches, FoundInfChangesNothing) {
  check_found_inf<SinkGDStack>([](Pieces<SinkGDStack>& pieces, const cuda::StepScalars& scalars) {
    CudaSinkGDStages(pieces, with_iterations(2), scalars).run(pieces.mesh.columns > 1);
  });
}

INSTANTIATE_TEST_SUITE_P(All, CudaScaleStagesLaunches, ::testing::ValuesIn(testing::all_scale_options()));

// Pieces without elements, which have no sums to take, are in the tables of the squares and the steps.
TEST(CudaSageStagesLaunches, MoreTensorsThanATableHolds) {
  const std::vector<Size> sizes(400, {2, 5});
  const Mesh mesh{2, 1};
  std::vector<SageProblem> sage = make_problems<SageProblem>(testing::kFloat, sizes, 9);
  const Launches launches = launches_of([&] {
    ASSERT_NO_FATAL_FAILURE((testing::step_in_pieces_and_check<testing::Emulator<>>(sage, kSageOptions, mesh, 90)));
  });
  for (const char* name : {"sage_squares", "sage_steps"}) {
    EXPECT_GE(std::ranges::count(launches, name, &simt::Launch::kernel), 2 * 2) << name;
  }
}

// A process that has nothing at all has nothing to launch; SAGE's S and steps are everybody's.
TEST(CudaStagesLaunches, NothingToDo) {
  std::vector<SageProblem> sage;
  std::vector<ScaleProblem> scale;
  std::vector<SinkGDStack> sinkgd;
  EXPECT_TRUE(launches_of([&] {
                testing::step_in_pieces<testing::Emulator<>>(sage, kSageOptions, kOne, 100);
                testing::step_in_pieces<testing::Emulator<>>(scale, scale_options(true, true), kOne, 100);
                testing::step_in_pieces<testing::Emulator<>>(sinkgd, kSinkGDOptions, Mesh{1, 2}, 100);
              }).empty());
}

}  // namespace
}  // namespace sage_ext
