// ALIAS-Adam's kernels against fp64: storage types, sizes, options, scalars of every tensor, launches.
#include "alias_adam_problem.h"
#include "cuda/alias_adam.h"
#include "cuda/common/block_slots.cuh"
#include "device_scalars.h"
#include "launches.h"
#include "llama_shapes.h"

namespace sage_ext {
namespace {

using testing::AliasAdamExpected;
using testing::AliasAdamOptions;
using testing::AliasAdamProblem;
using testing::Buffer;
using testing::DeviceScalars;
using testing::launches_of;
using testing::make_alias_adam;
using testing::Mix;
using testing::names_of;
using testing::Random;

using Names = std::vector<std::string>;
using Offsets = std::array<int64_t, 5>;  // of W, g, both moments, and the planes
constexpr AliasAdamOptions kOptions;
constexpr Mix kFloatState{DType::bfloat16, DType::bfloat16, DType::float32};

void cuda_step(std::vector<AliasAdamProblem>& problems, const AliasAdamOptions& options,
               const cuda::StepScalars& scalars) {
  const auto tensors = testing::alias_adam_views<cuda::AliasAdamTensor>(problems);
  const int64_t bytes = cuda::alias_adam_workspace_bytes(tensors);
  Buffer workspace(DType::float32, ceil_div(bytes, 4));
  simt::poison(workspace.data(), static_cast<size_t>(bytes));
  cuda::alias_adam_step(tensors, options.constants(), scalars, workspace.data(), nullptr);
}

void cuda_step(std::vector<AliasAdamProblem>& problems, const AliasAdamOptions& options = kOptions,
               bool lr_tensor = false) {
  cuda_step(problems, options, DeviceScalars(options.lr, options.grad_factor, lr_tensor).get());
}

void step_and_check(std::vector<AliasAdamProblem>& problems, const AliasAdamOptions& options = kOptions,
                    bool lr_tensor = false, bool is_finite = true) {
  std::vector<AliasAdamExpected> expected;
  for (const AliasAdamProblem& p : problems) expected.emplace_back(p, options);
  cuda_step(problems, options, lr_tensor);
  for (size_t i = 0; i < problems.size(); ++i) {
    SCOPED_TRACE("tensor " + std::to_string(i));
    ASSERT_NO_FATAL_FAILURE(expected[i].check(problems[i], is_finite));
  }
}

// Some steps, each with gradients of its own.
void steps_and_check(std::vector<AliasAdamProblem>& problems, int steps, const AliasAdamOptions& options = kOptions,
                     bool lr_tensor = false) {
  Random random(99);
  for (int step = 0; step < steps; ++step) {
    SCOPED_TRACE("step " + std::to_string(step));
    ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options, lr_tensor));
    for (AliasAdamProblem& p : problems) fill_gradient(p.grad, 7, random);
  }
}

TEST(CudaAliasAdam, EveryMixOfDTypes) {
  for (const Mix& mix : testing::all_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    std::vector<AliasAdamProblem> problems = make_alias_adam(mix, {777, 1, 31, 32, 33, 4097}, 1);
    ASSERT_NO_FATAL_FAILURE(steps_and_check(problems, 3));
  }
}

TEST(CudaAliasAdam, MisalignedPointers) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat, kFloatState}) {
    for (const Offsets& offsets : {Offsets{1, 1, 1, 1, 1}, {3, 0, 0, 0, 0}, {0, 1, 0, 0, 0}, {0, 0, 3, 5, 1}}) {
      SCOPED_TRACE(testing::describe(mix) + ", g off by " + std::to_string(offsets[1]));
      std::vector<AliasAdamProblem> problems = make_alias_adam(mix, {1, 31, 33, 777, 16389}, 2, offsets);
      ASSERT_NO_FATAL_FAILURE(steps_and_check(problems, 2));
    }
  }
}

TEST(CudaAliasAdam, SizesAroundAChunkAndEmptyTensors) {
  for (const Mix& mix : {testing::kFloat, kFloatState}) {
    std::vector<AliasAdamProblem> problems =
        make_alias_adam(mix, {0, 255, 256, 257, 0, 0, 16383, 16384, 16385, 1, 65535, 65536, 65537, 2, 0}, 3);
    ASSERT_NO_FATAL_FAILURE(steps_and_check(problems, 2));
  }
}

// Every tensor's d is its own; where gradients agree with the ones before, it grows.
TEST(CudaAliasAdam, EveryTensorHasItsOwnScalars) {
  std::vector<AliasAdamProblem> problems = make_alias_adam(testing::kFloat, {40000, 100, 0, 333}, 4);
  for (size_t i = 0; i < problems.size(); ++i) problems[i].scalars() = {0.5 * static_cast<double>(i), 1e-8};
  for (int step = 0; step < 3; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems));
  EXPECT_GT(problems[0].scalars().d, 1e-8);
  EXPECT_NE(problems[1].scalars().d, problems[3].scalars().d);
  // Without elements d catches up with r all the same.
  EXPECT_GT(problems[2].scalars().d, 0.99);
}

TEST(CudaAliasAdam, MoreTensorsThanATableHolds) {
  std::vector<int64_t> sizes(1000, 5);
  sizes[400] = sizes[999] = 0;
  std::vector<AliasAdamProblem> problems = make_alias_adam(testing::kFloat, sizes, 5);
  const auto launches = launches_of([&] { ASSERT_NO_FATAL_FAILURE(steps_and_check(problems, 1)); });
  EXPECT_EQ(names_of(launches),
            (Names{"alias_adam_observe", "alias_adam_observe", "alias_adam_advance", "alias_adam", "alias_adam"}));
}

TEST(CudaAliasAdam, OptionsOverSteps) {
  for (const bool lr_tensor : {false, true}) {
    for (const double weight_decay : {0.0, 0.3}) {
      for (const double eps : {0.0, 1e-8}) {
        for (const double factor : {1.0, -1.0, 1.0 / 1024}) {
          const AliasAdamOptions options{
              .lr = static_cast<double>(1e-2f), .eps = eps, .weight_decay = weight_decay, .grad_factor = factor};
          std::vector<AliasAdamProblem> problems = make_alias_adam(testing::kFloat, {1000}, 6);
          ASSERT_NO_FATAL_FAILURE(steps_and_check(problems, 4, options, lr_tensor));
        }
      }
    }
  }
}

TEST(CudaAliasAdam, NothingToDo) {
  std::vector<AliasAdamProblem> none;
  EXPECT_TRUE(launches_of([&] { cuda_step(none); }).empty());
}

TEST(CudaAliasAdam, FoundInfChangesNothing) {
  std::vector<AliasAdamProblem> problems = make_alias_adam(kFloatState, {777, 0, 40000}, 7);
  ASSERT_NO_FATAL_FAILURE(steps_and_check(problems, 1));
  const std::vector<std::byte> before = bytes_of(problems);
  const auto launches =
      launches_of([&] { cuda_step(problems, kOptions, DeviceScalars(1e-2, 1.0, false, 1.0f).get()); });
  EXPECT_EQ(before, bytes_of(problems));
  for (const simt::Launch& launch : launches) EXPECT_EQ(launch.bytes_read + launch.bytes_written, 0u);
}

TEST(CudaAliasAdam, ZeroGradientsStayPut) {
  for (const double eps : {0.0, 1e-8}) {
    const AliasAdamOptions options{.eps = eps, .weight_decay = 0.0};
    std::vector<AliasAdamProblem> problems = make_alias_adam(kFloatState, {1000}, 8);
    fill(problems[0].grad, -0.0);
    const std::vector<std::byte> before = problems[0].param.bytes();
    for (int step = 0; step < 2; ++step) ASSERT_NO_FATAL_FAILURE(step_and_check(problems, options));
    EXPECT_EQ(problems[0].param.bytes(), before);
  }
}

// A NaN spoils d, and so does an infinity where the last sign was 0; otherwise d becomes infinite.
TEST(CudaAliasAdam, NonFiniteGradients) {
  for (const double value : {testing::kNaN, testing::kInf, -testing::kInf}) {
    for (const int64_t place : {0, 77, 255, 256, 301}) {
      std::vector<AliasAdamProblem> problems = make_alias_adam(testing::kBFloat, {33, 302, 20}, 9);
      Random random(10);
      for (int step = 0; step < 3; ++step) {
        if (step == 1) problems[1].grad.set(place, value);
        ASSERT_NO_FATAL_FAILURE(step_and_check(problems, kOptions, false, /*is_finite=*/false));
        for (AliasAdamProblem& p : problems) fill_gradient(p.grad, 7, random);
      }
      EXPECT_TRUE(std::isfinite(problems[0].scalars().d) && std::isfinite(problems[2].scalars().d));
    }
  }
}

TEST(CudaAliasAdam, SumsAreExactWhereTheyCanBe) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    std::vector<AliasAdamProblem> problems = make_alias_adam(mix, {65536 + 333}, 11);
    AliasAdamProblem& p = problems[0];
    double sum = 0.0;
    for (int64_t i = 0; i < p.grad.numel(); ++i) {
      p.grad.set(i, i / 2048 % 2 == 0 ? 0x1p24 : 1.0);  // in turns of a thread
      sum += p.grad[i];
    }
    const AliasAdamOptions options{.beta2 = 0.25};
    cuda_step(problems, options);
    EXPECT_EQ(p.scalars().r, 0.0);
    cuda_step(problems, options);
    EXPECT_EQ(p.scalars().r, 0.5 * sum);
  }
}

// The floors: to look at them, the gradients and planes there and back; then what Adam moves. On top comes a number a
// block, there and back, and the scalars.
TEST(CudaAliasAdamLaunches, ExactBytes) {
  for (const Mix& mix : testing::all_mixes()) {
    for (const Offsets& offsets : {Offsets{}, {0, 1, 0, 0, 1}}) {
      SCOPED_TRACE(testing::describe(mix));
      std::vector<AliasAdamProblem> problems = make_alias_adam(mix, {20000, 777, 0, 33}, 12, offsets);
      const auto launches = launches_of([&] { cuda_step(problems); });
      ASSERT_EQ(names_of(launches), (Names{"alias_adam_observe", "alias_adam_advance", "alias_adam"}));
      constexpr uint64_t kNumel = 20810, kBlocks = 2 + 1 + 1, kTensors = 4, kPlanes = 8 * (625 + 25 + 2);
      const auto w = static_cast<uint64_t>(itemsize(mix.param)), g = static_cast<uint64_t>(itemsize(mix.grad));
      const auto m = static_cast<uint64_t>(itemsize(mix.state));
      EXPECT_EQ(launches[0].grid.x, kBlocks);
      EXPECT_EQ(launches[0].bytes_read, kNumel * g + kPlanes);
      EXPECT_EQ(launches[0].bytes_written, kPlanes + 8 * kBlocks);
      EXPECT_EQ(launches[0].uniform_bytes, 4 * kBlocks);  // found_inf
      EXPECT_EQ(launches[1].grid.x, kTensors);
      EXPECT_EQ(launches[1].bytes_read, 8 * kBlocks + 16 * kTensors);
      EXPECT_EQ(launches[1].bytes_written, 16 * kTensors);
      EXPECT_EQ(launches[1].uniform_bytes, 4 * kTensors);
      EXPECT_EQ(launches[2].grid.x, kBlocks);
      EXPECT_EQ(launches[2].bytes_read, kNumel * (w + g + 2 * m));
      EXPECT_EQ(launches[2].bytes_written, kNumel * (w + 2 * m));
      EXPECT_EQ(launches[2].uniform_bytes, 12 * kBlocks);  // found_inf and d
    }
  }
}

TEST(CudaAliasAdamLaunches, AccessesAreCoalesced) {
  for (const Mix& mix : {testing::kFloat, kFloatState, Mix{DType::float32, DType::bfloat16, DType::float16}}) {
    std::vector<AliasAdamProblem> problems = make_alias_adam(mix, {65536}, 13);
    const auto launches = launches_of([&] { cuda_step(problems); }, true);
    for (const size_t i : {0, 2}) {
      EXPECT_EQ(launches[i].sector_efficiency_read(), 1.0);
      EXPECT_GT(launches[i].sector_efficiency_written(), 0.99);
    }
  }
}

TEST(CudaAliasAdamLaunches, SchedulesGiveTheSameBits) {
  for (const Mix& mix : {testing::kFloat, kFloatState}) {
    const auto run = [&] {
      std::vector<AliasAdamProblem> problems = make_alias_adam(mix, {40003, 5, 0, 777, 16385}, 14, {1, 0, 0, 0, 0});
      for (int step = 0; step < 2; ++step) cuda_step(problems);
      return bytes_of(problems);
    };
    EXPECT_TRUE(simt::same_under_schedules(run, 5));
  }
}

TEST(CudaAliasAdamLaunches, In7B) {
  std::vector<cuda::AliasAdamTensor> tensors;
  for (const testing::Shape& s : testing::llama_shapes(testing::kLlama7B, true)) {
    tensors.push_back({nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, s.rows * s.cols, DType::bfloat16,
                       DType::bfloat16, DType::float32});
  }
  EXPECT_EQ(cuda::alias_adam_workspace_bytes(tensors), 66'048);  // 8 for each of 8,251 blocks
}

}  // namespace
}  // namespace sage_ext
