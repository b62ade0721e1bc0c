// What SAGE's launches cost, and that their order of blocks, warps and lanes does not show.
#include "cuda/common/multi_tensor.cuh"
#include "cuda/sage_support.h"

namespace sage_ext {
namespace {

using cpu::SageOptions;
using testing::cuda_sage_step;
using testing::kSageOptions;
using testing::make_sage;
using testing::Mix;
using testing::Random;
using testing::SageProblem;
using testing::Shape;

std::vector<simt::Launch> launches_of(std::vector<SageProblem>& problems, bool count_sectors = false) {
  simt::Session session({.count_sectors = count_sectors});
  for (SageProblem& p : problems) ++p.step;
  cuda_sage_step(problems, kSageOptions);
  return session.launches();
}

std::vector<std::string> names_of(const std::vector<simt::Launch>& launches) {
  std::vector<std::string> names;
  for (const simt::Launch& launch : launches) names.push_back(launch.kernel);
  return names;
}

using Names = std::vector<std::string>;

TEST(CudaSageLaunches, ThreeForOneMix) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    std::vector<SageProblem> problems = make_sage(mix, {{5, 777}, {1, 65}, {0, 3}, {131, 3}, {600, 64}}, 1);
    EXPECT_EQ(names_of(launches_of(problems)), (Names{"sage_sums", "sage_average", "sage_update"}));
  }
  std::vector<SageProblem> empty = make_sage(testing::kFloat, {{0, 3}}, 1);
  EXPECT_EQ(names_of(launches_of(empty)), (Names{"sage_average"}));
}

// Only the dtypes that a launch works with tell launches apart.
TEST(CudaSageLaunches, OneForWhatEachReads) {
  std::vector<SageProblem> problems;
  Random random(2);
  for (const DType param : testing::kDTypes) {
    problems.emplace_back(Mix{param, DType::bfloat16, DType::float32}, Shape{40, 30});
    problems.back().fill(random);
  }
  EXPECT_EQ(names_of(launches_of(problems)),
            (Names{"sage_sums", "sage_average", "sage_update", "sage_update", "sage_update"}));
}

TEST(CudaSageLaunches, MoreTensorsThanATableHolds) {
  std::vector<Shape> shapes(900, {3, 5});
  shapes.back() = {0, 5};
  std::vector<SageProblem> problems = make_sage(testing::kFloat, shapes, 3);
  simt::Session session;
  ASSERT_NO_FATAL_FAILURE(testing::cuda_step_and_check(problems, kSageOptions));
  EXPECT_EQ(names_of(session.launches()), (Names{"sage_sums", "sage_sums", "sage_sums", "sage_average", "sage_average",
                                                 "sage_average", "sage_update", "sage_update"}));
}

// What a step has to move: g twice, W and the momentum there and back. The rest is a few numbers a column. The steps
// that the update reads again and again come from a cache: uniform_bytes has them once a block.
TEST(CudaSageLaunches, ExactBytes) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat, Mix{DType::bfloat16, DType::bfloat16, DType::float32}}) {
    for (const Shape& shape : {Shape{513, 768}, {300, 1025}, {1, 4096}, {70, 2048}, {1000, 1}}) {
      SCOPED_TRACE(describe(mix) + ", " + describe(shape));
      std::vector<SageProblem> problems = make_sage(mix, {shape}, 4);
      const std::vector<simt::Launch> launches = launches_of(problems);
      ASSERT_EQ(launches.size(), 3u);
      const auto numel = static_cast<uint64_t>(shape.rows * shape.cols);
      const auto cols = static_cast<uint64_t>(shape.cols);
      const auto w = static_cast<uint64_t>(itemsize(mix.param));
      const auto g = static_cast<uint64_t>(itemsize(mix.grad));
      const auto m = static_cast<uint64_t>(itemsize(mix.state));
      const ColumnBlocks plan = plan_column_blocks(shape.rows, shape.cols, 16 / itemsize(mix.grad));
      const auto slots = static_cast<uint64_t>(plan.slots);
      const auto blocks = static_cast<uint64_t>(ceil_div(shape.cols, plan.average_cols));

      EXPECT_EQ(launches[0].grid.x, plan.row_blocks * plan.tiles);
      EXPECT_EQ(launches[0].bytes_read, numel * g);
      EXPECT_EQ(launches[0].bytes_written, slots * cols * 4 + 4);  // and the counter of blocks
      // The slots and S; s and S; lr * H. Each block: two sums of squares, its place in the count.
      EXPECT_EQ(launches[1].grid.x, blocks);
      EXPECT_EQ(launches[1].bytes_read, slots * cols * 4 + cols * 4 + cols * 8 + blocks * (16 + 4));
      EXPECT_EQ(launches[1].bytes_written, cols * 8 + cols * 4 + blocks * (16 + 4) + 4);
      EXPECT_EQ(launches[1].atomics, blocks);
      EXPECT_EQ(launches[2].bytes_read, numel * (w + g + m));
      // The steps and found_inf; where rows are odd, some steps are read both alone and in fours.
      EXPECT_LE(launches[2].uniform_bytes, launches[2].grid.x * (2 * cols * 4 + 4));
      EXPECT_EQ(launches[2].bytes_written, numel * (w + m));
    }
  }
}

// 12 bytes a parameter in bf16, and scratch of less than 3 % where columns have some hundred rows.
TEST(CudaSageLaunches, ScratchIsSmall) {
  std::vector<SageProblem> problems = make_sage(testing::kBFloat, {{2048, 1024}}, 5);
  uint64_t bytes = 0;
  for (const simt::Launch& launch : launches_of(problems)) bytes += launch.bytes_read + launch.bytes_written;
  const uint64_t numel = 2048 * 1024;
  EXPECT_GE(bytes, 12 * numel);
  EXPECT_LE(bytes, 12 * numel * 103 / 100);
}

TEST(CudaSageLaunches, AccessesAreCoalesced) {
  for (const Shape& shape : {Shape{64, 2048}, {1, 65536}, {65536, 1}}) {
    SCOPED_TRACE(describe(shape));
    const bool wide = shape.cols > 1;  // a column's sums are a few numbers, nothing to coalesce
    std::vector<SageProblem> floats = make_sage(testing::kFloat, {shape}, 6);
    std::vector<simt::Launch> launches = launches_of(floats, true);
    EXPECT_EQ(launches[0].sector_efficiency_read(), 1.0);
    EXPECT_GT(launches[0].sector_efficiency_written(), wide ? 0.99 : 0.1);
    EXPECT_GT(launches[1].sector_efficiency_read(), wide ? 0.95 : 0.1);
    EXPECT_GT(launches[1].sector_efficiency_written(), wide ? 0.95 : 0.1);
    EXPECT_EQ(launches[2].sector_efficiency_written(), 1.0);

    std::vector<SageProblem> halves = make_sage(testing::kBFloat, {shape}, 6);
    const std::vector<simt::Launch> narrow = launches_of(halves, true);
    EXPECT_EQ(narrow[0].sector_efficiency_read(), 1.0);
    EXPECT_EQ(narrow[2].sector_efficiency_written(), 1.0);
    EXPECT_EQ(launches[2].sector_efficiency_read(), 1.0);
    EXPECT_EQ(narrow[2].sector_efficiency_read(), 1.0);
  }
  // Rows of odd width start within a sector, which two warps then read.
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    std::vector<SageProblem> odd = make_sage(mix, {{130, 1025}}, 6);
    const std::vector<simt::Launch> launches = launches_of(odd, true);
    EXPECT_GT(launches[0].sector_efficiency_read(), 0.96);
    EXPECT_GT(launches[2].sector_efficiency_written(), 0.99);
  }
  // A gradient off the boundary goes one by one, but neighbours together.
  std::vector<SageProblem> odd = make_sage(testing::kFloat, {{64, 2048}}, 6, 1);
  EXPECT_GT(launches_of(odd, true)[0].sector_efficiency_read(), 0.75);
}

TEST(CudaSageLaunches, SchedulesGiveTheSameBits) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    const auto run = [&] {
      std::vector<SageProblem> problems =
          make_sage(mix, {{300, 1025}, {5, 7}, {9000, 1}, {0, 4}, {64, 2049}, {1, 3000}, {2100, 33}, {1100, 260}}, 7);
      std::vector<std::byte> bytes;
      for (int step = 0; step < 2; ++step) {
        for (SageProblem& p : problems) ++p.step;
        cuda_sage_step(problems, kSageOptions);
      }
      for (SageProblem& p : problems) {
        for (testing::Buffer* b : {&p.param, &p.exp_avg, &p.s_range}) {
          const std::vector<std::byte> part = b->bytes();
          bytes.insert(bytes.end(), part.begin(), part.end());
        }
      }
      return bytes;
    };
    EXPECT_TRUE(simt::same_under_schedules(run, 5));
  }
}

// Alone, each tensor takes the same step as in a list.
TEST(CudaSageLaunches, CompanyDoesNotShow) {
  const std::vector<Shape> shapes = {{300, 1025}, {5, 7}, {9000, 1}, {64, 2049}, {1, 300}};
  std::vector<SageProblem> list = make_sage(testing::kBFloat, shapes, 8);
  std::vector<SageProblem> start = make_sage(testing::kBFloat, shapes, 8);
  launches_of(list);
  for (size_t i = 0; i < shapes.size(); ++i) {
    std::vector<SageProblem> alone;
    alone.push_back(std::move(start[i]));
    launches_of(alone);
    EXPECT_EQ(alone[0].param.bytes(), list[i].param.bytes());
    EXPECT_EQ(alone[0].exp_avg.bytes(), list[i].exp_avg.bytes());
    EXPECT_EQ(alone[0].s_range.bytes(), list[i].s_range.bytes());
  }
}

// The CPU's step and this one differ in the order of the column sums alone: the momenta are the same bits, and so is
// the sign of every update. Here W is nothing but updates.
TEST(CudaSageLaunches, AgreesWithTheCpu) {
  SageOptions options = kSageOptions;
  options.weight_decay = 0.0;
  for (const DType grad : testing::kDTypes) {
    const Mix mix{DType::float32, grad, DType::float32};
    const std::vector<Shape> shapes = {{300, 1025}, {5, 7}, {9000, 1}, {64, 2049}, {1, 300}, {513, 768}};
    std::vector<SageProblem> gpu = make_sage(mix, shapes, 9);
    std::vector<SageProblem> cpu = make_sage(mix, shapes, 9);
    Random random(90);
    for (int step = 0; step < 3; ++step) {
      for (size_t i = 0; i < shapes.size(); ++i) {
        for (int64_t k = 0; k < gpu[i].grad.numel(); ++k) gpu[i].grad.set(k, random.normal());
        cpu[i].grad.assign(gpu[i].grad.bytes());
        fill(gpu[i].param, 0.0);
        fill(cpu[i].param, 0.0);
        ++gpu[i].step;
        ++cpu[i].step;
      }
      cuda_sage_step(gpu, options);
      sage_step(cpu, options, 1);
      for (size_t i = 0; i < shapes.size(); ++i) {
        ASSERT_TRUE(same_bits(gpu[i].exp_avg, cpu[i].exp_avg));
        for (int64_t k = 0; k < gpu[i].param.numel(); ++k) {
          ASSERT_NEAR(gpu[i].param[k], cpu[i].param[k], 1e-5 * std::abs(cpu[i].param[k])) << i << " " << k;
        }
        for (int64_t j = 0; j < gpu[i].cols; ++j) {
          ASSERT_NEAR(gpu[i].s_range[j], cpu[i].s_range[j], 1e-6 * cpu[i].s_range[j]) << i << " " << j;
        }
      }
    }
  }
}

// Where column sums come out exact, so that their order cannot matter, both take the same step to the last bit.
TEST(CudaSageLaunches, BitsOfTheCpuWhereSumsAreExact) {
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    const std::vector<Shape> shapes = {{64, 1023}, {64, 5}, {1, 4097}};
    std::vector<SageProblem> gpu = make_sage(mix, shapes, 10, 1);
    std::vector<SageProblem> cpu = make_sage(mix, shapes, 10);
    Random random(100);
    SageOptions options = kSageOptions;
    options.beta2 = 0.5;
    options.grad_factor = -0.25;
    for (size_t i = 0; i < shapes.size(); ++i) {
      for (int64_t k = 0; k < gpu[i].grad.numel(); ++k) {
        const double size = std::exp2(static_cast<double>(k % shapes[i].cols % 7));
        gpu[i].grad.set(k, random.bits() % 2 == 0 ? size : -size);
        gpu[i].exp_avg.set(k, random.normal() * 10.0);
      }
      cpu[i].grad.assign(gpu[i].grad.bytes());
      cpu[i].exp_avg.assign(gpu[i].exp_avg.bytes());
      gpu[i].step = cpu[i].step = 1;
    }
    cuda_sage_step(gpu, options);
    sage_step(cpu, options, 1);
    for (size_t i = 0; i < shapes.size(); ++i) {
      ASSERT_TRUE(same_bits(gpu[i].s_range, cpu[i].s_range));
      ASSERT_TRUE(same_bits(gpu[i].exp_avg, cpu[i].exp_avg));
      ASSERT_TRUE(same_bits(gpu[i].param, cpu[i].param));
    }
  }
}

}  // namespace
}  // namespace sage_ext
