#include "core/math/sign.h"
#include "sign_sgd_problem.h"

namespace sage_ext {
namespace {

using cpu::SignSGDOptions;
using testing::bytes_of;
using testing::kSignSGDOptions;
using testing::kSignumOptions;
using testing::LionProblem;
using testing::make_lion;
using testing::Mix;
using testing::SignSGDExpected;

void step_and_check(std::vector<LionProblem>& problems, const SignSGDOptions& options, int threads) {
  std::vector<SignSGDExpected> expected;
  for (const LionProblem& problem : problems) expected.emplace_back(problem, options);
  sign_sgd_step(problems, options, threads);
  for (size_t i = 0; i < problems.size(); ++i) {
    SCOPED_TRACE("tensor " + std::to_string(i));
    ASSERT_TRUE(matches(problems[i].param, expected[i].param)) << "param";
    ASSERT_TRUE(matches(problems[i].exp_avg, expected[i].exp_avg)) << "exp_avg";
  }
}

TEST(SignSGD, OneElementByHand) {
  float w = 4.0f;
  sign_sgd_update(w, /*grad=*/-3.0f, /*step=*/0.5f, /*decay=*/0.75f);
  EXPECT_EQ(w, 3.5f);
  // The new momentum is 0.75 * 1 - 0.25 * 4 = -0.25, of the other sign than the old one.
  const SignumCoefficients k = signum_coefficients(/*lr=*/0.5, /*momentum=*/0.75, /*weight_decay=*/0.5);
  w = 4.0f;
  float m = 1.0f;
  signum_update(w, m, /*grad=*/-4.0f, /*step=*/0.5f, k);
  EXPECT_EQ(m, -0.25f);
  EXPECT_EQ(w, 3.5f);
}

// Both rules: without momentum, and with it.
class SignSGDStep : public ::testing::TestWithParam<SignSGDOptions> {};

TEST_P(SignSGDStep, EveryMixOfDTypes) {
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    for (const int64_t offset : {0, 1}) {
      std::vector<LionProblem> problems = make_lion(mix, {4097, 1, 777}, 1, offset);
      for (int step = 0; step < 3; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, GetParam(), 1));
    }
  }
}

TEST_P(SignSGDStep, SizesAroundAChunkAndEmptyTensors) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    std::vector<LionProblem> problems = make_lion(mix, {0, 32767, 1, 0, 32768, 32769, 31, 65536, 100003, 2, 0}, 2);
    for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, GetParam(), 3));
  }
}

TEST_P(SignSGDStep, Options) {
  for (const double weight_decay : {0.0, 0.3}) {
    for (const double factor : {1.0, -1.0, 1.0 / 1024}) {
      SignSGDOptions options = GetParam();
      options.weight_decay = weight_decay;
      options.grad_factor = factor;
      if (options.momentum != 0.0) options.momentum = factor == 1.0 ? 0.5 : 0.99;
      std::vector<LionProblem> problems = make_lion(testing::kFloat, {1000}, 4);
      for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options, 1));
    }
  }
}

TEST_P(SignSGDStep, NothingToDo) { cpu::sign_sgd_step({}, GetParam(), 2); }

TEST_P(SignSGDStep, ZerosOfBothSignsStayPut) {
  SignSGDOptions options = GetParam();
  options.weight_decay = 0.0;
  for (const double zero : {0.0, -0.0}) {
    std::vector<LionProblem> problems = make_lion(testing::kFloat, {100}, 5);
    fill(problems[0].grad, zero);
    fill(problems[0].exp_avg, 0.0);
    const std::vector<std::byte> before = problems[0].param.bytes();
    sign_sgd_step(problems, options, 1);
    EXPECT_EQ(problems[0].param.bytes(), before);
  }
}

TEST_P(SignSGDStep, TinyAndHugeGradients) {
  for (const double scale : {1e-20, 1e20}) {
    std::vector<LionProblem> problems = make_lion(testing::kFloat, {1000}, 6);
    for (int64_t i = 0; i < 1000; ++i) {
      problems[0].grad.set(i, problems[0].grad[i] * scale);
      problems[0].exp_avg.set(i, 0.0);
    }
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, GetParam(), 1));
  }
}

TEST_P(SignSGDStep, NonFiniteGradients) {
  for (const Mix& mix : testing::all_mixes()) {
    std::vector<LionProblem> problems = make_lion(mix, {101}, 7);
    problems[0].grad.set(0, testing::kNaN);
    problems[0].grad.set(50, testing::kInf);
    problems[0].grad.set(100, -testing::kInf);
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, GetParam(), 1));
    EXPECT_EQ(testing::count_nan(problems[0].param), 0);  // sign(NaN) = 0: it only decays
  }
}

// Every instruction set gives the bits of the scalar formula, with special values and odd lengths.
TEST_P(SignSGDStep, BitsOfTheScalarFormula) {
  const SignSGDOptions options = GetParam();
  const SignumCoefficients k = signum_coefficients(options.lr, options.momentum, options.weight_decay);
  const auto step = static_cast<float>(options.lr);
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    std::vector<LionProblem> got = make_lion(mix, {40001}, 8, 1);
    std::vector<LionProblem> expected = make_lion(mix, {40001}, 8);
    int64_t at = 17;
    for (const double value : {0.0, -0.0, 6e-8, 1e-40, 65504.0, 3e38, testing::kInf, -testing::kInf, testing::kNaN}) {
      for (std::vector<LionProblem>* problems : {&got, &expected}) {
        LionProblem& p = problems->front();
        p.grad.set(at, value);
        p.exp_avg.set(at + 100, value);
        p.param.set(at + 200, value);
      }
      at += 301;
    }
    sign_sgd_step(got, options, 1);
    LionProblem& e = expected[0];
    for (int64_t i = 0; i < e.param.numel(); ++i) {
      auto w = static_cast<float>(e.param[i]);
      auto m = static_cast<float>(e.exp_avg[i]);
      if (options.momentum == 0.0) {
        sign_sgd_update(w, static_cast<float>(e.grad[i]), step, k.decay);
      } else {
        signum_update(w, m, static_cast<float>(e.grad[i]), step, k);
      }
      e.param.set(i, w);
      e.exp_avg.set(i, m);
    }
    ASSERT_TRUE(same_bits(got[0].param, e.param));
    ASSERT_TRUE(same_bits(got[0].exp_avg, e.exp_avg));
  }
}

TEST_P(SignSGDStep, ThreadsAndRunsGiveTheSameBits) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    const std::vector<LionProblem> start = make_lion(mix, {100003, 5, 40000, 0, 70000}, 9);
    std::vector<std::byte> first;
    for (const int threads : {1, 1, 2, 3, 5}) {
      std::vector<LionProblem> problems = start;
      sign_sgd_step(problems, GetParam(), threads);
      if (first.empty()) first = bytes_of(problems);
      EXPECT_EQ(bytes_of(problems), first);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Plain, SignSGDStep, ::testing::Values(kSignSGDOptions));
INSTANTIATE_TEST_SUITE_P(Signum, SignSGDStep, ::testing::Values(kSignumOptions));

// The sign is that of the momentum as computed, also where it rounds to zero at the store.
TEST(Signum, TheSignComesBeforeTheRounding) {
  std::vector<LionProblem> problems = make_lion({DType::float32, DType::float32, DType::float16}, {100}, 10);
  fill(problems[0].grad, 1e-9);
  fill(problems[0].exp_avg, 0.0);
  fill(problems[0].param, 0.0);
  sign_sgd_step(problems, kSignumOptions, 1);
  for (int64_t i = 0; i < 100; ++i) {
    ASSERT_EQ(problems[0].param[i], -static_cast<double>(1e-2f));
    ASSERT_EQ(problems[0].exp_avg[i], 0.0);
  }
}

}  // namespace
}  // namespace sage_ext
