#pragma once

#include <array>
#include <cmath>
#include <vector>

#include "alias_problem.h"
#include "core/math/alias_adam.h"

// A tensor for ALIAS-Adam and what one step should make of it, in fp64 and from the formulas alone.
namespace sage_ext::testing {

struct AliasAdamOptions {
  double lr = 1e-2, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.1, grad_factor = 1.0;

  AliasAdamConstants constants() const { return {beta1, beta2, eps, weight_decay}; }
};

struct AliasAdamProblem {
  Buffer param, grad, exp_avg, exp_avg_sq;
  SignBuffer signs;
  Buffer scalars_of_tensor{DType::float32, 2 * kAliasAdamScalars};

  // `offsets` in elements, of W, g and both moments; in words, of the planes.
  AliasAdamProblem(const Mix& mix, int64_t numel, const std::array<int64_t, 5>& offsets)
      : param(mix.param, numel, offsets[0]),
        grad(mix.grad, numel, offsets[1]),
        exp_avg(mix.state, numel, offsets[2]),
        exp_avg_sq(mix.state, numel, offsets[3]),
        signs(numel, offsets[4]) {
    signs.clear();
    scalars() = {0.0, 1.0};
  }

  void fill(Random& random) {
    fill_normal(param, random, 0.5);
    fill_gradient(grad, 7, random);
  }

  AliasAdamScalars& scalars() { return *static_cast<AliasAdamScalars*>(scalars_of_tensor.data()); }
  const AliasAdamScalars& scalars() const { return *static_cast<const AliasAdamScalars*>(scalars_of_tensor.data()); }

  template <typename Tensor>
  Tensor view() {
    return {param.data(), grad.data(),   exp_avg.data(), exp_avg_sq.data(), signs.data(),
            &scalars(),   param.numel(), param.dtype(),  grad.dtype(),      exp_avg.dtype()};
  }
};

template <typename Tensor>
std::vector<Tensor> alias_adam_views(std::vector<AliasAdamProblem>& problems) {
  std::vector<Tensor> result;
  for (AliasAdamProblem& problem : problems) result.push_back(problem.view<Tensor>());
  return result;
}

inline std::vector<AliasAdamProblem> make_alias_adam(const Mix& mix, const std::vector<int64_t>& sizes, uint64_t seed,
                                                     const std::array<int64_t, 5>& offsets = {}) {
  Random random(seed);
  std::vector<AliasAdamProblem> problems;
  for (const int64_t size : sizes) problems.emplace_back(mix, size, offsets).fill(random);
  return problems;
}

inline std::vector<std::byte> bytes_of(const std::vector<AliasAdamProblem>& problems) {
  std::vector<std::byte> bytes;
  for (const AliasAdamProblem& p : problems) {
    for (const Buffer* buffer : {&p.param, &p.exp_avg, &p.exp_avg_sq, &p.signs.buffer(), &p.scalars_of_tensor}) {
      const std::vector<std::byte> more = buffer->bytes();
      bytes.insert(bytes.end(), more.begin(), more.end());
    }
  }
  return bytes;
}

// What a step should make of a tensor as it is now.
class AliasAdamExpected {
 public:
  AliasAdamExpected(const AliasAdamProblem& p, const AliasAdamOptions& options)
      : options_(options),
        old_(p.scalars()),
        grad_bytes_(p.grad.bytes()),
        param_(p.param.values()),
        grad_(p.grad.values()),
        exp_avg_(p.exp_avg.values()),
        exp_avg_sq_(p.exp_avg_sq.values()),
        signs_(grad_.size()) {
    for (size_t i = 0; i < grad_.size(); ++i) {
      const float g = static_cast<float>(grad_[i]) * static_cast<float>(options.grad_factor);
      inner_ += static_cast<double>(g) * p.signs.sign(static_cast<int64_t>(i));
      magnitude_ += std::abs(static_cast<double>(g));
      signs_[i] = static_cast<double>(sign_or_zero(g));
    }
  }

  // `is_finite`: fp64 is no measure for what overflows in fp32.
  void check(const AliasAdamProblem& after, bool is_finite = true) const {
    const AliasAdamScalars& got = after.scalars();
    const double root = std::sqrt(options_.beta2);
    const double r = root * old_.r + (1 - root) * (old_.d * inner_);
    const double slack = kSumAccuracy * (1 - root) * old_.d * magnitude_ + 1e-15 * std::abs(old_.r);
    ASSERT_TRUE(is_near(got.r, r, slack)) << "r";
    ASSERT_TRUE(is_near(got.d, max_or_nan(old_.d, got.r), 0)) << "d";
    ASSERT_EQ(after.grad.bytes(), grad_bytes_);
    ASSERT_EQ(after.signs.buffer().bytes(), planes_of(signs_)) << "signs";
    ASSERT_NO_FATAL_FAILURE(check_bits(after));
    if (!is_finite) return;
    ASSERT_NO_FATAL_FAILURE(check_values(after));
  }

 private:
  // Those of one element at a time, with the d that was found.
  void check_bits(const AliasAdamProblem& after) const {
    const AliasAdamCoefficients k =
        alias_adam_coefficients(options_.lr, after.scalars().d, options_.grad_factor, options_.constants());
    const int64_t numel = after.param.numel();
    Buffer param(after.param.dtype(), numel), exp_avg(after.exp_avg.dtype(), numel);
    Buffer exp_avg_sq(after.exp_avg.dtype(), numel);
    for (int64_t i = 0; i < numel; ++i) {
      const auto at = static_cast<size_t>(i);
      auto w = static_cast<float>(param_[at]);
      auto m = static_cast<float>(exp_avg_[at]);
      auto v = static_cast<float>(exp_avg_sq_[at]);
      alias_adam_update(w, m, v, static_cast<float>(grad_[at]), k);
      param.set(i, static_cast<double>(w));
      exp_avg.set(i, static_cast<double>(m));
      exp_avg_sq.set(i, static_cast<double>(v));
    }
    ASSERT_TRUE(same_bits(after.param, param)) << "param";
    ASSERT_TRUE(same_bits(after.exp_avg, exp_avg)) << "exp_avg";
    ASSERT_TRUE(same_bits(after.exp_avg_sq, exp_avg_sq)) << "exp_avg_sq";
  }

  void check_values(const AliasAdamProblem& after) const {
    const AliasAdamOptions& o = options_;
    const double d = after.scalars().d;
    Expected param(param_.size()), exp_avg(param), exp_avg_sq(param);
    for (size_t i = 0; i < param_.size(); ++i) {
      const double g = d * grad_[i] * o.grad_factor;
      const double m = o.beta1 * exp_avg_[i] + (1 - o.beta1) * g;
      const double v = o.beta2 * exp_avg_sq_[i] + (1 - o.beta2) * g * g;
      exp_avg.value[i] = m;
      exp_avg.slack[i] = 5 * kUlp * (std::abs(o.beta1 * exp_avg_[i]) + std::abs((1 - o.beta1) * g)) + 0x1p-140;
      exp_avg_sq.value[i] = v;
      exp_avg_sq.slack[i] = 8 * kUlp * v + 0x1p-140;
      const double denominator = std::sqrt(v) + o.eps;
      const double update = denominator == 0 ? 0 : o.lr * d * m / denominator;
      param.value[i] = param_[i] * (1 - o.lr * o.weight_decay) - update;
      param.slack[i] = 2 * kUlp * std::abs(param_[i]) + 12 * kUlp * std::abs(update);
      if (denominator != 0) param.slack[i] += o.lr * d * exp_avg.slack[i] / denominator;
    }
    ASSERT_TRUE(matches(after.exp_avg, exp_avg)) << "exp_avg";
    ASSERT_TRUE(matches(after.exp_avg_sq, exp_avg_sq)) << "exp_avg_sq";
    ASSERT_TRUE(matches(after.param, param)) << "param";
  }

  AliasAdamOptions options_;
  AliasAdamScalars old_;
  std::vector<std::byte> grad_bytes_;
  Values param_, grad_, exp_avg_, exp_avg_sq_, signs_;
  double inner_ = 0, magnitude_ = 0;
};

}  // namespace sage_ext::testing
