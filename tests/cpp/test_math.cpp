#include <cmath>
#include <limits>

#include "core/math/adamw.h"
#include "core/math/sage.h"
#include "core/math/sign.h"
#include "core/math/sinkgd.h"
#include "support.h"

namespace sage_ext {
namespace {

TEST(Sign, ZeroAndNaNHaveNone) {
  EXPECT_EQ(sign_of(0.0f), 0.0f);
  EXPECT_EQ(sign_of(-0.0f), 0.0f);
  EXPECT_EQ(sign_of(NAN), 0.0f);
  EXPECT_EQ(sign_of(INFINITY), 1.0f);
  EXPECT_EQ(sign_of(-INFINITY), -1.0f);
  EXPECT_EQ(sign_of(std::numeric_limits<float>::denorm_min()), 1.0f);
  EXPECT_EQ(sign_of(-std::numeric_limits<float>::denorm_min()), -1.0f);
}

TEST(Lion, OneElementByHand) {
  const LionCoefficients k = lion_coefficients(/*lr=*/0.5, /*beta1=*/0.75, /*beta2=*/0.5, /*weight_decay=*/0.5, false);
  float w = 4.0f;
  float m = -1.0f;
  lion_update(w, m, /*grad=*/2.0f, /*step=*/0.5f, k);
  // The direction is 0.75 * -1 + 0.25 * 2 = -0.25; W = 4 * 0.75 + 0.5; m = 0.5 * -1 + 0.5 * 2.
  EXPECT_EQ(w, 3.5f);
  EXPECT_EQ(m, 0.5f);
}

TEST(Lion, MomentumFirstSeesTheNewMomentum) {
  const LionCoefficients k = lion_coefficients(1.0, 0.75, 0.5, 0.0, /*momentum_first=*/true);
  // b1 * (b2 * m + (1 - b2) * g) + (1 - b1) * g
  EXPECT_FLOAT_EQ(k.direction_exp_avg, 0.75f * 0.5f);
  EXPECT_FLOAT_EQ(k.direction_grad, 0.75f * 0.5f + 0.25f);
  EXPECT_EQ(k.exp_avg_decay, 0.5f);
  EXPECT_EQ(k.exp_avg_grad, 0.5f);
}

TEST(NanMin, KeepsNaN) {
  EXPECT_EQ(nan_min(1.0f, 2.0f), 1.0f);
  EXPECT_EQ(nan_min(2.0f, 1.0f), 1.0f);
  EXPECT_EQ(nan_min(INFINITY, 1.0f), 1.0f);
  EXPECT_TRUE(std::isnan(nan_min(NAN, 1.0f)));
  EXPECT_TRUE(std::isnan(nan_min(1.0f, NAN)));
  EXPECT_TRUE(std::isnan(nan_min(NAN, NAN)));
}

TEST(SageDamper, RatioOfZeros) {
  EXPECT_EQ(sage_ratio(0.0f, 0.0f, 0.0f), 0.0f);
  EXPECT_EQ(sage_ratio(0.0f, 0.0f, 1e-8f), 0.0f);
  EXPECT_GE(sage_ratio(1e-20f, 0.0f, 0.0f), 1.0f);
  EXPECT_EQ(sage_ratio(3.0f, 2.0f, 0.0f), 1.5f);
  EXPECT_EQ(sage_ratio(3.0f, 1.0f, 1.0f), 1.5f);
  EXPECT_TRUE(std::isnan(sage_ratio(NAN, 1.0f, 0.0f)));
  EXPECT_TRUE(std::isnan(sage_ratio(INFINITY, INFINITY, 0.0f)));
}

TEST(SageDamper, IsTheSmallestOfThree) {
  const SageDamper k{/*rms_s=*/1.0f, /*rms_s_hat=*/2.0f, /*inv_bias_correction=*/4.0f, /*eps=*/0.0f};
  EXPECT_EQ(sage_damper<true>(/*s_range=*/0.01f, /*s=*/0.01f, k), 1.0f);
  EXPECT_EQ(sage_damper<true>(1.0f, 0.5f, k), 0.5f);  // 2 / 4
  EXPECT_EQ(sage_damper<true>(0.25f, 8.0f, k), 0.125f);
  EXPECT_EQ(sage_damper<false>(0.25f, 8.0f, k), 1.0f);
  EXPECT_EQ(sage_damper<false>(1.0f, 8.0f, k), 0.5f);
}

TEST(SageEma, IsTheWeightedMean) { EXPECT_DOUBLE_EQ(sage_ema(2.0, 10.0, 0.75), 4.0); }

TEST(SinkGDRescale, ScalesTheNormToItsTarget) {
  EXPECT_DOUBLE_EQ(sinkgd_rescale(/*scale=*/1.0, /*sum_sq=*/16.0, /*target=*/3.0, /*eps=*/0.0), 0.75);
  EXPECT_DOUBLE_EQ(sinkgd_rescale(-2.0, 16.0, 3.0, 0.0), -0.75);  // maximize: the sign stays
  EXPECT_DOUBLE_EQ(sinkgd_rescale(1.0, 16.0, 3.0, 2.0), 0.5);     // eps is added to the norm, 4
  EXPECT_DOUBLE_EQ(sinkgd_rescale(2.0, 16.0, 3.0, 2.0), 0.6);     // 2 * 3 / (8 + 2)
}

TEST(SinkGDRescale, ZeroNaNAndInfinity) {
  EXPECT_EQ(sinkgd_rescale(1.0, 0.0, 3.0, 0.0), 0.0);
  EXPECT_EQ(sinkgd_rescale(1.0, 0.0, 3.0, 1e-8), 0.0);
  EXPECT_EQ(sinkgd_rescale(0.0, 4.0, 3.0, 0.0), 0.0);
  EXPECT_EQ(sinkgd_rescale(1.0, testing::kInf, 3.0, 0.0), 0.0);
  EXPECT_TRUE(std::isnan(sinkgd_rescale(1.0, testing::kNaN, 3.0, 0.0)));
  EXPECT_TRUE(std::isfinite(static_cast<float>(sinkgd_rescale(1.0, 1e-90, 1e3, 0.0))));
  EXPECT_TRUE(std::isfinite(static_cast<float>(sinkgd_rescale(-1.0, 1e-90, 1e3, 0.0))));
}

TEST(SinkGDSums, SafeOnlyInTheMiddle) {
  EXPECT_TRUE(squares_are_safe(1.0));
  for (const double sum : {0.0, 1e-38, 1e38, testing::kInf, testing::kNaN}) EXPECT_FALSE(squares_are_safe(sum));
}

TEST(AdamW, OneElementByHand) {
  // At step 1 the corrected moments are g and g^2, so W moves by lr against the sign of g.
  const AdamWCoefficients k =
      adamw_coefficients(/*lr=*/0.5, adamw_constants(0.5, 0.75, /*eps=*/0.0, /*weight_decay=*/0.5), 1);
  float w = 4.0f;
  float m = 0.0f;
  float v = 0.0f;
  adamw_update(w, m, v, /*grad=*/-2.0f, k);
  EXPECT_EQ(m, -1.0f);
  EXPECT_EQ(v, 1.0f);
  EXPECT_FLOAT_EQ(w, 4.0f * 0.75f + 0.5f);
}

TEST(AdamW, BiasCorrectionFollowsTheStep) {
  const AdamWCoefficients k = adamw_coefficients(0.1, adamw_constants(0.9, 0.999, 1e-8, 0.0), 10);
  EXPECT_FLOAT_EQ(k.step_size, static_cast<float>(0.1 / (1.0 - std::pow(0.9, 10))));
  EXPECT_FLOAT_EQ(k.inv_sqrt_correction2, static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(0.999, 10))));
  EXPECT_EQ(k.decay, 1.0f);
}

TEST(AdamW, ZeroMomentsStayPutWithoutEps) {
  const AdamWCoefficients k = adamw_coefficients(0.1, adamw_constants(0.9, 0.999, /*eps=*/0.0, 0.0), 3);
  float w = 4.0f;
  float m = 0.0f;
  float v = 0.0f;
  adamw_update(w, m, v, 0.0f, k);
  EXPECT_EQ(w, 4.0f);
  EXPECT_EQ(m, 0.0f);
  EXPECT_EQ(v, 0.0f);
}

}  // namespace
}  // namespace sage_ext
