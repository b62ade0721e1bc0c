#pragma once

#include <string>
#include <vector>

#include "pieces.h"

// What SAGE, SCALE and SinkGD make of tensors in pieces, against fp64: on the CPU and on the emulator. A `Device` has
// run(pieces, options), which runs the stages of a step, and says how much the tests may take.
namespace sage_ext::testing {

inline std::vector<Mix> piece_mixes() { return {kFloat, kBFloat, {DType::bfloat16, DType::float32, DType::float16}}; }

// All in one call. Some have rows or columns that a process has nothing of.
template <typename Problem>
std::vector<Size> usual_sizes() {
  std::vector<Size> sizes = {{5, 777}, {1, 31}, {31, 1}, {9, 255}, {130, 33}, {37, 304}, {1, 1}};
  if (!std::is_same_v<Problem, SageProblem>) {
    for (const Size& size : {Size{17, 29, 5}, {64, 40, 3}, {3, 1, 4}}) sizes.push_back(size);
  }
  return sizes;
}

template <typename Device, typename Problem, typename Options>
void check_sizes(const Options& options) {
  for (const Mesh& mesh : kMeshes) {
    for (const Mix& mix : piece_mixes()) {
      SCOPED_TRACE(describe(mix));
      std::vector<Problem> problems = make_problems<Problem>(mix, usual_sizes<Problem>(), 1);
      // Every step is cut anew.
      for (uint64_t step = 0; step < 2; ++step) {
        ASSERT_NO_FATAL_FAILURE((step_in_pieces_and_check<Device>(problems, options, mesh, 10 + step)));
      }
    }
    std::vector<Problem> problems = make_problems<Problem>(kFloat, Device::large_sizes(), 2);
    ASSERT_NO_FATAL_FAILURE((step_in_pieces_and_check<Device>(problems, options, mesh, 20)));
  }
}

// Tensors of all dtypes in one call.
template <typename Device, typename Problem, typename Options>
void check_mixes(const Options& options) {
  for (const Mesh& mesh : Device::some_meshes()) {
    std::vector<Problem> problems;
    for (const Mix& mix : all_mixes()) {
      problems.push_back(std::move(make_problems<Problem>(mix, {{6, 21}}, problems.size())[0]));
    }
    ASSERT_NO_FATAL_FAILURE((step_in_pieces_and_check<Device>(problems, options, mesh, 80)));
  }
}

// W starts at zero, so that the size of every update is visible to the last bits of fp32.
template <typename Device, typename Problem, typename Options>
void check_steps(const Options& options, const std::vector<Size>& sizes) {
  uint64_t seed = 30;
  for (const Mesh& mesh : Device::some_meshes()) {
    std::vector<Problem> problems = make_problems<Problem>(kFloat, sizes, 3);
    Random random(31);
    for (int step = 0; step < 2; ++step) {
      for (Problem& p : problems) {
        fill_gradient(p.grad, p.cols, random);
        if (options.weight_decay == 0.0) fill(p.param, 0.0);
      }
      ASSERT_NO_FATAL_FAILURE((step_in_pieces_and_check<Device>(problems, options, mesh, ++seed)));
    }
  }
}

template <typename Device>
void check_sage_options() {
  for (int bits = 0; bits < 16; ++bits) {
    cpu::SageOptions options = kSageOptions;
    options.momentum_first = (bits & 1) != 0;
    options.instant_damper = (bits & 2) != 0;
    options.eps = (bits & 4) != 0 ? 1e-8 : 0.0;
    options.grad_factor = (bits & 8) != 0 ? -1.0 / 1024 : 1.0;
    options.weight_decay = bits % 3 == 0 ? 0.0 : 0.3;
    SCOPED_TRACE("options " + std::to_string(bits));
    ASSERT_NO_FATAL_FAILURE((check_steps<Device, SageProblem>(options, {{20, 57}, {1, 300}, {9, 5}})));
  }
}

template <typename Device>
void check_scale_options() {
  for (int bits = 0; bits < 16; ++bits) {
    for (const bool momentum : {false, true}) {
      cpu::ScaleOptions options = scale_options((bits & 1) != 0, momentum);
      options.rms = (bits & 2) != 0;
      options.eps = (bits & 4) != 0 ? 0.25 : 0.0;
      options.grad_factor = (bits & 8) != 0 ? -1.0 / 1024 : 1.0;
      options.weight_decay = bits % 3 == 0 ? 0.0 : 0.3;
      SCOPED_TRACE("options " + std::to_string(bits) + ", " + describe(options));
      ASSERT_NO_FATAL_FAILURE((check_steps<Device, ScaleProblem>(options, {{20, 57}, {7, 9, 3}, {40, 3}})));
    }
  }
}

template <typename Device>
void check_sinkgd_options() {
  int round = 0;
  for (const int iterations : {1, 2, 5}) {
    for (const bool unit : {false, true}) {
      for (const double eps : {0.0, 1e-3}) {
        for (const double factor : {1.0, -1.0 / 1024}) {
          cpu::SinkGDOptions options = kSinkGDOptions;
          options.iterations = iterations;
          options.unit = unit;
          options.eps = eps;
          options.grad_factor = factor;
          options.weight_decay = ++round % 3 == 0 ? 0.3 : 0.0;
          SCOPED_TRACE("options " + std::to_string(round));
          ASSERT_NO_FATAL_FAILURE((check_steps<Device, SinkGDStack>(options, {{20, 57}, {7, 9, 3}, {40, 3}})));
        }
      }
    }
  }
}

// Gradients that hurt. Each makes of element (row, col) of the whole matrix what stands in its place.
struct HardCase {
  const char* name;
  double (*value)(double g, int64_t row, int64_t col);
};

inline constexpr HardCase kHardCases[] = {
    {"tiny", [](double g, int64_t, int64_t) { return g * 1e-20; }},
    {"huge", [](double g, int64_t, int64_t) { return g * 1e20; }},
    {"zero rows", [](double g, int64_t row, int64_t) { return row % 3 == 0 ? 0.0 : g; }},
    {"zero columns", [](double g, int64_t, int64_t col) { return col % 3 == 0 ? -0.0 : g; }},
    {"zero", [](double, int64_t, int64_t) { return 0.0; }},
    {"a tiny row", [](double g, int64_t row, int64_t) { return row == 2 ? g * 1e-20 : g; }},
    {"a huge row", [](double g, int64_t row, int64_t) { return row == 2 ? g * 1e20 : g; }},
    {"a tiny column", [](double g, int64_t, int64_t col) { return col == 2 ? g * 1e-15 : g; }},
    {"a huge column", [](double g, int64_t, int64_t col) { return col == 2 ? g * 1e15 : g; }},
    {"a NaN", [](double g, int64_t row, int64_t col) { return row == 3 && col == 2 ? kNaN : g; }},
    {"an infinity", [](double g, int64_t row, int64_t col) { return row == 3 && col == 2 ? -kInf : g; }},
};

template <typename Device, typename Problem, typename Options>
void check_hard_cases(Options options, const std::vector<double>& all_eps) {
  options.weight_decay = 0.0;
  for (const HardCase& c : kHardCases) {
    for (const double eps : all_eps) {
      options.eps = eps;
      for (const Mesh& mesh : Device::some_meshes()) {
        SCOPED_TRACE(std::string(c.name) + ", eps " + std::to_string(eps));
        std::vector<Problem> problems = make_problems<Problem>(kFloat, {{12, 150}, {70, 5}}, 4);
        for (Problem& p : problems) {
          fill(p.param, 0.0);
          if constexpr (std::is_same_v<Problem, ScaleProblem>) fill(p.exp_avg, 0.0);
          for (int64_t i = 0; i < p.grad.numel(); ++i) p.grad.set(i, c.value(p.grad[i], i / p.cols, i % p.cols));
        }
        ASSERT_NO_FATAL_FAILURE((step_in_pieces_and_check<Device>(problems, options, mesh, 40)));
        for (const Problem& p : problems) {
          const bool has_nan = std::string(c.name) == "a NaN" || std::string(c.name) == "an infinity";
          if (!has_nan) {
            EXPECT_EQ(count_nan(p.param), 0);
          }
          for (int64_t i = 0; !has_nan && i < p.param.numel(); ++i) {
            if (p.grad[i] == 0.0) {
              ASSERT_EQ(p.param[i], 0.0) << "what has no gradient stays";
            }
          }
        }
      }
    }
  }
}

// The piece with the NaN is one of several: it has to reach the others.
template <typename Device, typename Problem, typename Options>
void check_nan_reaches_all(const Options& options) {
  for (const Mesh& mesh : Device::some_meshes()) {
    for (const Mix& mix : piece_mixes()) {
      std::vector<Problem> problems = make_problems<Problem>(mix, {{12, 150}, {70, 5}}, 5);
      problems[0].grad.set(150 * 7 + 80, kNaN);
      ASSERT_NO_FATAL_FAILURE((step_in_pieces_and_check<Device>(problems, options, mesh, 50)));
      EXPECT_EQ(count_nan(problems[0].param), problems[0].param.numel());
      EXPECT_EQ(count_nan(problems[1].param), 0);
    }
  }
}

// Column sums over very many rows, and row sums over very many columns.
template <typename Device, typename Problem, typename Options>
void check_long_sums(const Options& options, int64_t length) {
  for (const Mesh& mesh : Device::some_meshes()) {
    std::vector<Problem> problems = make_problems<Problem>(kFloat, {{length, 3}, {3, length}}, 6);
    Random random(60);
    for (Problem& p : problems) {
      for (int64_t i = 0; i < p.grad.numel(); ++i) p.grad.set(i, 1.0 + 0.25 * random.normal());
    }
    ASSERT_NO_FATAL_FAILURE((step_in_pieces_and_check<Device>(problems, options, mesh, 61)));
  }
}

// SinkGD's column sums travel in fp64 once, and then in fp32: by then no column is much smaller than others. Nor does a
// gradient vanish that is far below eps.
template <typename Device>
void check_sinkgd_small_columns() {
  for (const Mesh& mesh : kMeshes) {
    for (const double column : {1e-17, 1e-24, 1e-30, 1.0}) {
      cpu::SinkGDOptions options = kSinkGDOptions;
      options.weight_decay = 0.0;
      options.eps = column == 1.0 ? 1e-8 : 0.0;
      std::vector<SinkGDStack> problems = make_problems<SinkGDStack>(kFloat, {{30, 40}}, 7);
      SinkGDStack& p = problems[0];
      Random random(70);
      fill(p.param, 0.0);
      const double all = column == 1.0 ? 1e-33 : 1.0;
      for (int64_t i = 0; i < p.grad.numel(); ++i)
        p.grad.set(i, random.normal() * all * (i % p.cols == 7 ? column : 1));
      ASSERT_NO_FATAL_FAILURE((step_in_pieces_and_check<Device>(problems, options, mesh, 71)));
    }
  }
}

}  // namespace sage_ext::testing
