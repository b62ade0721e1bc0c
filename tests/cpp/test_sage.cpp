// SAGE against fp64: storage types, shapes, options, and the same bits whatever the threads.
#include "core/math/sign.h"
#include "sage_problem.h"

namespace sage_ext {
namespace {

using cpu::SageOptions;
using testing::Buffer;
using testing::kSageOptions;
using testing::make_sage;
using testing::Mix;
using testing::Random;
using testing::SageProblem;
using testing::Shape;
using testing::step_and_check;

TEST(SageStep, EveryMixOfDTypes) {
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    for (const int64_t offset : {0, 1}) {
      std::vector<SageProblem> problems = make_sage(mix, {{5, 777}, {37, 300}, {131, 3}, {1, 65}}, 1, offset);
      for (int step = 0; step < 3; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kSageOptions, 1));
    }
  }
}

TEST(SageStep, EveryShapeAlone) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    for (const Shape& shape : testing::all_shapes()) {
      std::vector<SageProblem> problems = make_sage(mix, {shape}, 2);
      for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kSageOptions, 2));
    }
  }
}

TEST(SageStep, EveryShapeInOneListWithEmptyTensors) {
  std::vector<Shape> shapes = testing::all_shapes();
  shapes.insert(shapes.begin(), {0, 5});
  shapes.insert(shapes.begin() + 7, {5, 0});
  shapes.push_back({0, 0});
  shapes.push_back({700, 96});  // whole strips; the second chunk begins within a row
  const Mix mix{DType::bfloat16, DType::float32, DType::float16};
  std::vector<SageProblem> problems = make_sage(mix, shapes, 3, 1);
  ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kSageOptions, 3));
}

TEST(SageStep, ThousandsOfSmallTensors) {
  std::vector<SageProblem> problems = make_sage(testing::kFloat, std::vector<Shape>(2000, {3, 5}), 4);
  ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kSageOptions, 2));
}

TEST(SageStep, NothingToDo) {
  std::vector<SageProblem> none;
  sage_step(none, kSageOptions, 2);
  std::vector<SageProblem> empty = make_sage(testing::kFloat, {{0, 3}}, 5);
  sage_step(empty, kSageOptions, 2);
}

// W starts at zero, so that the size of every update is visible to the last bits of fp32.
TEST(SageStep, OptionsOverSteps) {
  for (int bits = 0; bits < 48; ++bits) {
    SageOptions options = kSageOptions;
    options.weight_decay = (bits & 1) != 0 ? 0.3 : 0.0;
    options.eps = (bits & 2) != 0 ? 1e-8 : 0.0;
    options.momentum_first = (bits & 4) != 0;
    options.instant_damper = (bits & 8) != 0;
    options.grad_factor = bits < 16 ? 1.0 : bits < 32 ? -1.0 : 1.0 / 1024;
    SCOPED_TRACE("options " + std::to_string(bits));
    std::vector<SageProblem> problems = make_sage(testing::kFloat, {{64, 257}, {40, 9}, {1, 300}}, 6);
    Random random(60);
    for (int step = 0; step < 3; ++step) {
      for (SageProblem& problem : problems) {
        fill_gradient(problem.grad, problem.cols, random);
        if (bits % 2 == 0) fill(problem.param, 0.0);
      }
      ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options, 1));
    }
  }
}

TEST(SageStep, TheDamperNeverExceedsOneAndDampsLargeColumns) {
  std::vector<SageProblem> problems = make_sage(testing::kFloat, {{50, 400}}, 7);
  SageProblem& p = problems[0];
  fill(p.param, 0.0);
  for (int64_t row = 0; row < p.rows; ++row) p.grad.set(row * p.cols + 3, 100.0);
  SageOptions options = kSageOptions;
  options.weight_decay = 0.0;
  ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options, 1));
  const auto lr = static_cast<double>(static_cast<float>(options.lr));
  for (int64_t i = 0; i < p.param.numel(); ++i) ASSERT_LE(std::abs(p.param[i]), lr);
  // One column holds nearly all of the norm: its damper is about 1 / sqrt(cols).
  EXPECT_NEAR(-p.param[3], lr / 20.0, lr / 400.0);
}

// A column sum over very many rows: an fp32 accumulator would be off by much more than the tolerance.
TEST(SageStep, LongColumnsDoNotLoseAccuracy) {
  for (const int64_t cols : {1, 3, 300}) {
    std::vector<SageProblem> problems = make_sage(testing::kFloat, {{1'500'000 / cols, cols}}, 8);
    SageProblem& p = problems[0];
    Random random(80);
    for (int64_t i = 0; i < p.grad.numel(); ++i) p.grad.set(i, 1.0 + 0.25 * random.normal());
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kSageOptions, 2));
  }
}

// Column sums, root mean squares and dampers come out exact here, so their order cannot matter, and every
// instruction set has to give the bits of the scalar formula.
TEST(SageStep, BitsOfTheScalarFormula) {
  SageOptions options = kSageOptions;
  options.beta2 = 0.5;
  options.eps = 0.0;
  const LionCoefficients k = lion_coefficients(options.lr, options.beta1, options.beta2, options.weight_decay, false);
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    for (const Shape& shape : {Shape{64, 1023}, Shape{64, 5}, Shape{1, 4097}}) {
      std::vector<SageProblem> got = make_sage(mix, {shape}, 9, 1);
      std::vector<SageProblem> expected = make_sage(mix, {shape}, 9);
      std::vector<float> step(static_cast<size_t>(shape.cols));
      double mean_square = 0;
      for (int64_t j = 0; j < shape.cols; ++j) mean_square += std::exp2(2.0 * static_cast<double>(j % 7));
      const auto rms = static_cast<float>(std::sqrt(mean_square / static_cast<double>(shape.cols)));
      for (std::vector<SageProblem>* problems : {&got, &expected}) {
        SageProblem& p = problems->front();
        p.step = 1;
        Random random(90);
        for (int64_t i = 0; i < p.grad.numel(); ++i) {
          const double size = std::exp2(static_cast<double>(i % shape.cols % 7));
          p.grad.set(i, random.bits() % 2 == 0 ? size : -size);
          p.exp_avg.set(i, random.normal() * 10.0);
        }
      }
      SageProblem& e = expected[0];
      for (int64_t j = 0; j < shape.cols; ++j) {
        const auto size = static_cast<float>(std::exp2(static_cast<double>(j % 7)));
        step[static_cast<size_t>(j)] = static_cast<float>(options.lr) * std::min(rms / size, 1.0f);
        e.s_range.set(j, 0.5 * static_cast<double>(size));
      }
      for (int64_t i = 0; i < e.param.numel(); ++i) {
        auto w = static_cast<float>(e.param[i]);
        auto m = static_cast<float>(e.exp_avg[i]);
        lion_update(w, m, static_cast<float>(e.grad[i]), step[static_cast<size_t>(i % shape.cols)], k);
        e.param.set(i, w);
        e.exp_avg.set(i, m);
      }
      sage_step(got, options, 1);
      ASSERT_TRUE(same_bits(got[0].s_range, e.s_range)) << testing::describe(shape);
      ASSERT_TRUE(same_bits(got[0].exp_avg, e.exp_avg)) << testing::describe(shape);
      ASSERT_TRUE(same_bits(got[0].param, e.param)) << testing::describe(shape);
    }
  }
}

TEST(SageStep, ThreadsRunsAndCompanyGiveTheSameBits) {
  const std::vector<Shape> shapes = {{300, 1025}, {5, 7}, {65537, 1}, {0, 4}, {64, 4097}, {1, 30}, {2000, 33}};
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    const std::vector<SageProblem> start = make_sage(mix, shapes, 10);
    const auto run = [&](int threads) {
      std::vector<SageProblem> problems = start;
      for (SageProblem& problem : problems) problem.step = 2;
      sage_step(problems, kSageOptions, threads);
      return problems;
    };
    const auto expect_same = [](const SageProblem& a, const SageProblem& b) {
      EXPECT_EQ(a.param.bytes(), b.param.bytes());
      EXPECT_EQ(a.exp_avg.bytes(), b.exp_avg.bytes());
      EXPECT_EQ(a.s_range.bytes(), b.s_range.bytes());
      EXPECT_EQ(a.grad.bytes(), b.grad.bytes());
    };
    const std::vector<SageProblem> first = run(1);
    for (const int threads : {1, 2, 3, 5}) {
      const std::vector<SageProblem> again = run(threads);
      for (size_t i = 0; i < shapes.size(); ++i) expect_same(again[i], first[i]);
    }
    // Alone, each tensor takes the same step as in the list.
    for (size_t i = 0; i < shapes.size(); ++i) {
      std::vector<SageProblem> alone = make_sage(mix, {shapes[i]}, 0);
      alone[0].param.assign(start[i].param.bytes());
      alone[0].grad.assign(start[i].grad.bytes());
      alone[0].step = 2;
      sage_step(alone, kSageOptions, 2);
      expect_same(alone[0], first[i]);
    }
  }
}

}  // namespace
}  // namespace sage_ext
