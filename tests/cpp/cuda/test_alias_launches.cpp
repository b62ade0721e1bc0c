// ALIAS's launches: how many, what they move, in which order they may run, and how a whole model is cut.
#include <numeric>

#include "alias_support.h"
#include "cuda/alias_move.cuh"
#include "llama_shapes.h"

namespace sage_ext {
namespace {

using testing::AliasProblem;
using testing::cuda_alias_step;
using testing::kAliasOptions;
using testing::launches_of;
using testing::make_alias;
using testing::Mix;
using testing::names_of;

using Names = std::vector<std::string>;
using Offsets = std::array<int64_t, 4>;

const char* observe_name(const AliasOptions& o) {
  if (o.form == AliasForm::base) return "alias_observe_difference";
  if (o.descent) return "alias_observe_signs";
  return o.form == AliasForm::sum ? "alias_observe_norm" : "alias_observe_extrema";
}

bool has_signs(const AliasOptions& o) { return o.form != AliasForm::base && o.descent; }

// All forms and gaps.
class CudaAliasLaunches : public ::testing::TestWithParam<AliasOptions> {};

TEST_P(CudaAliasLaunches, OneForEachPhaseAndMix) {
  const AliasOptions& o = GetParam();
  const char* const observe = observe_name(o);
  const char* const move = has_signs(o) ? "alias_move_signs" : "alias_move";
  AliasProblem problem = make_alias(o, testing::kFloat, {100, 0, 7, 20000}, 1);
  const auto names = [&] { return names_of(launches_of([&] { cuda_alias_step(problem); })); };
  EXPECT_EQ(names(), (Names{observe, "alias_advance", move}));
  problem.options.update_every = 2;
  const Names rarely = names();
  EXPECT_EQ(rarely, has_signs(o) ? (Names{observe, "alias_advance", move, "alias_move"})
                                 : (Names{observe, "alias_advance", move}));
  problem.options.phase = AliasPhase::move;
  EXPECT_EQ(names(), (Names{observe, "alias_advance", move}));
  problem.options.phase = AliasPhase::refresh;
  EXPECT_EQ(names(), (Names{observe, "alias_advance"}));
  // Another dtype of the gradient: to look at, and to move where gradients are read again.
  AliasProblem more = make_alias(o, {DType::float32, DType::bfloat16, DType::bfloat16}, {100}, 1);
  problem.tensors.push_back(std::move(more.tensors[0]));
  problem.options = o;
  EXPECT_EQ(names(), has_signs(o) ? (Names{observe, observe, "alias_advance", move})
                                  : (Names{observe, observe, "alias_advance", move, move}));
  AliasProblem none = make_alias(o, testing::kFloat, {0}, 1);
  EXPECT_EQ(names_of(launches_of([&] { cuda_alias_step(none); })), Names{"alias_advance"});
}

// The floors: what a form needs of gradients and of what is kept of the last one; the parameters there and back. On top
// come 32 bytes a block there and back, 8 for its displacement, and the scalars.
TEST_P(CudaAliasLaunches, ExactBytes) {
  const AliasOptions& o = GetParam();
  for (const DType param : testing::kDTypes) {
    for (const DType grad : testing::kDTypes) {
      for (const Offsets& offsets : {Offsets{}, {0, 1, 0, 0}, {1, 0, 1, 1}}) {
        SCOPED_TRACE(testing::describe(Mix{param, grad, grad}));
        AliasProblem problem = make_alias(o, {param, grad, grad}, {20000, 777, 0, 33}, 2, offsets);
        constexpr uint64_t kNumel = 20810, kBlocks = 2 + 1 + 1, kScalars = 72;
        const uint64_t planes = has_signs(o) ? 8 * (625 + 25 + 2) : 0;
        const auto w = static_cast<uint64_t>(itemsize(param)), g = static_cast<uint64_t>(itemsize(grad));
        const uint64_t kept = o.form == AliasForm::base ? kNumel * g : planes;
        for (int step = 1; step <= 3; ++step) {
          const auto launches = launches_of([&] { cuda_alias_step(problem); });
          ASSERT_EQ(launches.size(), 3u);
          const simt::Launch &observe = launches[0], &advance = launches[1], &move = launches[2];
          EXPECT_EQ(observe.grid.x, kBlocks);
          EXPECT_EQ(observe.bytes_read, kNumel * g + (step > 1 ? kept : 0));
          EXPECT_EQ(observe.bytes_written, kept + 32 * kBlocks);
          EXPECT_EQ(advance.grid.x, 1u);
          EXPECT_EQ(advance.bytes_read, 32 * kBlocks + kScalars);
          EXPECT_EQ(advance.bytes_written, kScalars + 4);
          EXPECT_EQ(move.grid.x, kBlocks);
          EXPECT_EQ(move.bytes_read, kNumel * w + (has_signs(o) ? planes : kNumel * g) + (4 + 8) * kBlocks);
          EXPECT_EQ(move.bytes_written, kNumel * w + (4 + 8) * kBlocks + 8);
          EXPECT_EQ(move.atomics, kBlocks);
          // found_inf, and the step, or gamma; the base form asks for the factor of the last gradient as well.
          EXPECT_EQ(observe.uniform_bytes, (o.form == AliasForm::base ? 20 : 12) * kBlocks);
          EXPECT_EQ(advance.uniform_bytes, 12u);
          EXPECT_EQ(move.uniform_bytes, 12 * kBlocks);
        }
      }
    }
  }
}

// A step that neither refreshes nor records only moves; with planes from the gradient itself, unless it is recorded.
TEST_P(CudaAliasLaunches, RareUpdatesReadLess) {
  AliasProblem problem = make_alias(GetParam(), testing::kBFloat, {4096}, 3);
  problem.options.update_every = 3;
  const bool signs = has_signs(GetParam());
  const uint64_t grad = 2 * 4096, param = 2 * 4096, planes = signs ? 1024 : 0;
  const uint64_t kept = GetParam().form == AliasForm::base ? grad : planes;
  for (int step = 1; step <= 7; ++step) {
    SCOPED_TRACE(step);
    const bool records = step % 3 == 1, refreshes = step % 3 == 2;
    const auto launches = launches_of([&] { cuda_alias_step(problem); });
    EXPECT_EQ(launches[0].bytes_read, (records || refreshes ? grad : 0) + (refreshes ? kept : 0));
    EXPECT_EQ(launches[0].bytes_written, (records ? kept : 0) + (records || refreshes ? 32 : 0));
    EXPECT_EQ(launches[1].bytes_read, 72u + (records || refreshes ? 32 : 0));
    if (signs) {
      ASSERT_EQ(launches.size(), 4u);
      EXPECT_EQ(launches[2].bytes_read, records ? param + planes + 12 : 0);
      EXPECT_EQ(launches[2].bytes_written, records ? param + 12 + 8 : 0);
    }
    EXPECT_EQ(launches.back().bytes_read, signs && records ? 0 : param + grad + 12);
    EXPECT_EQ(launches.back().bytes_written, signs && records ? 0 : param + 12 + 8);
  }
}

// But for the slots and counters, of which there are few for each block.
TEST_P(CudaAliasLaunches, AccessesAreCoalesced) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat, Mix{DType::bfloat16, DType::float32, DType::float32}}) {
    AliasProblem problem = make_alias(GetParam(), mix, {65536}, 4);
    cuda_alias_step(problem);
    for (const simt::Launch& launch : launches_of([&] { cuda_alias_step(problem); }, true)) {
      if (launch.kernel == "alias_advance") continue;
      EXPECT_LT(32 * launch.sectors_read, launch.bytes_read + 64 * launch.grid.x + 512) << launch.kernel;
      EXPECT_LT(32 * launch.sectors_written, launch.bytes_written + 96 * launch.grid.x + 512) << launch.kernel;
    }
    // Off the boundary: element by element, side by side, and words of the planes, whose sectors neighbours share.
    AliasProblem odd = make_alias(GetParam(), mix, {65536}, 4, {1, 1, 1, 1});
    cuda_alias_step(odd);
    for (const simt::Launch& launch : launches_of([&] { cuda_alias_step(odd); }, true)) {
      if (launch.kernel == "alias_advance") continue;
      EXPECT_GT(launch.sector_efficiency_read(), 0.4) << launch.kernel;
    }
  }
}

TEST_P(CudaAliasLaunches, SchedulesGiveTheSameBits) {
  for (const Mix& mix : {testing::kFloat, testing::kBFloat}) {
    const auto run = [&] {
      AliasProblem problem = make_alias(GetParam(), mix, {40003, 5, 0, 777, 16385}, 5, {1, 0, 0, 0});
      problem.tensors.push_back(std::move(make_alias(GetParam(), testing::kFloat, {33000}, 6).tensors[0]));
      problem.options.update_every = mix.param == DType::float32 ? 1 : 2;
      testing::Random random(7);
      for (int step = 0; step < 3; ++step) {
        problem.fill_grads(random);
        cuda_alias_step(problem);
      }
      return problem.bytes();
    };
    EXPECT_TRUE(simt::same_under_schedules(run, 5));
  }
}

// As in models so large that a block takes several chunks: the same slots, elements and planes as from small blocks.
// What differs is only how many there are, so the kernels are launched here with a size of block of their own.
TEST_P(CudaAliasLaunches, LargerBlocks) {
  constexpr int64_t kChunk = 3 * cuda::kMapChunk, kNumel = 2 * kChunk + 777;
  for (const Offsets& offsets : {Offsets{}, {1, 1, 1, 1}}) {
    AliasProblem problem = make_alias(GetParam(), testing::kBFloat, {kNumel}, 8, offsets);
    cuda_alias_step(problem);
    testing::Random random(9);
    problem.fill_grads(random);
    const testing::AliasExpected expected(problem, {});
    const auto tensors = problem.views<cuda::AliasTensor>();
    const cuda::AliasTensor& t = tensors[0];
    std::vector<AliasObservation> seen(3);
    std::vector<double> moved(3);
    unsigned finished = 0;
    const cuda::AliasCommon common{problem.options, {}, &problem.shared(), kChunk};
    cuda::ObserveTable observe{};
    observe.common = common;
    observe.count = 1;
    observe.tensors[0] = {t.grad, t.prev_grad != nullptr ? t.prev_grad : t.signs, seen.data(), kNumel};
    const auto launch = [](auto kernel, const auto& table) {
      simt::launch("larger", 3, cuda::kMapThreads, 0, nullptr, kernel, table);
    };
    const bool adds_up = problem.options.form == AliasForm::sum;
    launch(problem.options.form == AliasForm::base ? &cuda::alias_observe_difference_kernel<BFloat16>
           : !problem.options.descent
               ? (adds_up ? &cuda::alias_observe_norm_kernel<BFloat16> : &cuda::alias_observe_extrema_kernel<BFloat16>)
           : adds_up ? &cuda::alias_observe_signs_kernel<BFloat16, cuda::Norm>
                     : &cuda::alias_observe_signs_kernel<BFloat16, cuda::Extrema>,
           observe);
    AliasObservation total = seen[0];
    for (int i : {1, 2}) {
      total.grad_max = std::max(total.grad_max, seen[static_cast<size_t>(i)].grad_max);
      total.grad_min = std::min(total.grad_min, seen[static_cast<size_t>(i)].grad_min);
      total.inner += seen[static_cast<size_t>(i)].inner;
      total.norm += seen[static_cast<size_t>(i)].norm;
    }
    alias_advance(problem.shared(), total, 0.0, 0.0, 1.0, problem.options);
    cuda::MoveTable move{};
    move.common = {common, false, moved.data(), 3, &finished};
    move.count = 1;
    move.tensors[0] = {t.param, has_signs(problem.options) ? t.signs : t.grad, moved.data(), kNumel};
    launch(has_signs(problem.options) ? &cuda::alias_move_signs_kernel<BFloat16>
                                      : &cuda::alias_move_kernel<BFloat16, BFloat16>,
           move);
    ASSERT_NO_FATAL_FAILURE(expected.check(problem));
  }
}

INSTANTIATE_TEST_SUITE_P(Forms, CudaAliasLaunches, ::testing::ValuesIn(testing::alias_forms()));

// Slots are few however large the model, and blocks enough for any GPU.
TEST(CudaAliasPlan, In7B) {
  const std::vector<testing::Shape> shapes = testing::llama_shapes(testing::kLlama7B, true);
  const int64_t total = testing::count_elements(shapes);
  const int64_t chunk = cuda::slot_chunk(total);
  EXPECT_EQ(chunk, 51 * cuda::kMapChunk);
  int64_t blocks = 0;
  std::vector<cuda::AliasTensor> tensors;
  for (const testing::Shape& s : shapes) {
    blocks += ceil_div(s.rows * s.cols, chunk);
    tensors.push_back({nullptr, nullptr, nullptr, nullptr, s.rows * s.cols, DType::bfloat16, DType::bfloat16});
  }
  EXPECT_EQ(blocks, 8251);
  EXPECT_EQ(cuda::alias_workspace_bytes(tensors), 128 + 264'064 + 66'048);  // 40 a block
}

TEST(CudaAliasPlan, ChunksOfEverySize) {
  EXPECT_EQ(cuda::slot_chunk(0), cuda::kMapChunk);
  EXPECT_EQ(cuda::slot_chunk(8192 * cuda::kMapChunk), cuda::kMapChunk);
  EXPECT_EQ(cuda::slot_chunk(8192 * cuda::kMapChunk + 1), 2 * cuda::kMapChunk);
  EXPECT_EQ(cuda::slot_chunk(3'000'000'000), 23 * cuda::kMapChunk);
  // A block's place in its chunk is a 32-bit number, up to 17 times 10^12 parameters.
  EXPECT_LT(cuda::slot_chunk(17'000'000'000'000), int64_t{1} << 31);
}

// Table limits: 2,000 tensors that all end at once.
TEST(CudaAliasPlan, TablesHoldAWholeModel) {
  AliasProblem problem = make_alias(kAliasOptions, testing::kFloat, std::vector<int64_t>(2000, 1), 10);
  const auto launches = launches_of(
      [&] { cuda_alias_step(problem, {}, testing::DeviceScalars(1.0, 1.0, false, /*found_inf=*/1.0f).get()); });
  EXPECT_EQ(launches[0].grid.x, 906u);
  EXPECT_EQ(names_of(launches), (Names{"alias_observe_signs", "alias_observe_signs", "alias_observe_signs",
                                       "alias_advance", "alias_move_signs", "alias_move_signs", "alias_move_signs"}));
}

}  // namespace
}  // namespace sage_ext
