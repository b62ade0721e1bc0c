// SAGE's kernels against fp64: storage types, shapes, options, and where it hurts.
#include "cuda/sage_support.h"

namespace sage_ext {
namespace {

using cpu::SageOptions;
using testing::cuda_step_and_check;
using testing::kInf;
using testing::kNaN;
using testing::kSageOptions;
using testing::make_sage;
using testing::Mix;
using testing::Random;
using testing::SageProblem;
using testing::Shape;

SageOptions without_decay(double eps) {
  SageOptions options = kSageOptions;
  options.weight_decay = 0.0;
  options.eps = eps;
  return options;
}

// Beside the usual ones: sizes around 65536, columns that a chunk of the update wraps once, and matrices tall enough
// for many slots a column, which several threads add up: 32 columns, 4, or 1 a block.
std::vector<Shape> all_shapes() {
  std::vector<Shape> shapes = testing::all_shapes();
  for (const Shape& shape : {Shape{1, 777},
                             {1, 4097},
                             {1, 65535},
                             {1, 65536},
                             {65535, 1},
                             {65536, 1},
                             {50, 777},
                             {8, 3 * 5 * 7},
                             {2, 16383},
                             {3, 16385},
                             {3, 20000},
                             {300, 2049},
                             {2100, 260}}) {
    shapes.push_back(shape);
  }
  return shapes;
}

TEST(CudaSage, EveryMixOfDTypes) {
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    for (const int64_t offset : {0, 1}) {
      std::vector<SageProblem> problems = make_sage(mix, {{5, 777}, {37, 304}, {131, 3}, {1, 65}}, 1, offset);
      for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, kSageOptions));
    }
  }
}

TEST(CudaSage, EveryShapeAlone) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    for (const Shape& shape : all_shapes()) {
      std::vector<SageProblem> problems = make_sage(mix, {shape}, 2);
      for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, kSageOptions));
    }
  }
}

TEST(CudaSage, ManySlotsAColumn) {
  for (const Shape& shape : {Shape{600'000, 1}, {300'001, 3}, {20'000, 33}}) {
    ASSERT_GE(plan_column_blocks(shape.rows, shape.cols, 4).slots, 16);
    std::vector<SageProblem> problems = make_sage(testing::kFloat, {shape}, 8);
    Random random(80);
    for (int64_t i = 0; i < problems[0].grad.numel(); ++i) problems[0].grad.set(i, 1.0 + 0.25 * random.normal());
    ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, kSageOptions));
  }
}

// One list with empty tensors, also at its end, off the boundary and on it.
TEST(CudaSage, EveryShapeInOneListWithEmptyTensors) {
  std::vector<Shape> shapes = all_shapes();
  shapes.insert(shapes.begin(), {0, 5});
  shapes.insert(shapes.begin() + 7, {5, 0});
  shapes.push_back({0, 0});
  const Mix mix{DType::bfloat16, DType::float32, DType::float16};
  for (const int64_t offset : {0, 1}) {
    std::vector<SageProblem> problems = make_sage(mix, shapes, 3, offset);
    ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, kSageOptions));
  }
}

// Each array off the boundary on its own, and a parameter whose head is not its gradient's.
TEST(CudaSage, MisalignedPointers) {
  for (const DType dtype : testing::kDTypes) {
    const Mix mix{dtype, dtype, dtype};
    for (int64_t which = 0; which < 8; ++which) {
      std::vector<SageProblem> problems;
      for (const Shape& shape : {Shape{70, 64}, {33, 513}, {1, 5000}, {1000, 1}, {3, 2}, {200, 7}}) {
        problems.emplace_back(mix, shape, std::array{which & 1, which >> 1 & 1, int64_t{0}, which >> 2});
      }
      Random random(4);
      for (SageProblem& p : problems) p.fill(random);
      for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, kSageOptions));
    }
  }
}

TEST(CudaSage, NothingToDo) {
  std::vector<SageProblem> none;
  ASSERT_NO_FATAL_FAILURE(testing::cuda_sage_step(none, kSageOptions));
  std::vector<SageProblem> empty = make_sage(testing::kFloat, {{0, 3}, {3, 0}}, 5);
  for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(empty, kSageOptions));
}

TEST(CudaSage, OptionsOverSteps) {
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
      // A learning rate in a tensor is an fp32 number and changes between steps.
      const bool lr_tensor = bits % 3 == 0;
      if (lr_tensor) options.lr = static_cast<double>(static_cast<float>(1e-2 / (1 + step)));
      ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, options, lr_tensor));
    }
  }
}

TEST(CudaSage, FoundInfChangesNothing) {
  for (const float found_inf : {1.0f, -2.0f, std::numeric_limits<float>::infinity()}) {
    std::vector<SageProblem> problems = make_sage(testing::kBFloat, {{64, 257}, {1, 300}, {0, 7}}, 7);
    testing::fill(problems[0].grad, kInf);
    std::vector<std::vector<std::byte>> before;
    const auto save = [&](std::vector<std::vector<std::byte>>& out) {
      for (const SageProblem& p : problems) {
        for (const testing::Buffer* b : {&p.param, &p.grad, &p.exp_avg, &p.s_range}) out.push_back(b->bytes());
      }
    };
    save(before);
    testing::Buffer counters(DType::float32, 3);
    fill(counters, 41.0);
    simt::Session session;
    cuda_sage_step(problems, kSageOptions,
                   testing::DeviceScalars(kSageOptions.lr, kSageOptions.grad_factor, false, found_inf).get(), counters);
    std::vector<std::vector<std::byte>> after;
    save(after);
    EXPECT_EQ(after, before);
    for (int64_t i = 0; i < 3; ++i) EXPECT_EQ(counters[i], 41.0);
    ASSERT_EQ(session.launches().size(), 3u);
    for (const simt::Launch& launch : session.launches()) EXPECT_EQ(launch.bytes_read + launch.bytes_written, 0u);
  }
}

TEST(CudaSage, ZeroTensorsRowsAndColumns) {
  for (const double eps : {0.0, 1e-8}) {
    std::vector<SageProblem> problems = make_sage(testing::kFloat, {{30, 500}, {30, 7}, {1, 9}, {100, 300}}, 9);
    for (size_t i = 0; i < problems.size(); ++i) {
      SageProblem& p = problems[i];
      for (int64_t k = 0; k < p.grad.numel(); ++k) {
        if (i < 3 || k / p.cols % 4 != 0 || k % p.cols == 2) p.grad.set(k, 0.0);
      }
    }
    const testing::Values before = problems[3].param.values();
    const std::vector<std::byte> zero = problems[0].param.bytes();
    for (int step = 0; step < 2; ++step) {
      ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, without_decay(eps)));
    }
    EXPECT_EQ(problems[0].param.bytes(), zero);
    for (int64_t k = 0; k < problems[3].param.numel(); ++k) {
      if (k / 300 % 4 == 0 && k % 300 != 2) continue;
      ASSERT_EQ(problems[3].param[k], before[static_cast<size_t>(k)]) << k;
    }
  }
}

// The sum of |g| over a column of 300 has to be a number of fp32, no more.
TEST(CudaSage, TinyAndHugeGradients) {
  for (const DType grad : {DType::float32, DType::bfloat16}) {
    for (const double scale : {1e-30, 1e36}) {
      for (const double eps : {0.0, 1e-8}) {
        for (const int where : {0, 1, 2}) {  // everywhere, in one row, in one column
          SCOPED_TRACE(std::string(name(grad)) + ", gradients times " + std::to_string(scale));
          const Mix mix{DType::float32, grad, DType::float32};
          std::vector<SageProblem> problems = make_sage(mix, {{40, 300}, {300, 5}, {1, 50}}, 10);
          for (SageProblem& p : problems) {
            fill(p.param, 0.0);
            for (int64_t i = 0; i < p.grad.numel(); ++i) {
              if (where == 0 || (where == 1 ? i / p.cols : i % p.cols) == 3) p.grad.set(i, p.grad[i] * scale);
            }
          }
          for (int step = 0; step < 2; ++step) {
            ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, without_decay(eps)));
          }
          for (SageProblem& p : problems) EXPECT_EQ(testing::count_nan(p.param), 0);
        }
      }
    }
  }
}

// NaN reaches the column's mean, from there every damper, and so the whole tensor, as on the CPU.
TEST(CudaSage, ANaNReachesTheWholeTensor) {
  for (const Mix& mix : testing::all_mixes()) {
    for (const int64_t at : {0, 5 * 300 - 1}) {
      std::vector<SageProblem> problems = make_sage(mix, {{5, 300}, {9, 40}}, 11);
      problems[0].grad.set(at, kNaN);
      ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, without_decay(at == 0 ? 0.0 : 1e-8)));
      EXPECT_EQ(testing::count_nan(problems[0].param), problems[0].param.numel());
      EXPECT_EQ(testing::count_nan(problems[0].exp_avg), 1);
      EXPECT_EQ(testing::count_nan(problems[0].s_range), 1);
      EXPECT_EQ(testing::count_nan(problems[1].param), 0);
    }
  }
}

// An infinity: its column's damper is inf / inf, every other one is 1.
TEST(CudaSage, AnInfinityReachesItsColumn) {
  for (const Mix& mix : testing::all_mixes()) {
    for (const double value : {kInf, -kInf}) {
      std::vector<SageProblem> problems = make_sage(mix, {{40, 300}, {41, 7}}, 12);
      for (SageProblem& p : problems) p.grad.set(2 * p.cols + 5, value);
      ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, without_decay(1e-8)));
      for (SageProblem& p : problems) {
        EXPECT_EQ(testing::count_nan(p.param), p.rows);
        EXPECT_EQ(p.s_range[5], kInf);
        EXPECT_EQ(testing::count_nan(p.exp_avg), 0);
      }
    }
  }
}

}  // namespace
}  // namespace sage_ext
