// SAGE where it hurts: zeros, extreme sizes, NaN and infinity.
#include "sage_problem.h"

namespace sage_ext {
namespace {

using cpu::SageOptions;
using testing::kInf;
using testing::kNaN;
using testing::kSageOptions;
using testing::make_sage;
using testing::Mix;
using testing::SageProblem;
using testing::step_and_check;

SageOptions without_decay(double eps) {
  SageOptions options = kSageOptions;
  options.weight_decay = 0.0;
  options.eps = eps;
  return options;
}

TEST(SageCases, AZeroTensorStays) {
  for (const double eps : {0.0, 1e-8}) {
    for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
      std::vector<SageProblem> problems = make_sage(mix, {{30, 500}, {30, 7}, {1, 9}}, 1);
      for (SageProblem& p : problems) fill(p.grad, 0.0);
      for (int step = 0; step < 2; ++step) {
        std::vector<std::vector<std::byte>> before;
        for (const SageProblem& p : problems) before.push_back(p.param.bytes());
        ASSERT_NO_FATAL_FAILURE(step_and_check(problems, without_decay(eps), 2));
        for (size_t i = 0; i < problems.size(); ++i) EXPECT_EQ(problems[i].param.bytes(), before[i]);
      }
    }
  }
}

// Most rows of an embedding are not in the batch: zero gradient, and zero momentum until they are.
TEST(SageCases, UnseenRowsAndColumnsStay) {
  for (const double eps : {0.0, 1e-8}) {
    std::vector<SageProblem> problems = make_sage(testing::kFloat, {{100, 300}, {100, 6}}, 2);
    for (SageProblem& p : problems) {
      for (int64_t i = 0; i < p.grad.numel(); ++i) {
        if (i / p.cols % 4 != 0 || i % p.cols == 2) p.grad.set(i, 0.0);
      }
      const testing::Values before = p.param.values();
      std::vector<SageProblem> one;
      one.push_back(std::move(p));
      for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(one, without_decay(eps), 1));
      int64_t moved = 0;
      for (int64_t i = 0; i < one[0].param.numel(); ++i) {
        const bool seen = i / one[0].cols % 4 == 0 && i % one[0].cols != 2;
        const bool stayed = one[0].param[i] == before[static_cast<size_t>(i)];
        if (!seen) {
          ASSERT_TRUE(stayed) << i;
        }
        moved += stayed ? 0 : 1;
      }
      EXPECT_GT(moved, one[0].param.numel() / 8);
    }
  }
}

TEST(SageCases, ARowWithoutGradientMovesOnItsMomentum) {
  std::vector<SageProblem> problems = make_sage(testing::kFloat, {{10, 300}}, 3);
  SageProblem& p = problems[0];
  for (int64_t j = 0; j < p.cols; ++j) {
    p.grad.set(j, 0.0);
    p.exp_avg.set(j, -1.0);
    p.param.set(j, 0.0);
  }
  ASSERT_NO_FATAL_FAILURE(step_and_check(problems, without_decay(1e-8), 1));
  for (int64_t j = 0; j < p.cols; ++j) EXPECT_GT(p.param[j], 0.0);
}

// The sum of |g| over a column of 300 has to be a number of fp32, no more.
TEST(SageCases, TinyAndHugeGradients) {
  for (const DType grad : {DType::float32, DType::bfloat16}) {
    for (const double scale : {1e-30, 1e36}) {
      for (const double eps : {0.0, 1e-8}) {
        SCOPED_TRACE(std::string(name(grad)) + ", gradients times " + std::to_string(scale));
        const Mix mix{DType::float32, grad, DType::float32};
        std::vector<SageProblem> problems = make_sage(mix, {{40, 300}, {300, 5}, {1, 50}}, 4);
        for (SageProblem& p : problems) {
          fill(p.param, 0.0);
          for (int64_t i = 0; i < p.grad.numel(); ++i) p.grad.set(i, p.grad[i] * scale);
        }
        for (int step = 0; step < 2; ++step) {
          ASSERT_NO_FATAL_FAILURE(step_and_check(problems, without_decay(eps), 1));
        }
        // Without eps the damper is scale-free: it does not vanish with the gradient.
        if (eps == 0.0) {
          double largest = 0;
          for (const double w : problems[0].param.values()) largest = std::max(largest, std::abs(w));
          EXPECT_GT(largest, 1.9 * kSageOptions.lr);
        }
      }
    }
  }
}

TEST(SageCases, OneTinyOrHugeRowOrColumn) {
  for (const double scale : {1e-20, 1e20}) {
    for (const bool row : {false, true}) {
      for (const double eps : {0.0, 1e-8}) {
        std::vector<SageProblem> problems = make_sage(testing::kFloat, {{40, 300}, {300, 5}}, 5);
        for (SageProblem& p : problems) {
          fill(p.param, 0.0);
          for (int64_t i = 0; i < p.grad.numel(); ++i) {
            if ((row ? i / p.cols : i % p.cols) == 3) p.grad.set(i, p.grad[i] * scale);
          }
        }
        ASSERT_NO_FATAL_FAILURE(step_and_check(problems, without_decay(eps), 1));
        for (SageProblem& p : problems) EXPECT_EQ(testing::count_nan(p.param), 0);
      }
    }
  }
}

// NaN reaches the column's mean, from there every damper, and so the whole tensor, as in the eager form.
TEST(SageCases, ANaNReachesTheWholeTensor) {
  for (const Mix& mix : testing::all_mixes()) {
    for (const double eps : {0.0, 1e-8}) {
      for (const int64_t at : {0, 5 * 300 - 1}) {
        std::vector<SageProblem> problems = make_sage(mix, {{5, 300}, {9, 40}}, 6);
        problems[0].grad.set(at, kNaN);
        ASSERT_NO_FATAL_FAILURE(step_and_check(problems, without_decay(eps), 2));
        EXPECT_EQ(testing::count_nan(problems[0].param), problems[0].param.numel());
        EXPECT_EQ(testing::count_nan(problems[0].exp_avg), 1);
        EXPECT_EQ(testing::count_nan(problems[0].s_range), 1);
        EXPECT_EQ(testing::count_nan(problems[1].param), 0);
      }
    }
  }
}

// An infinity: its column's damper is inf / inf, every other one is 1.
TEST(SageCases, AnInfinityReachesItsColumn) {
  for (const Mix& mix : testing::all_mixes()) {
    for (const double value : {kInf, -kInf}) {
      std::vector<SageProblem> problems = make_sage(mix, {{40, 300}, {41, 7}}, 7);
      for (SageProblem& p : problems) p.grad.set(2 * p.cols + 5, value);
      ASSERT_NO_FATAL_FAILURE(step_and_check(problems, without_decay(1e-8), 1));
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
