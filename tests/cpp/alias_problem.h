#pragma once

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "core/math/alias.h"
#include "core/math/sign.h"
#include "core/sign_planes.h"
#include "support.h"

// A group of tensors for ALIAS, and what one call should make of it, in fp64 and from the formulas alone. Kernels on
// any device take the same tensors.
namespace sage_ext::testing {

inline constexpr AliasOptions kAliasOptions{.form = AliasForm::extrema,
                                            .descent = true,
                                            .lower_bound = 0.25,
                                            .max_step = 1e-3,
                                            .weight_decay = 0.1,
                                            .warmup_steps = 0,
                                            .update_every = 1,
                                            .phase = AliasPhase::step};

// All forms and gaps.
inline std::vector<AliasOptions> alias_forms() {
  std::vector<AliasOptions> forms;
  for (const AliasForm form : {AliasForm::extrema, AliasForm::base, AliasForm::sum}) {
    for (const bool descent : {true, false}) {
      forms.push_back(kAliasOptions);
      forms.back().form = form;
      forms.back().descent = descent;
    }
  }
  return forms;
}

inline std::string describe(const AliasOptions& o) {
  constexpr const char* kNames[] = {"base", "extrema", "sum"};
  return std::string(kNames[static_cast<size_t>(o.form)]) + (o.descent ? ", descent" : ", lower bound") + ", warm-up " +
         std::to_string(o.warmup_steps) + ", every " + std::to_string(o.update_every) + ", phase " +
         std::to_string(static_cast<int>(o.phase));
}

// What a call gets beside tensors and options.
struct AliasInputs {
  double lr = 2e-4, loss = 2.5, grad_factor = 1.0;
};

// The bit planes of a tensor, as bytes between guards. At first they have bits that must not matter.
class SignBuffer {
 public:
  SignBuffer(int64_t numel, int64_t offset) : numel_(numel), words_(DType::float32, 2 * sign_words(numel), offset) {
    std::memset(words_.data(), 0xff, static_cast<size_t>(words_.numel()) * 4);
  }

  uint32_t* data() { return static_cast<uint32_t*>(words_.data()); }
  const Buffer& buffer() const { return words_; }
  Buffer& buffer() { return words_; }
  void clear() { std::memset(words_.data(), 0, static_cast<size_t>(words_.numel()) * 4); }
  double sign(int64_t i) const {
    return static_cast<double>(bit(i)) - static_cast<double>(bit(i + kSignsPerWord * sign_words(numel_)));
  }

 private:
  int bit(int64_t i) const {
    return static_cast<const uint32_t*>(words_.data())[i / kSignsPerWord] >> (i % kSignsPerWord) & 1;
  }

  int64_t numel_;
  Buffer words_;
};

// The planes of these signs, every other bit 0.
inline std::vector<std::byte> planes_of(const Values& signs) {
  const auto words = static_cast<size_t>(sign_words(static_cast<int64_t>(signs.size())));
  std::vector<std::byte> bytes(8 * words);
  for (size_t i = 0; i < signs.size(); ++i) {
    const size_t at = i / 8 + (signs[i] < 0 ? 4 * words : 0);
    if (signs[i] != 0) bytes[at] |= std::byte{1} << (i % 8);
  }
  return bytes;
}

inline float sign_or_zero(float x) { return x > 0 ? 1.0f : x < 0 ? -1.0f : 0.0f; }

struct AliasTensorProblem {
  Buffer param, grad, prev_grad;
  SignBuffer signs;

  // `offsets` in elements, of W, g and the gradient before it; in words, of the planes.
  AliasTensorProblem(const Mix& mix, int64_t numel, const std::array<int64_t, 4>& offsets)
      : param(mix.param, numel, offsets[0]),
        grad(mix.grad, numel, offsets[1]),
        prev_grad(mix.grad, numel, offsets[2]),
        signs(numel, offsets[3]) {
    testing::fill(prev_grad, kNaN);  // must not be looked at in the first step
  }
};

struct AliasProblem {
  std::vector<AliasTensorProblem> tensors;
  AliasOptions options = kAliasOptions;

  AliasScalars& shared() { return *static_cast<AliasScalars*>(shared_.data()); }
  const AliasScalars& shared() const { return *static_cast<const AliasScalars*>(shared_.data()); }

  // New gradients, some elements of which are 0.
  void fill_grads(Random& random, double scale = 1.0) {
    for (AliasTensorProblem& t : tensors) {
      fill_gradient(t.grad, 7, random);
      if (scale == 1.0) continue;
      for (int64_t i = 0; i < t.grad.numel(); ++i) t.grad.set(i, scale * t.grad[i]);
    }
  }

  // Of what a form does not keep there is no pointer.
  template <typename Tensor>
  std::vector<Tensor> views() {
    std::vector<Tensor> result;
    const bool has_signs = options.form != AliasForm::base && options.descent;
    for (AliasTensorProblem& t : tensors) {
      result.push_back({t.param.data(), t.grad.data(), has_signs ? t.signs.data() : nullptr,
                        options.form == AliasForm::base ? t.prev_grad.data() : nullptr, t.param.numel(),
                        t.param.dtype(), t.grad.dtype()});
    }
    return result;
  }

  std::vector<std::byte> bytes() const {
    std::vector<std::byte> bytes = shared_.bytes();
    for (const AliasTensorProblem& t : tensors) {
      for (const Buffer* buffer : {&t.param, &t.prev_grad, &t.signs.buffer()}) {
        const std::vector<std::byte> more = buffer->bytes();
        bytes.insert(bytes.end(), more.begin(), more.end());
      }
    }
    return bytes;
  }

  // The same numbers in other memory.
  AliasProblem copy() const {
    AliasProblem result;
    result.options = options;
    result.shared() = shared();
    for (const AliasTensorProblem& t : tensors) {
      AliasTensorProblem& other = result.tensors.emplace_back(Mix{t.param.dtype(), t.grad.dtype(), t.grad.dtype()},
                                                              t.param.numel(), std::array<int64_t, 4>{});
      other.param.assign(t.param.bytes());
      other.grad.assign(t.grad.bytes());
      other.prev_grad.assign(t.prev_grad.bytes());
      other.signs.buffer().assign(t.signs.buffer().bytes());
    }
    return result;
  }

 private:
  Buffer shared_{DType::float32, 2 * kAliasScalars};
};

inline AliasProblem make_alias(const AliasOptions& options, const Mix& mix, const std::vector<int64_t>& sizes,
                               uint64_t seed, const std::array<int64_t, 4>& offsets = {}) {
  Random random(seed);
  AliasProblem problem;
  problem.options = options;
  for (const int64_t size : sizes) {
    fill_normal(problem.tensors.emplace_back(mix, size, offsets).param, random, 0.5);
  }
  problem.fill_grads(random);
  return problem;
}

inline constexpr double kSumAccuracy = 1e-6;  // of a sum, relative to the sum of its terms' magnitudes

inline ::testing::AssertionResult is_near(double got, double expected, double slack) {
  if ((std::isnan(got) && std::isnan(expected)) || got == expected) return ::testing::AssertionSuccess();
  if (std::abs(got - expected) <= slack) return ::testing::AssertionSuccess();
  std::ostringstream message;
  message.precision(17);
  message << "is " << got << ", expected " << expected << " +- " << slack;
  return ::testing::AssertionFailure() << message.str();
}

inline double max_or_nan(double a, double b) { return std::isnan(a) || std::isnan(b) ? kNaN : std::max(a, b); }

// What a call should make of a group as it is now.
class AliasExpected {
 public:
  AliasExpected(const AliasProblem& problem, const AliasInputs& inputs)
      : before_(problem.copy()), inputs_(inputs), factor_(static_cast<float>(inputs.grad_factor)) {
    const AliasOptions& o = before_.options;
    step_ = before_.shared().step + (o.phase == AliasPhase::refresh ? 0 : 1);
    const auto number = static_cast<int64_t>(step_);
    const bool is_step = o.phase == AliasPhase::step;
    refreshes_ = is_step ? number >= 2 && (number - 2) % o.update_every == 0 : o.phase == AliasPhase::refresh;
    records_ = is_step ? (number - 1) % o.update_every == 0 : o.phase == AliasPhase::move;
    moves_ = o.phase != AliasPhase::refresh;
    observe();
  }

  void check(const AliasProblem& after) const {
    ASSERT_NO_FATAL_FAILURE(check_scalars(after.shared()));
    double sum = 0, largest = 0;
    for (size_t t = 0; t < before_.tensors.size(); ++t) {
      SCOPED_TRACE("tensor " + std::to_string(t));
      ASSERT_NO_FATAL_FAILURE(check_kept(before_.tensors[t], after.tensors[t]));
      ASSERT_NO_FATAL_FAILURE(check_params(before_.tensors[t], after.tensors[t], after.shared().step_size));
      for (int64_t i = 0; i < after.tensors[t].param.numel(); ++i) {
        const double moved = std::abs(after.tensors[t].param[i] - before_.tensors[t].param[i]);
        sum += moved;
        largest = max_or_nan(largest, moved);
      }
    }
    const double got = after.shared().displacement;
    if (!moves_) {
      ASSERT_TRUE(is_near(got, before_.shared().displacement, 0)) << "displacement";
    } else if (before_.options.form == AliasForm::extrema) {
      ASSERT_TRUE(is_near(got, sum, kSumAccuracy * sum)) << "displacement, a sum";
    } else {
      ASSERT_TRUE(is_near(got, largest, kUlp * largest)) << "displacement, a maximum";
    }
  }

 private:
  void observe() {
    bool is_first = true;
    for (const AliasTensorProblem& t : before_.tensors) {
      for (int64_t i = 0; i < t.grad.numel(); ++i) {
        const auto g = static_cast<double>(static_cast<float>(t.grad[i]) * factor_);
        const auto p =
            static_cast<double>(static_cast<float>(t.prev_grad[i]) * static_cast<float>(before_.shared().grad_factor));
        const bool has_planes = before_.options.form != AliasForm::base;
        inner_ += g * (has_planes ? t.signs.sign(i) : static_cast<double>(sign_or_zero(static_cast<float>(p))));
        magnitude_ += std::abs(g);
        difference_ += std::abs(g - p);
        max_ = is_first ? g : max_or_nan(max_, g);
        min_ = is_first ? g : -max_or_nan(-min_, -g);
        is_first = false;
      }
    }
  }

  void check_scalars(const AliasScalars& got) const {
    const AliasScalars& old = before_.shared();
    const AliasOptions& o = before_.options;
    EXPECT_EQ(got.step, step_);
    double eta = old.eta, eta_slack = 0, gap = old.gap, gap_slack = 0, d = old.d;
    if (refreshes_ && old.displacement != 0) {
      const double extrema = max_or_nan(std::abs(max_ - old.grad_min), std::abs(old.grad_max - min_));
      const double norms = magnitude_ + old.grad_max;
      const double change = o.form == AliasForm::extrema ? extrema : o.form == AliasForm::sum ? norms : difference_;
      eta += change / old.displacement;
      eta_slack = (o.form == AliasForm::extrema ? 1e-15 : kSumAccuracy) * eta;
    }
    if (refreshes_ && o.descent) {
      gap += old.step_size * inner_;
      gap_slack = kSumAccuracy * old.step_size * magnitude_ + 1e-15 * std::abs(gap);
    }
    EXPECT_TRUE(is_near(got.eta, eta, eta_slack)) << "eta";
    EXPECT_TRUE(is_near(got.gap, gap, gap_slack)) << "gap";
    // From here on with what was found, so that nothing below has to be as loose as a sum.
    if (refreshes_ && o.descent) d = max_or_nan(d, got.gap);
    if (moves_ && !o.descent && step_ == 1) d = max_or_nan(inputs_.loss - o.lower_bound, 0);
    EXPECT_TRUE(is_near(got.d, d, 0)) << "d";
    double step_size = old.step_size;
    if (moves_) {
      step_size = got.eta == 0 ? o.max_step : std::sqrt(got.d / got.eta);
      if (step_ <= static_cast<double>(o.warmup_steps)) step_size = inputs_.lr;
      step_size = -max_or_nan(-step_size, -o.max_step);
    }
    EXPECT_TRUE(is_near(got.step_size, step_size, 1e-15 * step_size)) << "step_size";
    if (o.form == AliasForm::sum) {
      EXPECT_TRUE(is_near(got.grad_max, records_ ? magnitude_ : old.grad_max, records_ ? kSumAccuracy * magnitude_ : 0))
          << "grad_max, the 1-norm";
      EXPECT_EQ(got.grad_min, 0.0);
    } else if (o.form == AliasForm::extrema) {
      EXPECT_TRUE(is_near(got.grad_max, records_ ? max_ : old.grad_max, 0)) << "grad_max";
      EXPECT_TRUE(is_near(got.grad_min, records_ ? min_ : old.grad_min, 0)) << "grad_min";
    } else {
      const double factor = records_ ? inputs_.grad_factor : old.grad_factor;
      EXPECT_TRUE(is_near(got.grad_factor, factor, kUlp * std::abs(factor))) << "grad_factor";
    }
  }

  // Nothing is kept but what the form needs; the gradient itself is only read.
  void check_kept(const AliasTensorProblem& before, const AliasTensorProblem& after) const {
    const AliasOptions& o = before_.options;
    ASSERT_EQ(after.grad.bytes(), before.grad.bytes());
    if (o.form == AliasForm::base && records_) {
      ASSERT_TRUE(same_bits(after.prev_grad, before.grad)) << "prev_grad";
    } else {
      ASSERT_EQ(after.prev_grad.bytes(), before.prev_grad.bytes()) << "prev_grad";
    }
    if (o.form != AliasForm::base && o.descent && records_) {
      Values signs(static_cast<size_t>(before.grad.numel()));
      for (size_t i = 0; i < signs.size(); ++i) signs[i] = static_cast<double>(sign(before, static_cast<int64_t>(i)));
      ASSERT_EQ(after.signs.buffer().bytes(), planes_of(signs)) << "signs";
    } else {
      ASSERT_EQ(after.signs.buffer().bytes(), before.signs.buffer().bytes()) << "signs";
    }
  }

  // fp64 says what is right; the bits are those of one element at a time.
  void check_params(const AliasTensorProblem& before, const AliasTensorProblem& after, double step_size) const {
    if (!moves_) {
      ASSERT_EQ(after.param.bytes(), before.param.bytes()) << "param";
      return;
    }
    const double weight_decay = before_.options.weight_decay;
    Expected exact(static_cast<size_t>(before.param.numel()));
    Buffer bits(before.param.dtype(), before.param.numel());
    for (int64_t i = 0; i < before.param.numel(); ++i) {
      const auto k = static_cast<size_t>(i);
      const double w = before.param[i];
      exact.value[k] = w * (1 - step_size * weight_decay) - step_size * static_cast<double>(sign(before, i));
      exact.slack[k] = 2 * kUlp * (std::abs(w) + step_size);
      auto value = static_cast<float>(w);
      sign_sgd_update(value, sign(before, i), static_cast<float>(step_size), decay_factor(step_size, weight_decay));
      bits.set(i, static_cast<double>(value));
    }
    ASSERT_TRUE(matches(after.param, exact)) << "param";
    ASSERT_TRUE(same_bits(after.param, bits)) << "param";
  }

  float sign(const AliasTensorProblem& t, int64_t i) const {
    return sign_or_zero(static_cast<float>(t.grad[i]) * factor_);
  }

  AliasProblem before_;
  AliasInputs inputs_;
  float factor_;
  double step_;
  bool refreshes_, records_, moves_;
  double inner_ = 0, magnitude_ = 0, difference_ = 0, max_ = 0, min_ = 0;
};

}  // namespace sage_ext::testing
