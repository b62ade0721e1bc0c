// SCALE's launches: how many, exactly which bytes they move, coalesced, and the same bits under every schedule.
#include "core/launch_plan.h"
#include "scale_support.h"

namespace sage_ext {
namespace {

using cpu::ScaleOptions;
using testing::all_scale_options;
using testing::bytes_of;
using testing::cuda_scale_step;
using testing::launches_of;
using testing::make_scale;
using testing::Mix;
using testing::names_of;
using testing::ScaleProblem;
using testing::Shape;

class CudaScaleLaunches : public ::testing::TestWithParam<ScaleOptions> {};

std::vector<std::string> names(const ScaleOptions& o) {
  const std::string momentum = o.momentum == 0.0 ? "" : "momentum_";
  if (o.columns) return {"scale_" + momentum + "columns", "scale_norms", "scale_update"};
  return {"scale_" + momentum + "rows", "scale_update"};
}

// Two launches for rows and three for columns, however many tensors.
TEST_P(CudaScaleLaunches, FewForAllTensors) {
  std::vector<ScaleProblem> problems = make_scale(testing::kBFloat, std::vector<Shape>(200, {9, 40}), 1);
  EXPECT_EQ(names_of(launches_of([&] { cuda_scale_step(problems, GetParam()); })), names(GetParam()));
}

// x is read twice: g, or with momentum first g and m, of which m is written, and then m. W once, there and back. The
// rest is a number for each row, or the slots of sums and a number for each column.
TEST_P(CudaScaleLaunches, ExactBytes) {
  const ScaleOptions& o = GetParam();
  for (const Mix& mix : {testing::kFloat, testing::kBFloat, Mix{DType::bfloat16, DType::bfloat16, DType::float32}}) {
    for (const Shape& shape : {Shape{512, 768}, {300, 1025}, {8, 9000}, {1000, 8}}) {
      SCOPED_TRACE(describe(mix) + ", " + describe(shape));
      std::vector<ScaleProblem> problems = make_scale(mix, {shape}, 2);
      const std::vector<simt::Launch> launches = launches_of([&] { cuda_scale_step(problems, o); });
      ASSERT_EQ(names_of(launches), names(o));
      const auto numel = static_cast<uint64_t>(shape.rows * shape.cols);
      const auto w = static_cast<uint64_t>(itemsize(mix.param));
      const auto g = static_cast<uint64_t>(itemsize(mix.grad));
      const uint64_t m = o.momentum == 0.0 ? 0 : static_cast<uint64_t>(itemsize(mix.state));
      const uint64_t x = m == 0 ? g : m;
      const ColumnBlocks plan = plan_column_blocks(shape.rows, shape.cols, 16 / static_cast<int64_t>(std::max(g, m)));
      const auto slots = static_cast<uint64_t>(plan.slots * shape.cols) * 4;
      EXPECT_EQ(launches[0].bytes_read, numel * (g + m));
      EXPECT_EQ(launches[0].bytes_written, numel * m + (o.columns ? slots : static_cast<uint64_t>(shape.rows) * 4));
      if (o.columns) {
        EXPECT_EQ(launches[1].bytes_read, slots);
        EXPECT_EQ(launches[1].bytes_written, static_cast<uint64_t>(shape.cols) * 4);
      }
      EXPECT_EQ(launches.back().bytes_read, numel * (w + x));
      EXPECT_EQ(launches.back().bytes_written, numel * w);
    }
  }
}

TEST_P(CudaScaleLaunches, AccessesAreCoalesced) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    std::vector<ScaleProblem> problems = make_scale(mix, {{256, 1024}}, 3);
    const auto launches = launches_of([&] { cuda_scale_step(problems, GetParam()); }, true);
    EXPECT_GT(launches.front().sector_efficiency_read(), 0.99);
    if (GetParam().momentum != 0.0) {
      EXPECT_GT(launches.front().sector_efficiency_written(), 0.95);
    }
    EXPECT_GT(launches.back().sector_efficiency_read(), 0.99);
    EXPECT_EQ(launches.back().sector_efficiency_written(), 1.0);
  }
}

TEST_P(CudaScaleLaunches, SchedulesGiveTheSameBits) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    const auto run = [&] {
      std::vector<ScaleProblem> problems = make_scale(mix, {{300, 77}, {3, 9000}, {700, 2}, {0, 3}}, 4, int64_t{1});
      for (int step = 0; step < 2; ++step) cuda_scale_step(problems, GetParam());
      return bytes_of(problems);
    };
    EXPECT_TRUE(simt::same_under_schedules(run, 5));
  }
}

// A tensor's bits do not depend on what else is in the list.
TEST_P(CudaScaleLaunches, CompanyDoesNotShow) {
  std::vector<ScaleProblem> alone = make_scale(testing::kBFloat, {{70, 300}}, 5);
  std::vector<ScaleProblem> together = make_scale(testing::kBFloat, {{70, 300}, {9, 9000}, {31, 5}}, 5);
  cuda_scale_step(alone, GetParam());
  cuda_scale_step(together, GetParam());
  EXPECT_EQ(alone[0].param.bytes(), together[0].param.bytes());
  EXPECT_EQ(alone[0].exp_avg.bytes(), together[0].exp_avg.bytes());
}

INSTANTIATE_TEST_SUITE_P(All, CudaScaleLaunches, ::testing::ValuesIn(all_scale_options()));

}  // namespace
}  // namespace sage_ext
