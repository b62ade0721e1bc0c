// What SinkGD's launches cost, and that their order of blocks, warps and lanes does not show.
#include "cuda/common/elements.cuh"
#include "sinkgd_support.h"

namespace sage_ext {
namespace {

using testing::cuda_sinkgd_step;
using testing::kSinkGDOptions;
using testing::launches_of;
using testing::make_sinkgd;
using testing::Mix;
using testing::names_of;
using testing::Shape;
using testing::SinkGDPlans;
using testing::SinkGDProblem;

cpu::SinkGDOptions with_iterations(int iterations) {
  cpu::SinkGDOptions options = kSinkGDOptions;
  options.iterations = iterations;
  return options;
}

TEST(CudaSinkGDLaunches, TwoAnIterationAndOne) {
  for (const int iterations : {1, 5}) {
    for (const std::vector<Shape>& shapes : {std::vector<Shape>{{5, 777}, {0, 3}, {131, 3}}, {{64, 64}, {3, 8}}}) {
      std::vector<SinkGDProblem> problems = make_sinkgd(testing::kBFloat, shapes, 1);
      std::vector<std::string> names;
      for (int i = 0; i < iterations; ++i) names.insert(names.end(), {"sinkgd_rows", "sinkgd_columns"});
      names.push_back("sinkgd_update");
      EXPECT_EQ(names_of(launches_of([&] { cuda_sinkgd_step(problems, with_iterations(iterations)); })), names);
    }
  }
}

// Each kind of rows has a launch: those that start on 16-byte boundaries and others, and those that fill the registers.
// Every iteration goes the other way round.
TEST(CudaSinkGDLaunches, OneForEachKindOfRows) {
  std::vector<SinkGDProblem> problems = make_sinkgd(testing::kBFloat, {{5, 777}, {64, 64}, {131, 3}, {17, 64}}, 1);
  const auto launches = launches_of([&] { cuda_sinkgd_step(problems, with_iterations(2)); });
  const std::vector<std::string> names = {"sinkgd_rows", "sinkgd_rows",    "sinkgd_columns", "sinkgd_rows",
                                          "sinkgd_rows", "sinkgd_columns", "sinkgd_update"};
  ASSERT_EQ(names_of(launches), names);
  const uint64_t on = (64 + 17) * 64 * 2, off = (5 * 777 + 131 * 3) * 2;
  EXPECT_EQ(launches[0].bytes_read, on);
  EXPECT_EQ(launches[1].bytes_read, off);
  EXPECT_EQ(launches[3].bytes_read, off + 4 * (5 + 131));
  EXPECT_EQ(launches[4].bytes_read, on + 4 * (64 + 17));
  problems = make_sinkgd(testing::kBFloat, {{4, 8200}, {64, 64}}, 1);
  EXPECT_EQ(names_of(launches_of([&] { cuda_sinkgd_step(problems, with_iterations(1)); })),
            (std::vector<std::string>{"sinkgd_rows", "sinkgd_rows", "sinkgd_columns", "sinkgd_update"}));
}

// The gradient once an iteration and once for the update, W there and back; the rest is a few numbers a row and column.
TEST(CudaSinkGDLaunches, ExactBytes) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat, Mix{DType::bfloat16, DType::float32, {}}}) {
    for (const Shape& shape : {Shape{300, 1024}, {1000, 72}, {1, 4096}, {70, 2048}, {1024, 8}}) {
      SCOPED_TRACE(describe(mix) + ", " + describe(shape));
      std::vector<SinkGDProblem> problems = make_sinkgd(mix, {shape}, 2);
      fill(problems[0].grad, 0.25);  // no zeros, which are looked at twice
      const SinkhornPlan plan = SinkGDPlans(cuda_tensors(problems)).plans[0];
      const auto launches = launches_of([&] { cuda_sinkgd_step(problems, with_iterations(3)); });
      ASSERT_EQ(launches.size(), 7u);
      const auto rows = static_cast<uint64_t>(shape.rows), cols = static_cast<uint64_t>(shape.cols);
      const auto g = static_cast<uint64_t>(itemsize(mix.grad)), w = static_cast<uint64_t>(itemsize(mix.param));
      const auto slots = static_cast<uint64_t>(plan.row_blocks);
      for (size_t i = 0; i < 3; ++i) {
        const simt::Launch& by_row = launches[2 * i];
        const simt::Launch& by_col = launches[2 * i + 1];
        const bool is_first = i == 0;  // every scale is 1 then
        EXPECT_EQ(by_row.grid.x, slots);
        EXPECT_EQ(by_row.bytes_read, rows * cols * g + (is_first ? 0 : rows * 4));
        EXPECT_EQ(by_row.bytes_written, rows * 4 + slots * cols * 4);
        EXPECT_EQ(by_row.uniform_bytes, slots * (4 + (is_first ? 0 : cols * 4)));  // found_inf
        EXPECT_EQ(by_col.bytes_read, slots * cols * 4 + (is_first ? 0 : cols * 4));
        EXPECT_EQ(by_col.bytes_written, cols * 4);
        EXPECT_EQ(by_col.uniform_bytes, by_col.grid.x * 4);
      }
      EXPECT_EQ(launches[6].bytes_read, rows * cols * (g + w));
      EXPECT_EQ(launches[6].bytes_written, rows * cols * w);
      uint64_t scales = 0;  // of the rows and columns that a block meets
      for (uint64_t begin = 0; begin < rows * cols; begin += cuda::kMapChunk) {
        const uint64_t end = std::min<uint64_t>(begin + cuda::kMapChunk, rows * cols);
        scales += (end - 1) / cols - begin / cols + 1 + std::min(cols, end - begin);
      }
      EXPECT_EQ(launches[6].uniform_bytes, scales * 4 + launches[6].grid.x * 4);
    }
  }
}

// Rows off the boundary are read once an iteration too, where they fit.
TEST(CudaSinkGDLaunches, ExactBytesOffTheBoundary) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    std::vector<SinkGDProblem> problems = make_sinkgd(mix, {{300, 777}, {70, 3}, {33, 1001}}, 3);
    const auto launches = launches_of([&] { cuda_sinkgd_step(problems, with_iterations(2)); });
    const uint64_t rows = 300 + 70 + 33, size = 300 * 777 + 70 * 3 + 33 * 1001;
    const auto item = static_cast<uint64_t>(itemsize(mix.grad));
    EXPECT_EQ(launches[0].bytes_read, size * item);
    EXPECT_EQ(launches[2].bytes_read, size * item + rows * 4);
    EXPECT_EQ(launches[4].bytes_read, size * item * 2);
    EXPECT_EQ(launches[4].bytes_written, size * item);
  }
}

TEST(CudaSinkGDLaunches, AccessesAreCoalesced) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    for (const Shape& shape : {Shape{64, 2048}, {304, 512}, {40, 4096}}) {
      SCOPED_TRACE(describe(mix) + ", " + describe(shape));
      std::vector<SinkGDProblem> problems = make_sinkgd(mix, {shape}, 4);
      const auto launches = launches_of([&] { cuda_sinkgd_step(problems, with_iterations(1)); }, true);
      EXPECT_GT(launches[0].sector_efficiency_read(), 0.99);
      EXPECT_EQ(launches[1].sector_efficiency_read(), 1.0);
      EXPECT_EQ(launches[1].sector_efficiency_written(), 1.0);
      EXPECT_EQ(launches[2].sector_efficiency_read(), 1.0);
      EXPECT_EQ(launches[2].sector_efficiency_written(), 1.0);
    }
  }
  // Rows of odd width start within a sector; the lanes go side by side.
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    std::vector<SinkGDProblem> problems = make_sinkgd(mix, {{300, 777}}, 4);
    const auto launches = launches_of([&] { cuda_sinkgd_step(problems, with_iterations(1)); }, true);
    EXPECT_GT(launches[0].sector_efficiency_read(), mix.grad == DType::float32 ? 0.75 : 0.6);
    EXPECT_GT(launches[2].sector_efficiency_written(), 0.99);
  }
}

TEST(CudaSinkGDLaunches, SchedulesGiveTheSameBits) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    for (const bool wide : {false, true}) {
      const auto run = [&] {
        std::vector<Shape> shapes = {{70, 72}, {5, 7}, {600, 1}, {0, 4}, {33, 1023}, {20, 2048}, {18, 4096}};
        if (wide) shapes = {{3, 16384}, {3, 41000}, {3, 8200}, {40, 8}, {3, 16383}};
        std::vector<SinkGDProblem> problems = make_sinkgd(mix, shapes, 5);
        for (int64_t i = 0; i < 72; ++i) problems[0].grad.set(72 + i, 0.0);  // a row for the rare path
        cuda_sinkgd_step(problems, with_iterations(2));
        std::vector<std::byte> bytes;
        for (const SinkGDProblem& p : problems) append(bytes, p.param);
        return bytes;
      };
      EXPECT_TRUE(simt::same_under_schedules(run, 5));
    }
  }
}

}  // namespace
}  // namespace sage_ext
