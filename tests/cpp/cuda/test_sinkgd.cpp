// SinkGD's kernels against fp64: storage types, shapes, options.
#include "sinkgd_support.h"

namespace sage_ext {
namespace {

using cpu::SinkGDOptions;
using testing::cuda_sinkgd_step;
using testing::cuda_step_and_check;
using testing::DeviceScalars;
using testing::kSinkGDOptions;
using testing::launches_of;
using testing::make_sinkgd;
using testing::Mix;
using testing::Random;
using testing::Shape;
using testing::SinkGDProblem;

using Offsets = std::array<int64_t, 2>;  // of W and g

SinkGDOptions with_iterations(int iterations) {
  SinkGDOptions options = kSinkGDOptions;
  options.iterations = iterations;
  return options;
}

TEST(CudaSinkGD, EveryMixOfDTypes) {
  for (const DType param : testing::kDTypes) {
    for (const DType grad : testing::kDTypes) {
      const Mix mix{param, grad, {}};
      SCOPED_TRACE(testing::describe(mix));
      std::vector<SinkGDProblem> problems = make_sinkgd(mix, {{5, 777}, {37, 304}, {131, 3}, {1, 65}, {70, 40}}, 1);
      for (int step = 0; step < 2; ++step) {
        ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, with_iterations(3)));
      }
    }
  }
}

TEST(CudaSinkGD, MixesInOneList) {
  std::vector<SinkGDProblem> problems;
  Random random(2);
  for (const DType grad : testing::kDTypes) {
    for (const DType param : testing::kDTypes) {
      problems.emplace_back(Mix{param, grad, {}}, Shape{30, grad == DType::float16 ? 0 : 50});
      problems.back().fill(random);
    }
  }
  const auto launches =
      launches_of([&] { ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, with_iterations(2))); });
  // The rows and columns of one dtype of gradients go together, updates of one mix.
  EXPECT_EQ(launches.size(), 2u * (2 * 2 + 3));
}

TEST(CudaSinkGD, MisalignedPointers) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat, Mix{DType::float32, DType::bfloat16, {}}}) {
    // Both by as much; g alone; W alone.
    for (const Offsets& offsets : {Offsets{1, 1}, {3, 3}, {0, 1}, {0, 3}, {3, 0}}) {
      SCOPED_TRACE(testing::describe(mix) + ", g off by " + std::to_string(offsets[1]));
      std::vector<SinkGDProblem> problems =
          make_sinkgd(mix, {{5, 777}, {37, 304}, {131, 3}, {1, 65}, {1, 1}, {20, 2048}}, 3, offsets);
      ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, with_iterations(2)));
    }
  }
}

std::vector<Shape> shapes_with_empty_ones() {
  std::vector<Shape> shapes = testing::all_shapes();
  for (const Shape& shape : {Shape{1, 777}, {777, 1}, {1, 4097}, {65535, 1}, {1, 65535}, {1, 65536}, {2, 16385}}) {
    shapes.push_back(shape);
  }
  shapes.insert(shapes.begin(), {0, 5});
  shapes.insert(shapes.begin() + 7, {5, 0});
  shapes.push_back({0, 0});
  return shapes;
}

TEST(CudaSinkGD, EveryShapeInOneListWithEmptyMatrices) {
  std::vector<SinkGDProblem> problems = make_sinkgd(testing::kBFloat, shapes_with_empty_ones(), 4);
  ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, with_iterations(2)));
}

TEST(CudaSinkGD, EveryShapeInOneListInFloat) {
  std::vector<SinkGDProblem> problems = make_sinkgd(testing::kFloat, shapes_with_empty_ones(), 5);
  ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, with_iterations(2)));
}

// In a list the widest matrix decides for how many threads all are planned.
TEST(CudaSinkGD, ShapesAlone) {
  for (const Shape& shape : testing::all_shapes()) {
    if (shape.rows * shape.cols > 10'000) continue;
    for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
      std::vector<SinkGDProblem> problems = make_sinkgd(mix, {shape}, 6);
      ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, with_iterations(3)));
    }
  }
}

// Tensors of three dimensions: every matrix is normalised on its own, and may start anywhere.
TEST(CudaSinkGD, SeveralMatricesATensor) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    std::vector<testing::Buffer> params, grads;
    std::vector<cuda::SinkGDTensor> tensors;
    std::vector<std::pair<int64_t, testing::Expected>> expected;
    Random random(7);
    for (const auto& [matrices, shape] :
         {std::pair{3, Shape{37, 40}}, {5, Shape{3, 7}}, {4, Shape{5, 777}}, {2, Shape{300, 72}}, {0, Shape{4, 4}}}) {
      const int64_t size = shape.rows * shape.cols;
      testing::Buffer& param = params.emplace_back(mix.param, matrices * size);
      testing::Buffer& grad = grads.emplace_back(mix.grad, matrices * size);
      for (int64_t matrix = 0; matrix < matrices; ++matrix) {
        SinkGDProblem p(mix, shape);
        p.fill(random);
        for (int64_t i = 0; i < size; ++i) {
          p.grad.set(i, p.grad[i] * static_cast<double>(1 + matrix));  // of different size
          param.set(matrix * size + i, p.param[i]);
          grad.set(matrix * size + i, p.grad[i]);
        }
        expected.emplace_back(tensors.size(), sinkgd_expected(p, kSinkGDOptions));
      }
      tensors.push_back({param.data(), grad.data(), matrices, shape.rows, shape.cols, mix.param, mix.grad});
    }
    cuda_sinkgd_step(tensors, kSinkGDOptions, DeviceScalars(kSinkGDOptions.lr).get());
    int64_t at = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      const auto& [tensor, e] = expected[i];
      at = i > 0 && expected[i - 1].first == tensor ? at : 0;
      testing::Buffer matrix(mix.param, static_cast<int64_t>(e.value.size()));
      for (int64_t k = 0; k < matrix.numel(); ++k) matrix.set(k, params[static_cast<size_t>(tensor)][at++]);
      EXPECT_TRUE(matches(matrix, e)) << "matrix of tensor " << tensor;
    }
  }
}

TEST(CudaSinkGD, MoreTensorsThanATableHolds) {
  std::vector<Shape> shapes(1000, {4, 5});
  shapes[600] = shapes[999] = {0, 5};
  std::vector<SinkGDProblem> problems = make_sinkgd(testing::kFloat, shapes, 8);
  const auto launches =
      launches_of([&] { ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, with_iterations(1))); });
  EXPECT_EQ(launches.size(), 3u * 3);
}

TEST(CudaSinkGD, Options) {
  int round = 0;
  for (const int iterations : {1, 2, 3, 4, 5}) {
    for (const bool unit : {false, true}) {
      for (const double eps : {0.0, 1e-8}) {
        for (const double factor : {1.0, -1.0, 1.0 / 1024}) {
          SinkGDOptions options = with_iterations(iterations);
          options.unit = unit;
          options.eps = eps;
          options.grad_factor = factor;
          options.weight_decay = ++round % 2 == 0 ? 0.3 : 0.0;
          std::vector<SinkGDProblem> problems = make_sinkgd(testing::kFloat, {{33, 132}, {129, 33}}, 9);
          if (options.weight_decay == 0.0) {
            for (SinkGDProblem& p : problems) fill(p.param, 0.0);  // every bit of the update is visible
          }
          ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, options, /*lr_tensor=*/round % 3 == 0))
              << iterations << " iterations, unit " << unit << ", eps " << eps << ", factor " << factor;
        }
      }
    }
  }
}

TEST(CudaSinkGD, NothingToDo) {
  std::vector<SinkGDProblem> none;
  std::vector<SinkGDProblem> empty = make_sinkgd(testing::kFloat, {{0, 3}, {3, 0}}, 10);
  EXPECT_TRUE(launches_of([&] {
                cuda_sinkgd_step(none, kSinkGDOptions);
                cuda_sinkgd_step(empty, kSinkGDOptions);
              }).empty());
}

TEST(CudaSinkGD, FoundInfChangesNothing) {
  std::vector<SinkGDProblem> problems = make_sinkgd(testing::kBFloat, {{300, 64}, {0, 5}, {5, 777}}, 11);
  std::vector<std::byte> before, after;
  for (const SinkGDProblem& p : problems) append(before, p.param);
  const auto launches = launches_of(
      [&] { cuda_sinkgd_step(cuda_tensors(problems), kSinkGDOptions, DeviceScalars(0.5, 1.0, false, 1.0f).get()); });
  for (const SinkGDProblem& p : problems) append(after, p.param);
  EXPECT_EQ(before, after);
  EXPECT_EQ(launches.size(), 16u);
  for (const simt::Launch& launch : launches) EXPECT_EQ(launch.bytes_read + launch.bytes_written, 0u);
}

// The last thing done to X is to scale its columns to norm sqrt(rows).
TEST(CudaSinkGD, ColumnsOfTheUpdateAreNormalized) {
  for (const Shape& shape : {Shape{300, 256}, Shape{50, 70}, Shape{70, 50}}) {
    std::vector<SinkGDProblem> problems = make_sinkgd(testing::kFloat, {shape}, 12);
    SinkGDProblem& p = problems[0];
    fill(p.param, 0.0);
    cuda_sinkgd_step(problems, {1.0, 1.0, 0.0, 0.0, 5, false, 1.0});
    for (int64_t j = 0; j < p.cols; ++j) {
      double sum = 0;
      for (int64_t i = 0; i < p.rows; ++i) sum += p.param[i * p.cols + j] * p.param[i * p.cols + j];
      ASSERT_NEAR(sum / static_cast<double>(p.rows), 1.0, 4e-6);
    }
  }
}

// Column sums over very many rows, and row sums over very many columns.
TEST(CudaSinkGD, LongRowsAndColumnsDoNotLoseAccuracy) {
  for (const Shape& shape : {Shape{100'000, 3}, Shape{3, 100'000}, Shape{20'000, 16}}) {
    std::vector<SinkGDProblem> problems = make_sinkgd(testing::kFloat, {shape}, 13);
    Random random(130);
    for (int64_t i = 0; i < problems[0].grad.numel(); ++i) problems[0].grad.set(i, 1.0 + 0.25 * random.normal());
    ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, with_iterations(2)));
  }
}

}  // namespace
}  // namespace sage_ext
