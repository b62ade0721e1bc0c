// SCALE against fp64: storage types, shapes, options, traps, and the same bits whatever the threads.
#include "core/math/scale.h"
#include "scale_problem.h"

namespace sage_ext {
namespace {

using cpu::ScaleOptions;
using testing::all_scale_options;
using testing::bytes_of;
using testing::make_experts;
using testing::make_scale;
using testing::Mix;
using testing::Random;
using testing::ScaleProblem;
using testing::Shape;
using testing::step_and_check;

TEST(ScaleInverse, NormEpsAndZero) {
  EXPECT_EQ(scale_inverse(/*sum_sq=*/16.0, /*mean_factor=*/1.0, /*eps=*/0.0), 0.25f);
  EXPECT_EQ(scale_inverse(16.0, scale_mean_factor(true, 4), 0.0), 0.5f);
  EXPECT_EQ(scale_mean_factor(false, 4), 1.0);
  EXPECT_EQ(scale_inverse(16.0, 1.0, 8.0), 0.125f);
  EXPECT_EQ(scale_inverse(0.0, 1.0, 0.0), 0.0f);
  EXPECT_EQ(scale_inverse(0.0, 1.0, 0.5), 2.0f);
  EXPECT_EQ(scale_inverse(testing::kInf, 1.0, 0.0), 0.0f);
  EXPECT_TRUE(std::isnan(scale_inverse(testing::kNaN, 1.0, 0.5)));
  EXPECT_TRUE(std::isfinite(scale_inverse(1e-90, 1.0, 0.0)));
}

// Rows or columns, without and with momentum.
class ScaleStep : public ::testing::TestWithParam<ScaleOptions> {};

TEST_P(ScaleStep, EveryMixOfDTypes) {
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    for (const int64_t offset : {0, 1}) {
      std::vector<ScaleProblem> problems = make_scale(mix, {{5, 777}, {37, 300}, {131, 3}, {1, 65}}, 1, offset);
      for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, GetParam(), 1));
    }
  }
}

TEST_P(ScaleStep, EveryShapeInOneListWithEmptyTensors) {
  std::vector<Shape> shapes = testing::all_shapes();
  shapes.insert(shapes.begin(), {0, 5});
  shapes.insert(shapes.begin() + 7, {5, 0});
  shapes.push_back({0, 0});
  shapes.push_back({700, 96});  // whole strips; the second chunk begins within a row
  for (const Mix& mix : {testing::kFloat, testing::kBFloat, Mix{DType::bfloat16, DType::float32, DType::float16}}) {
    std::vector<ScaleProblem> problems = make_scale(mix, shapes, 3, 1);
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, GetParam(), 3));
  }
}

TEST_P(ScaleStep, Experts) {
  for (const Shape& shape : {Shape{17, 29}, {64, 256}, {3, 1}}) {
    std::vector<ScaleProblem> problems = make_experts(testing::kFloat, 5, shape, 4);
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, GetParam(), 2));
  }
}

TEST_P(ScaleStep, NothingToDo) {
  std::vector<ScaleProblem> none;
  scale_step(none, GetParam(), 2);
  std::vector<ScaleProblem> empty = make_scale(testing::kFloat, {{0, 3}}, 5);
  scale_step(empty, GetParam(), 2);
}

// W starts at zero, so that the size of every update is visible to the last bits of fp32.
TEST_P(ScaleStep, OptionsOverSteps) {
  for (int bits = 0; bits < 24; ++bits) {
    ScaleOptions options = GetParam();
    options.weight_decay = (bits & 1) != 0 ? 0.3 : 0.0;
    options.rms = (bits & 2) != 0;
    options.eps = (bits & 4) != 0 ? 0.25 : 0.0;
    options.grad_factor = bits < 8 ? 1.0 : bits < 16 ? -1.0 : 1.0 / 1024;
    SCOPED_TRACE("options " + std::to_string(bits));
    std::vector<ScaleProblem> problems = make_scale(testing::kFloat, {{64, 257}, {40, 9}, {1, 300}}, 6);
    if (bits % 2 == 0) fill(problems[0].param, 0.0);
    for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options, 1));
  }
}

TEST_P(ScaleStep, ZeroRowsAndColumnsStayPut) {
  for (const double eps : {0.0, 1e-8}) {
    ScaleOptions options = GetParam();
    options.eps = eps;
    options.weight_decay = 0.0;
    std::vector<ScaleProblem> problems = make_scale(testing::kFloat, {{40, 300}, {300, 5}}, 7);
    std::vector<std::vector<double>> before;
    for (ScaleProblem& p : problems) {
      fill(p.exp_avg, 0.0);
      for (int64_t i = 0; i < p.grad.numel(); ++i) {
        if (i / p.cols % 2 == 0 || i % p.cols % 3 == 0) p.grad.set(i, 0.0);
      }
      before.push_back(p.param.values());
    }
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options, 2));
    for (size_t k = 0; k < problems.size(); ++k) {
      EXPECT_EQ(testing::count_nan(problems[k].param), 0);
      for (int64_t i = 0; i < problems[k].param.numel(); ++i) {
        if (problems[k].grad[i] == 0.0) {
          ASSERT_EQ(problems[k].param[i], before[k][static_cast<size_t>(i)]);
        }
      }
    }
  }
}

// Squares of 1e-20 vanish in fp32, and those of 1e20 are infinite: the norms of what is much smaller or larger still
// are numbers of fp32.
TEST_P(ScaleStep, TinyAndHugeGradients) {
  for (const double scale : {1e-30, 1e35}) {
    for (const double eps : {0.0, 1e-8}) {
      ScaleOptions options = GetParam();
      options.eps = eps;
      std::vector<ScaleProblem> problems = make_scale(testing::kFloat, {{64, 300}, {300, 3}, {1, 9000}}, 8);
      for (ScaleProblem& p : problems) {
        fill(p.exp_avg, 0.0);
        fill(p.param, 0.0);
        for (int64_t i = 0; i < p.grad.numel(); ++i) p.grad.set(i, p.grad[i] * scale);
      }
      ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options, 1));
    }
  }
}

TEST_P(ScaleStep, NonFiniteGradients) {
  for (const double value : {testing::kNaN, testing::kInf, -testing::kInf}) {
    std::vector<ScaleProblem> problems = make_scale(testing::kFloat, {{20, 300}}, 9);
    problems[0].grad.set(0, value);
    problems[0].grad.set(20 * 300 - 1, value);
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, GetParam(), 1));
    EXPECT_TRUE(std::isnan(problems[0].param[0]));
    EXPECT_FALSE(std::isnan(problems[0].param[301]));
  }
}

// Over very many entries of one size an fp32 accumulator would be off by much more than the tolerance.
TEST_P(ScaleStep, LongSumsDoNotLoseAccuracy) {
  for (const Shape& shape : {Shape{1'000'000, 1}, {300'000, 3}, {1, 1'000'000}, {3, 300'000}}) {
    std::vector<ScaleProblem> problems = make_scale(testing::kFloat, {shape}, 10);
    fill(problems[0].grad, 1.37);
    fill(problems[0].exp_avg, 0.0);
    fill(problems[0].param, 0.0);
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, GetParam(), 2));
  }
}

TEST_P(ScaleStep, ThreadsAndRunsGiveTheSameBits) {
  const std::vector<Shape> shapes = {{1031, 257}, {70000, 3}, {3, 70000}, {0, 4}, {257, 4100}};
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    const std::vector<ScaleProblem> start = make_scale(mix, shapes, 11);
    std::vector<std::byte> first;
    for (const int threads : {1, 1, 2, 3, 5}) {
      std::vector<ScaleProblem> problems = start;
      scale_step(problems, GetParam(), threads);
      if (first.empty()) first = bytes_of(problems);
      EXPECT_TRUE(bytes_of(problems) == first);
    }
  }
}

// The sum of a row is taken while the row before it moves, or alone: that must not show.
TEST_P(ScaleStep, ARowMovesAlikeWhereverItLies) {
  if (GetParam().columns) GTEST_SKIP() << "rows are what is normalised";
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    for (const Shape& shape : {Shape{37, 300}, Shape{19, 1600}, Shape{21, 7}}) {
      std::vector<ScaleProblem> whole = make_scale(mix, {shape}, 13);
      std::vector<ScaleProblem> rows = whole;
      rows[0].matrices = shape.rows;
      rows[0].rows = 1;
      std::vector<ScaleProblem> staged = whole;
      std::vector<cpu::ScaleMatrix> views;
      staged[0].append_views(GetParam(), views);
      std::vector<double> sums(static_cast<size_t>(shape.rows));
      double* const out = sums.data();
      cpu::ScaleStep stages(std::move(views), GetParam());
      stages.put_sums(2, {&out, 1});
      stages.update(2, {&out, 1});
      scale_step(whole, GetParam(), 1);
      scale_step(rows, GetParam(), 1);
      EXPECT_TRUE(bytes_of(rows) == bytes_of(whole));
      EXPECT_TRUE(bytes_of(staged) == bytes_of(whole));
    }
  }
}

TEST_P(ScaleStep, TheGradientIsOnlyRead) {
  std::vector<ScaleProblem> problems = make_scale(testing::kBFloat, {{100, 300}}, 12);
  const std::vector<std::byte> before = problems[0].grad.bytes();
  scale_step(problems, GetParam(), 2);
  EXPECT_EQ(problems[0].grad.bytes(), before);
}

INSTANTIATE_TEST_SUITE_P(All, ScaleStep, ::testing::ValuesIn(all_scale_options()));

}  // namespace
}  // namespace sage_ext
