// The rules on a language model: a Llama of 7B parameters in plans, and a small one on the emulator, with the bytes
// that a step moves.
#include "cuda/adamw.h"
#include "cuda/common/elements.cuh"
#include "cuda/common/launch.h"
#include "cuda/lion.h"
#include "cuda/sage.h"
#include "llama_shapes.h"
#include "sinkgd_support.h"

namespace sage_ext {
namespace {

using testing::Buffer;
using testing::count_elements;
using testing::DeviceScalars;
using testing::kLlama7B;
using testing::llama_shapes;
using testing::Shape;
using testing::SinkGDPlans;

constexpr DType kBF16 = DType::bfloat16;

// Tensors without memory: enough to plan with.
std::vector<cuda::SinkGDTensor> sinkgd_tensors(const std::vector<Shape>& shapes, DType dtype = kBF16) {
  std::vector<cuda::SinkGDTensor> tensors;
  for (const Shape& s : shapes) tensors.push_back({nullptr, nullptr, 1, s.rows, s.cols, dtype, dtype});
  return tensors;
}

std::vector<cuda::SageTensor> sage_tensors(const std::vector<Shape>& shapes) {
  std::vector<cuda::SageTensor> tensors;
  for (const Shape& s : shapes) {
    tensors.push_back({nullptr, nullptr, nullptr, nullptr, nullptr, s.rows, s.cols, kBF16, kBF16, kBF16});
  }
  return tensors;
}

template <typename BlocksOf>
int64_t total_blocks(const std::vector<Shape>& shapes, const BlocksOf& blocks_of) {
  std::vector<int64_t> blocks;
  for (const Shape& shape : shapes) blocks.push_back(blocks_of(shape));
  const auto launches = plan_launches(blocks, 300, cuda::kMaxBlocks);  // every rule's table holds more
  EXPECT_EQ(launches.size(), 1u);
  return launches[0].blocks;
}

// What a step of SinkGD moves besides gradients and parameters, where rows are read once: sums of the row blocks, and
// scales. The first iteration starts from scales of 1; a row's old scale is looked at, and then used.
struct ScratchTraffic {
  uint64_t read = 0, written = 0;
};

ScratchTraffic scratch_traffic(const std::vector<cuda::SinkGDTensor>& tensors, const SinkGDPlans& plans) {
  constexpr uint64_t kIterations = 5;
  ScratchTraffic scratch;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto rows = static_cast<uint64_t>(tensors[i].rows), cols = static_cast<uint64_t>(tensors[i].cols);
    const uint64_t partials = static_cast<uint64_t>(plans.plans[i].row_blocks) * cols;
    scratch.read += 4 * (kIterations * partials + (kIterations - 1) * (rows + cols));
    scratch.written += 4 * kIterations * (partials + rows + cols);
  }
  return scratch;
}

int64_t map_blocks(const Shape& s) { return ceil_div(s.rows * s.cols, cuda::kMapChunk); }

TEST(CudaLlama, ElementwiseRulesIn7B) {
  const std::vector<Shape> shapes = llama_shapes(kLlama7B, true);
  EXPECT_EQ(shapes.size(), 291u);
  EXPECT_EQ(count_elements(shapes), 6'738'415'616);
  EXPECT_EQ(total_blocks(shapes, map_blocks), 411'329);
}

TEST(CudaLlama, SinkGDIn7B) {
  const std::vector<Shape> shapes = llama_shapes(kLlama7B, false);
  const auto tensors = sinkgd_tensors(shapes);
  const SinkGDPlans plans(tensors);
  EXPECT_EQ(shapes.size(), 226u);
  EXPECT_EQ(count_elements(shapes), 6'738'149'376);
  EXPECT_EQ(plans.threads, kSinkhornThreads);
  size_t i = 0;
  EXPECT_EQ(total_blocks(shapes, [&](const Shape&) { return plans.plans[i++].row_blocks; }), 5562);
  EXPECT_EQ(total_blocks(shapes, [](const Shape& s) { return ceil_div(s.cols, int64_t{128}); }), 8960);
  EXPECT_EQ(total_blocks(shapes, map_blocks), 411'264);
  EXPECT_EQ(cuda::sinkgd_workspace_bytes(tensors), 115'566'592);  // 0.017 a parameter
  const ScratchTraffic scratch = scratch_traffic(tensors, plans);
  EXPECT_EQ(scratch.read + scratch.written, 1'145'382'912u);  // 0.173 a parameter, beside 16
}

TEST(CudaLlama, SageIn7B) {
  const std::vector<Shape> shapes = llama_shapes(kLlama7B, true);
  EXPECT_EQ(cuda::sage_workspace_bytes(sage_tensors(shapes)), 827'528'576);  // 0.123 a parameter
  const auto blocks = [](const Shape& s) {
    const ColumnBlocks plan = plan_column_blocks(s.rows, s.cols, 8);
    return plan.row_blocks * plan.tiles;
  };
  EXPECT_EQ(total_blocks(shapes, blocks), 103'506);
}

// The rows of a 70B model's widest matrix, 28,672 in bf16, are read once an iteration; and nothing overflows in a
// tensor of three thousand million elements.
TEST(CudaLlama, LargerStill) {
  const SinkGDPlans wide(sinkgd_tensors({{8192, 28672}, {28672, 8192}}));
  EXPECT_EQ(wide.threads, kWideSinkhornThreads);
  EXPECT_EQ(wide.plans[0].vectors, 8);
  EXPECT_EQ(wide.plans[1].vectors, 2);
  for (const Shape& shape : {Shape{366'211, 8192}, {3'000'000'000 / 64, 64}, {1, 3'000'000'000}}) {
    SCOPED_TRACE(describe(shape));
    EXPECT_EQ(total_blocks({shape}, map_blocks), ceil_div(shape.rows * shape.cols, int64_t{16384}));
    const auto tensors = sinkgd_tensors({shape});
    const SinkhornPlan plan = SinkGDPlans(tensors).plans[0];
    EXPECT_GE(int64_t{plan.row_blocks} * plan.rows_per_block, shape.rows);
    EXPECT_LT(int64_t{plan.row_blocks - 1} * plan.rows_per_block, shape.rows);
    const int64_t floats = shape.rows + shape.cols + plan.row_blocks * shape.cols;
    EXPECT_GE(cuda::sinkgd_workspace_bytes(tensors), 4 * floats);
    EXPECT_LT(cuda::sinkgd_workspace_bytes(tensors), 4 * floats + 3 * 128);
    EXPECT_GT(cuda::sage_workspace_bytes(sage_tensors({shape})), 0);
  }
}

// How many tensors one launch takes, seen from 1,500 that all end at once. The 7B Llama has 291.
TEST(CudaLlama, TablesHoldAWholeModel) {
  Buffer memory(DType::float32, 1500);
  const DeviceScalars scalars(1.0, 1.0, false, /*found_inf=*/1.0f);
  const auto first_grid = [&](const auto& step) {
    const auto launches = testing::launches_of(step);
    return launches[launches[0].kernel == "cudaMemsetAsync" ? 1 : 0].grid.x;
  };
  void* const data = memory.data();
  const std::vector<cuda::LionTensor> lion(1500, {data, data, data, 1, kBF16, kBF16, kBF16});
  EXPECT_EQ(first_grid([&] { cuda::lion_step(lion, {0.9, 0.99, 0.0}, scalars.get(), nullptr); }), 907u);
  const std::vector<cuda::AdamWTensor> adamw(1500, {data, data, data, data, memory.floats(), 1, kBF16, kBF16, kBF16});
  Buffer counters(DType::float32, cuda::adamw_workspace_bytes(adamw) / 4);
  EXPECT_EQ(
      first_grid([&] { cuda::adamw_step(adamw, {0.9, 0.99, 0.0, 0.0}, scalars.get(), counters.data(), nullptr); }),
      480u);
  const std::vector<cuda::SinkGDTensor> sinkgd(1500, {data, data, 1, 1, 1, kBF16, kBF16});
  Buffer scratch(DType::float32, cuda::sinkgd_workspace_bytes(sinkgd) / 4);
  EXPECT_EQ(
      first_grid([&] { cuda::sinkgd_step(sinkgd, {1.0, 0.0, 0.0, 1, false}, scalars.get(), scratch.data(), nullptr); }),
      355u);
}

// Floors: the gradient once an iteration and once for the update, W there and back: 16 bytes a parameter in bf16. What
// comes on top is scratch, to the byte.
TEST(CudaLlama, SinkGDMovesWhatItMust) {
  constexpr testing::LlamaSize kTiny{256, 688, 2, 500};
  std::vector<testing::SinkGDProblem> problems = testing::make_sinkgd(testing::kBFloat, llama_shapes(kTiny, false), 1);
  const auto tensors = cuda_tensors(problems);
  const SinkGDPlans plans(tensors);
  const auto launches = testing::launches_of([&] { testing::cuda_sinkgd_step(problems, testing::kSinkGDOptions); });
  ASSERT_EQ(launches.size(), 11u);
  uint64_t read = 0, written = 0;
  for (const simt::Launch& launch : launches) {
    read += launch.bytes_read;
    written += launch.bytes_written;
  }
  const ScratchTraffic scratch = scratch_traffic(tensors, plans);
  const uint64_t numel = 1'837'056;
  EXPECT_EQ(read - scratch.read + written - scratch.written, 16 * numel);
  EXPECT_EQ(written - scratch.written, 2 * numel);
  EXPECT_EQ(scratch.read, 1'091'712u);
  EXPECT_EQ(scratch.written, 1'136'800u);
}

}  // namespace
}  // namespace sage_ext
