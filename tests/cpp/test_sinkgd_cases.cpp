// SinkGD where it hurts: zeros, extreme sizes, NaN and infinity; each in a small matrix and in a shared one.
#include "sinkgd_problem.h"

namespace sage_ext {
namespace {

using cpu::SinkGDOptions;
using testing::kInf;
using testing::kNaN;
using testing::kSinkGDOptions;
using testing::make_mixed;
using testing::make_sinkgd;
using testing::make_unit_case;
using testing::Mix;
using testing::Shape;
using testing::SinkGDProblem;
using testing::step_and_check;
using testing::UnitCase;

constexpr Shape kSmall{37, 130};
constexpr Shape kShared{260, 600};

SinkGDOptions without_decay(double eps, int iterations = 5) {
  SinkGDOptions options = kSinkGDOptions;
  options.weight_decay = 0.0;
  options.eps = eps;
  options.iterations = iterations;
  return options;
}

std::vector<Mix> some_mixes() { return {testing::kFloat, testing::kBFloat, {DType::float32, DType::float16, {}}}; }

TEST(SinkGDCases, AZeroMatrixStays) {
  for (const double eps : {0.0, 1e-8}) {
    for (const Mix& mix : some_mixes()) {
      std::vector<SinkGDProblem> problems = make_sinkgd(mix, {kSmall, kShared, {1, 1}}, 1);
      std::vector<std::vector<std::byte>> before;
      for (SinkGDProblem& p : problems) {
        fill(p.grad, 0.0);
        before.push_back(p.param.bytes());
      }
      sinkgd_step(problems, without_decay(eps), 2);
      for (size_t i = 0; i < problems.size(); ++i) EXPECT_EQ(problems[i].param.bytes(), before[i]);
    }
  }
}

TEST(SinkGDCases, ZeroRowsAndColumnsStay) {
  for (const double eps : {0.0, 1e-8}) {
    for (const Mix& mix : some_mixes()) {
      for (const Shape& shape : {kSmall, kShared}) {
        std::vector<SinkGDProblem> problems = make_sinkgd(mix, {shape}, 2);
        SinkGDProblem& p = problems[0];
        const auto is_zero = [&](int64_t i) {
          const int64_t row = i / p.cols, col = i % p.cols;
          return row == 0 || row == 5 || row == p.rows - 1 || col == 0 || col == 7 || col == p.cols - 1;
        };
        for (int64_t i = 0; i < p.grad.numel(); ++i) {
          if (is_zero(i)) p.grad.set(i, i % 2 == 0 ? 0.0 : -0.0);
        }
        const testing::Values before = p.param.values();
        ASSERT_NO_FATAL_FAILURE(step_and_check(problems, without_decay(eps), 2));
        EXPECT_EQ(testing::count_nan(p.param), 0);
        for (int64_t i = 0; i < p.grad.numel(); ++i) {
          if (is_zero(i)) {
            ASSERT_EQ(p.param[i], before[static_cast<size_t>(i)]) << i;
          }
        }
      }
    }
  }
}

TEST(SinkGDCases, TinyAndHugeGradients) {
  for (const DType grad : {DType::float32, DType::bfloat16}) {
    for (const double scale : {1e-20, 1e20, 1e-34, 1e36}) {
      SCOPED_TRACE(std::string(name(grad)) + ", gradients times " + std::to_string(std::log10(scale)));
      std::vector<SinkGDProblem> problems = make_sinkgd({DType::float32, grad, {}}, {kSmall, kShared, {1, 9}}, 3);
      for (SinkGDProblem& p : problems) {
        fill(p.param, 0.0);
        for (int64_t i = 0; i < p.grad.numel(); ++i) p.grad.set(i, p.grad[i] * scale);
      }
      ASSERT_NO_FATAL_FAILURE(step_and_check(problems, without_decay(0.0), 2));
      // Without eps the update does not depend on the gradient's size.
      double sum = 0;
      for (const double w : problems[0].param.values()) sum += w * w;
      EXPECT_NEAR(std::sqrt(sum / static_cast<double>(problems[0].param.numel())), 0.125, 1e-5);
    }
  }
}

TEST(SinkGDCases, HugeGradientsWithEps) {
  std::vector<SinkGDProblem> problems = make_sinkgd(testing::kFloat, {kSmall, kShared}, 4);
  for (SinkGDProblem& p : problems) {
    fill(p.param, 0.0);
    for (int64_t i = 0; i < p.grad.numel(); ++i) p.grad.set(i, p.grad[i] * 1e20);
  }
  ASSERT_NO_FATAL_FAILURE(step_and_check(problems, without_decay(1e-8), 1));
}

// With eps = 1e-8 a gradient of 1e-20 is scaled by 1e8 * sqrt(n) once, and then once more; a subnormal one in three
// iterations.
TEST(SinkGDCases, TinyGradientsWithEps) {
  for (const double scale : {1e-20, 1e-41}) {
    std::vector<SinkGDProblem> problems = make_sinkgd(testing::kFloat, {kSmall, kShared}, 5);
    for (SinkGDProblem& p : problems) {
      for (int64_t i = 0; i < p.grad.numel(); ++i) p.grad.set(i, p.grad[i] * scale);
    }
    for (const int iterations : {1, 5}) {
      for (const bool unit : {false, true}) {
        for (SinkGDProblem& p : problems) fill(p.param, 0.0);
        SinkGDOptions options = without_decay(1e-8, iterations);
        options.unit = unit;
        ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options, 1)) << scale << ", unit " << unit;
      }
    }
  }
}

TEST(SinkGDCases, LargeBesideSmall) {
  for (const Shape& shape : {kSmall, kShared}) {
    std::vector<SinkGDProblem> problems = make_mixed(shape);
    for (const bool unit : {false, true}) {
      for (const double eps : {0.0, 1e-8}) {
        for (SinkGDProblem& p : problems) fill(p.param, 0.0);
        SinkGDOptions options = without_decay(eps);
        options.unit = unit;
        ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options, 2)) << "unit " << unit << ", eps " << eps;
      }
    }
  }
}

TEST(SinkGDCases, ScalesOfTheUnitFormStayInRange) {
  std::vector<UnitCase> cases(std::begin(testing::kUnitCases), std::end(testing::kUnitCases));
  cases.push_back({{2, 70'000}, 20, 1.0});  // shared
  for (const UnitCase& c : cases) {
    for (const double eps : {0.0, 1e-8}) {
      SCOPED_TRACE(describe(c.shape) + ", eps " + std::to_string(eps));
      std::vector<SinkGDProblem> problems = make_unit_case(c);
      SinkGDOptions options = without_decay(eps, c.iterations);
      options.unit = true;
      ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options, 2));
    }
  }
}

// An eps of the size of the norms, which are then never at rest. It is added to norms of X itself, whatever the kernel
// holds: the two forms differ.
TEST(SinkGDCases, EpsNearTheNormsOfTheUnitForm) {
  for (const double eps : {0.05, 0.9, 1.0, 3.0}) {
    std::vector<SinkGDProblem> problems = make_sinkgd(testing::kFloat, {{2, 900}, {900, 2}, {20, 20}}, 25);
    for (SinkGDProblem& p : problems) fill(p.param, 0.0);
    SinkGDOptions options = without_decay(eps, 30);
    options.unit = true;
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options, 1)) << eps;
  }
}

// Without eps the unit form is the other one over sqrt(rows), to a few roundings.
TEST(SinkGDCases, TheUnitFormIsTheOtherOverTheRootOfTheRows) {
  for (const Shape& shape : {kSmall, kShared, Shape{7, 900}, Shape{900, 7}}) {
    std::vector<SinkGDProblem> problems = make_sinkgd(testing::kFloat, {shape, shape}, 26);
    problems[1].grad.assign(problems[0].grad.bytes());
    for (const bool unit : {false, true}) {
      SinkGDProblem& p = problems[unit ? 1 : 0];
      fill(p.param, 0.0);
      SinkGDOptions options = without_decay(0.0);
      options.unit = unit;
      cpu::SinkGDStep({p.view()}, options).run(2);
    }
    const double root = std::sqrt(static_cast<double>(shape.rows));
    for (int64_t i = 0; i < problems[0].param.numel(); ++i) {
      const double expected = problems[0].param[i] / root;
      ASSERT_NEAR(problems[1].param[i], expected, 8 * testing::kUlp * std::abs(expected)) << i;
    }
  }
}

TEST(SinkGDCases, OneTinyOrHugeRowOrColumn) {
  for (const double scale : {1e-20, 1e20}) {
    for (const bool row : {false, true}) {
      for (const double eps : {0.0, 1e-8}) {
        SCOPED_TRACE((row ? "row, " : "column, ") + std::to_string(std::log10(scale)));
        std::vector<SinkGDProblem> problems = make_sinkgd(testing::kFloat, {kSmall, kShared}, 6);
        for (SinkGDProblem& p : problems) {
          fill(p.param, 0.0);
          for (int64_t i = 0; i < p.grad.numel(); ++i) {
            if ((row ? i / p.cols : i % p.cols) == 3) p.grad.set(i, p.grad[i] * scale);
          }
        }
        ASSERT_NO_FATAL_FAILURE(step_and_check(problems, without_decay(eps), 2));
      }
    }
  }
}

TEST(SinkGDCases, RowsFromTinyToHuge) {
  std::vector<SinkGDProblem> problems = make_sinkgd(testing::kFloat, {{41, 130}, {301, 700}}, 7);
  for (SinkGDProblem& p : problems) {
    fill(p.param, 0.0);
    for (int64_t i = 0; i < p.grad.numel(); ++i) {
      p.grad.set(i, p.grad[i] * std::pow(10.0, static_cast<double>(i / p.cols % 41) - 20.0));
    }
  }
  ASSERT_NO_FATAL_FAILURE(step_and_check(problems, without_decay(0.0), 2));
}

// The smallest numbers of fp32 and fp16 still have a direction, and never make a NaN or an infinity.
TEST(SinkGDCases, SubnormalGradientsStayFinite) {
  for (const DType grad : testing::kDTypes) {
    std::vector<SinkGDProblem> problems = make_sinkgd({DType::float32, grad, {}}, {kSmall, kShared}, 8);
    for (SinkGDProblem& p : problems) {
      fill(p.param, 0.0);
      const double smallest = 2.0 * testing::half_ulp(grad, 0.0);
      for (int64_t i = 0; i < p.grad.numel(); ++i) p.grad.set(i, i % 3 == 0 ? -smallest : smallest);
    }
    sinkgd_step(problems, without_decay(0.0), 2);
    for (SinkGDProblem& p : problems) {
      for (const double w : p.param.values()) ASSERT_TRUE(std::isfinite(w)) << name(grad);
      EXPECT_LT(p.param[1], 0.0) << name(grad);
      EXPECT_GT(p.param[0], 0.0) << name(grad);
    }
  }
}

TEST(SinkGDCases, ANaNReachesItsMatrixAndNoOther) {
  for (const Mix& mix : some_mixes()) {
    for (const int iterations : {1, 5}) {
      for (const Shape& shape : {kSmall, kShared}) {
        for (const int64_t at : {3 * shape.cols + 4, shape.rows * shape.cols - 1}) {
          std::vector<SinkGDProblem> problems = make_sinkgd(mix, {shape, shape}, 9);
          problems[0].grad.set(at, kNaN);
          ASSERT_NO_FATAL_FAILURE(step_and_check(problems, without_decay(1e-8, iterations), 2));
          EXPECT_EQ(testing::count_nan(problems[0].param), problems[0].param.numel());
          EXPECT_EQ(testing::count_nan(problems[1].param), 0);
        }
      }
    }
  }
}

// After one iteration an infinity has turned its own column into NaN and its row into zeros; the next iteration
// carries the NaN everywhere.
TEST(SinkGDCases, AnInfinityPropagatesAsInTheEagerForm) {
  for (const Mix& mix : some_mixes()) {
    for (const int iterations : {1, 2, 5}) {
      for (const Shape& shape : {kSmall, kShared}) {
        std::vector<SinkGDProblem> problems = make_sinkgd(mix, {shape}, 10);
        SinkGDProblem& p = problems[0];
        p.grad.set((p.rows - 1) * p.cols + 4, -kInf);
        const double w = p.param[(p.rows - 1) * p.cols + 5];
        ASSERT_NO_FATAL_FAILURE(step_and_check(problems, without_decay(1e-8, iterations), 2));
        EXPECT_EQ(testing::count_nan(p.param), iterations == 1 ? p.rows : p.param.numel());
        if (iterations == 1) {
          EXPECT_EQ(p.param[(p.rows - 1) * p.cols + 5], w);
        }
      }
    }
  }
}

}  // namespace
}  // namespace sage_ext
