// SCALE's kernels against fp64: storage types, shapes, alignment, options, traps.
#include "scale_support.h"

namespace sage_ext {
namespace {

using cpu::ScaleOptions;
using testing::all_scale_options;
using testing::bytes_of;
using testing::cuda_scale_step;
using testing::cuda_step_and_check;
using testing::DeviceScalars;
using testing::launches_of;
using testing::make_experts;
using testing::make_scale;
using testing::Mix;
using testing::ScaleProblem;
using testing::Shape;

using Offsets = std::array<int64_t, 3>;  // of W, g and the momentum

class CudaScale : public ::testing::TestWithParam<ScaleOptions> {};

TEST_P(CudaScale, EveryMixOfDTypes) {
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    std::vector<ScaleProblem> problems = make_scale(mix, {{5, 776}, {37, 300}, {131, 3}, {1, 65}}, 1);
    ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, GetParam()));
  }
}

TEST_P(CudaScale, EveryShapeInOneListWithEmptyTensors) {
  std::vector<Shape> shapes = testing::all_shapes();
  shapes.insert(shapes.begin(), {0, 5});
  shapes.insert(shapes.begin() + 7, {5, 0});
  shapes.push_back({0, 0});
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    std::vector<ScaleProblem> problems = make_scale(mix, shapes, 2);
    ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, GetParam()));
  }
}

TEST_P(CudaScale, MisalignedPointers) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat, Mix{DType::bfloat16, DType::float32, DType::float16}}) {
    for (const Offsets& offsets : {Offsets{1, 1, 1}, {0, 1, 0}, {3, 0, 0}, {0, 0, 1}, {1, 3, 5}}) {
      SCOPED_TRACE(testing::describe(mix) + ", g off by " + std::to_string(offsets[1]));
      std::vector<ScaleProblem> problems = make_scale(mix, {{65, 128}, {7, 1031}, {300, 5}, {2, 9000}}, 3, offsets);
      ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, GetParam()));
    }
  }
}

TEST_P(CudaScale, Experts) {
  for (const Shape& shape : {Shape{17, 29}, {64, 256}, {3, 1}, {200, 120}}) {
    for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
      std::vector<ScaleProblem> problems = make_experts(mix, 5, shape, 4);
      ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, GetParam()));
    }
  }
}

TEST_P(CudaScale, OptionsOverSteps) {
  for (int bits = 0; bits < 24; ++bits) {
    ScaleOptions options = GetParam();
    options.weight_decay = (bits & 1) != 0 ? 0.3 : 0.0;
    options.rms = (bits & 2) != 0;
    options.eps = (bits & 4) != 0 ? 0.25 : 0.0;
    options.grad_factor = bits < 8 ? 1.0 : bits < 16 ? -1.0 : 1.0 / 1024;
    SCOPED_TRACE("options " + std::to_string(bits));
    std::vector<ScaleProblem> problems = make_scale(testing::kFloat, {{30, 130}, {40, 9}}, 5);
    if (bits % 2 == 0) fill(problems[0].param, 0.0);
    for (const bool lr_tensor : {false, true}) {
      ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, options, lr_tensor));
    }
  }
}

TEST_P(CudaScale, TinyAndHugeGradientsAndZeros) {
  for (const double scale : {1e-30, 1e35}) {
    for (const double eps : {0.0, 1e-8}) {
      ScaleOptions options = GetParam();
      options.eps = eps;
      options.weight_decay = 0.0;
      std::vector<ScaleProblem> problems = make_scale(testing::kFloat, {{64, 300}, {300, 3}, {2, 9000}}, 6);
      for (ScaleProblem& p : problems) {
        fill(p.exp_avg, 0.0);
        fill(p.param, 0.0);
        for (int64_t i = 0; i < p.grad.numel(); ++i) {
          const bool is_zero = i / p.cols % 2 == 1 || i % p.cols % 3 == 1;
          p.grad.set(i, is_zero ? 0.0 : p.grad[i] * scale);
        }
      }
      ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, options));
      for (const ScaleProblem& p : problems) {
        for (int64_t i = 0; i < p.grad.numel(); ++i) {
          if (p.grad[i] == 0.0) {
            ASSERT_EQ(p.param[i], 0.0);
          }
        }
      }
    }
  }
}

TEST_P(CudaScale, NonFiniteGradients) {
  for (const double value : {testing::kNaN, testing::kInf, -testing::kInf}) {
    std::vector<ScaleProblem> problems = make_scale(testing::kFloat, {{20, 300}}, 7);
    problems[0].grad.set(0, value);
    problems[0].grad.set(20 * 300 - 1, value);
    ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, GetParam()));
    EXPECT_TRUE(std::isnan(problems[0].param[0]));
    EXPECT_FALSE(std::isnan(problems[0].param[301]));
  }
}

TEST_P(CudaScale, LongSumsDoNotLoseAccuracy) {
  for (const Shape& shape : {Shape{200'000, 1}, {1, 200'000}}) {
    std::vector<ScaleProblem> problems = make_scale(testing::kFloat, {shape}, 8);
    fill(problems[0].grad, 1.37);
    fill(problems[0].exp_avg, 0.0);
    fill(problems[0].param, 0.0);
    ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, GetParam()));
  }
}

TEST_P(CudaScale, NothingToDo) {
  std::vector<ScaleProblem> none;
  std::vector<ScaleProblem> empty = make_scale(testing::kFloat, {{0, 3}, {3, 0}}, 9);
  EXPECT_TRUE(launches_of([&] {
                cuda_scale_step(none, GetParam());
                cuda_scale_step(empty, GetParam());
              }).empty());
}

TEST_P(CudaScale, FoundInfChangesNothing) {
  std::vector<ScaleProblem> problems = make_scale(testing::kBFloat, {{77, 10}, {40, 300}}, 10);
  const std::vector<std::byte> before = bytes_of(problems);
  const auto launches =
      launches_of([&] { cuda_scale_step(problems, GetParam(), DeviceScalars(1e-2, 1.0, false, 1.0f).get()); });
  EXPECT_EQ(before, bytes_of(problems));
  for (const simt::Launch& launch : launches) EXPECT_EQ(launch.bytes_read + launch.bytes_written, 0u);
}

INSTANTIATE_TEST_SUITE_P(All, CudaScale, ::testing::ValuesIn(all_scale_options()));

}  // namespace
}  // namespace sage_ext
