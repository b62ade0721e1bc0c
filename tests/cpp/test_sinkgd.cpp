// SinkGD against fp64: storage types, shapes, options, and the same bits whatever the threads and the company.
#include "sinkgd_problem.h"

namespace sage_ext {
namespace {

using cpu::SinkGDOptions;
using testing::kSinkGDOptions;
using testing::make_sinkgd;
using testing::Mix;
using testing::Random;
using testing::Shape;
using testing::SinkGDProblem;
using testing::step_and_check;

std::vector<Mix> mixes_without_state() {
  std::vector<Mix> mixes;
  for (const DType param : testing::kDTypes) {
    for (const DType grad : testing::kDTypes) mixes.push_back({param, grad, DType::float32});
  }
  return mixes;
}

TEST(SinkGDStep, EveryMixOfDTypes) {
  for (const Mix& mix : mixes_without_state()) {
    SCOPED_TRACE(testing::describe(mix));
    for (const int64_t offset : {0, 1}) {
      std::vector<SinkGDProblem> problems = make_sinkgd(mix, {{5, 777}, {37, 300}, {131, 3}, {1, 65}}, 1, offset);
      for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kSinkGDOptions, 1));
    }
  }
}

TEST(SinkGDStep, EveryMixOfDTypesShared) {
  for (const Mix& mix : mixes_without_state()) {
    SCOPED_TRACE(testing::describe(mix));
    std::vector<SinkGDProblem> problems = make_sinkgd(mix, {{257, 701}}, 2, 1);
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kSinkGDOptions, 3));
  }
}

// Alone, matrices of more than 2^17 elements are cut into blocks and shared.
TEST(SinkGDStep, EveryShapeAlone) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    for (const Shape& shape : testing::all_shapes()) {
      std::vector<SinkGDProblem> problems = make_sinkgd(mix, {shape}, 3);
      ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kSinkGDOptions, 2));
    }
  }
}

TEST(SinkGDStep, EveryShapeInOneListWithEmptyMatrices) {
  std::vector<Shape> shapes = testing::all_shapes();
  shapes.insert(shapes.begin(), {0, 5});
  shapes.insert(shapes.begin() + 7, {5, 0});
  shapes.push_back({0, 0});
  for (const int threads : {1, 3}) {
    std::vector<SinkGDProblem> problems = make_sinkgd({DType::bfloat16, DType::float32, DType::float32}, shapes, 4, 1);
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kSinkGDOptions, threads));
  }
}

TEST(SinkGDStep, ThousandsOfSmallMatrices) {
  std::vector<SinkGDProblem> problems = make_sinkgd(testing::kFloat, std::vector<Shape>(2000, {4, 5}), 5);
  ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kSinkGDOptions, 2));
}

// Up to 32 rows and columns a matrix has a path of its own, padded to eight of either.
TEST(SinkGDStep, EveryTinyShape) {
  std::vector<Shape> shapes;
  for (const int64_t rows : {1, 2, 7, 8, 9, 31, 32, 33}) {
    for (const int64_t cols : {1, 2, 7, 8, 9, 31, 32, 33}) shapes.push_back({rows, cols});
  }
  for (const Mix& mix : mixes_without_state()) {
    SCOPED_TRACE(testing::describe(mix));
    for (const int iterations : {1, 2, 5}) {
      for (const bool unit : {false, true}) {
        SinkGDOptions options = kSinkGDOptions;
        options.iterations = iterations;
        options.unit = unit;
        std::vector<SinkGDProblem> problems = make_sinkgd(mix, shapes, 6, 1);
        ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options, 1));
      }
    }
  }
}

TEST(SinkGDStep, NothingToDo) {
  std::vector<SinkGDProblem> none;
  sinkgd_step(none, kSinkGDOptions, 2);
  std::vector<SinkGDProblem> empty = make_sinkgd(testing::kFloat, {{0, 3}}, 5);
  sinkgd_step(empty, kSinkGDOptions, 2);
}

TEST(SinkGDStep, Options) {
  for (const int iterations : {1, 2, 5}) {
    for (const bool unit : {false, true}) {
      for (const double eps : {0.0, 1e-8, 1e-2}) {
        for (const double weight_decay : {0.0, 0.3}) {
          for (const double factor : {1.0, -1.0, 1.0 / 1024}) {
            SinkGDOptions options = kSinkGDOptions;
            options.iterations = iterations;
            options.unit = unit;
            options.eps = eps;
            options.weight_decay = weight_decay;
            options.grad_factor = factor;
            std::vector<SinkGDProblem> problems = make_sinkgd(testing::kFloat, {{33, 129}, {129, 33}, {9, 20}}, 6);
            if (weight_decay == 0.0) {
              for (SinkGDProblem& p : problems) fill(p.param, 0.0);  // every bit of the update is visible
            }
            ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options, 1))
                << iterations << " iterations, unit " << unit << ", eps " << eps << ", factor " << factor;
          }
        }
      }
    }
  }
}

SinkGDOptions only_the_update(int iterations) {
  return {.lr = 1.0,
          .alpha = 1.0,
          .eps = 0.0,
          .weight_decay = 0.0,
          .iterations = iterations,
          .unit = false,
          .grad_factor = 1.0};
}

// The last thing done to X is to scale its columns to norm sqrt(rows).
TEST(SinkGDStep, ColumnsOfTheUpdateAreNormalized) {
  for (const Shape& shape : {Shape{300, 1025}, Shape{50, 70}, Shape{70, 50}}) {
    std::vector<SinkGDProblem> problems = make_sinkgd(testing::kFloat, {shape}, 7);
    SinkGDProblem& p = problems[0];
    fill(p.param, 0.0);
    sinkgd_step(problems, only_the_update(5), 2);
    for (int64_t j = 0; j < p.cols; ++j) {
      double sum = 0;
      for (int64_t i = 0; i < p.rows; ++i) sum += p.param[i * p.cols + j] * p.param[i * p.cols + j];
      ASSERT_NEAR(sum / static_cast<double>(p.rows), 1.0, 4e-6);
    }
  }
}

TEST(SinkGDStep, ASteepRankOneMatrixBecomesItsSigns) {
  std::vector<SinkGDProblem> problems = make_sinkgd(testing::kFloat, {{60, 90}}, 8);
  SinkGDProblem& p = problems[0];
  fill(p.param, 0.0);
  for (int64_t i = 0; i < p.grad.numel(); ++i) {
    const double size = std::exp2(static_cast<double>(i / p.cols % 9) - static_cast<double>(i % p.cols % 11));
    p.grad.set(i, i % 3 == 0 ? -size : size);
  }
  sinkgd_step(problems, only_the_update(1), 1);
  for (int64_t i = 0; i < p.param.numel(); ++i) ASSERT_NEAR(p.param[i], i % 3 == 0 ? 1.0 : -1.0, 2e-6);
}

// Column sums over very many rows, and row sums over very many columns.
TEST(SinkGDStep, LongRowsAndColumnsDoNotLoseAccuracy) {
  for (const Shape& shape : {Shape{500'000, 3}, Shape{3, 500'000}, Shape{20'000, 70}}) {
    std::vector<SinkGDProblem> problems = make_sinkgd(testing::kFloat, {shape}, 9);
    Random random(90);
    for (int64_t i = 0; i < problems[0].grad.numel(); ++i) problems[0].grad.set(i, 1.0 + 0.25 * random.normal());
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kSinkGDOptions, 2));
  }
}

void expect_same(const SinkGDProblem& a, const SinkGDProblem& b) {
  EXPECT_EQ(a.param.bytes(), b.param.bytes()) << testing::describe(Shape{a.rows, a.cols});
  EXPECT_EQ(a.grad.bytes(), b.grad.bytes());
}

TEST(SinkGDStep, ThreadsAndRunsGiveTheSameBits) {
  // Solo, shared, and (with one thread's cache) shared in several waves.
  const std::vector<Shape> shapes = {{513, 768}, {5, 7},  {300, 1025}, {65537, 1}, {0, 4},
                                     {64, 4097}, {1, 30}, {40, 4000},  {2, 200000}};
  for (const Mix& mix : {testing::kFloat, testing::kBFloat, Mix{DType::float32, DType::float16, DType::float32}}) {
    const std::vector<SinkGDProblem> start = make_sinkgd(mix, shapes, 10);
    const auto run = [&](int threads) {
      std::vector<SinkGDProblem> problems = start;
      sinkgd_step(problems, kSinkGDOptions, threads);
      return problems;
    };
    const std::vector<SinkGDProblem> first = run(1);
    for (const int threads : {1, 2, 3, 5}) {
      const std::vector<SinkGDProblem> again = run(threads);
      for (size_t i = 0; i < shapes.size(); ++i) expect_same(again[i], first[i]);
    }
  }
}

// Alone, a large matrix is shared by all threads; among enough others of its size it is one thread's.
TEST(SinkGDStep, SoloAndSharedGiveTheSameBits) {
  for (const Shape& shape : {Shape{300, 1025}, Shape{1025, 300}, Shape{2, 100000}, Shape{150001, 1}}) {
    for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
      std::vector<SinkGDProblem> company = make_sinkgd(mix, std::vector<Shape>(4, shape), 11);
      std::vector<SinkGDProblem> alone;
      for (const SinkGDProblem& p : company) {
        alone.emplace_back(mix, shape, 1);
        alone.back().param.assign(p.param.bytes());
        alone.back().grad.assign(p.grad.bytes());
      }
      sinkgd_step(company, kSinkGDOptions, 1);
      for (size_t i = 0; i < alone.size(); ++i) {
        std::vector<SinkGDProblem> one;
        one.push_back(std::move(alone[i]));
        sinkgd_step(one, kSinkGDOptions, i % 2 == 0 ? 1 : 3);
        expect_same(one[0], company[i]);
      }
    }
  }
}

}  // namespace
}  // namespace sage_ext
