// Every way in which SinkGD's row kernel goes through a matrix: by the width of its rows, whether they start on 16-byte
// boundaries, and the block's threads; each with sums that fp32 holds, and with some that it does not.
#include <set>
#include <tuple>

#include "sinkgd_support.h"

namespace sage_ext {
namespace {

using testing::cuda_step_and_check;
using testing::kSinkGDOptions;
using testing::make_sinkgd;
using testing::Mix;
using testing::Shape;
using testing::SinkGDPlans;
using testing::SinkGDProblem;

using Path = std::tuple<bool, int32_t, int32_t>;  // aligned, vectors of a thread, threads of a block

cpu::SinkGDOptions options_without_eps() {
  cpu::SinkGDOptions options = kSinkGDOptions;
  options.iterations = 2;
  options.weight_decay = 0.0;
  options.eps = 0.0;
  return options;
}

// A row and a column that are zero, a tiny and a huge row, and a tiny and a huge column: their sums are taken in fp64.
void make_extreme(SinkGDProblem& p) {
  for (int64_t i = 0; i < p.grad.numel(); ++i) {
    const int64_t row = i / p.cols, col = i % p.cols;
    double value = p.grad[i];
    if (row == 1 || col == p.cols - 1) value = 0.0;
    if (row == 2 || col == 5) value *= 1e-18;
    if (row == 3 || col == 6) value *= 1e18;
    p.grad.set(i, value);
  }
}

void check_paths(const Mix& mix, const std::vector<Shape>& shapes, std::set<Path>& seen, int64_t offset = 0) {
  for (const bool extreme : {false, true}) {
    SCOPED_TRACE(std::string(name(mix.grad)) + (extreme ? ", sums outside of fp32" : ""));
    std::vector<SinkGDProblem> problems = make_sinkgd(mix, shapes, 1, std::array<int64_t, 2>{0, offset});
    for (SinkGDProblem& p : problems) {
      fill(p.param, 0.0);
      if (extreme) make_extreme(p);
    }
    const SinkGDPlans plans(cuda_tensors(problems));
    for (size_t i = 0; i < shapes.size(); ++i) seen.insert({plans.aligned[i], plans.plans[i].vectors, plans.threads});
    ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, options_without_eps()));
  }
}

// Of every number of vectors a row that fills it and one that does not, and teams of 8 to all threads.
TEST(CudaSinkGDPaths, RowsInRegisters) {
  std::set<Path> seen;
  // For 256 threads, then for 512: the widest matrix decides.
  for (const Mix& mix : {testing::kFloat, Mix{DType::float32, DType::bfloat16, {}}}) {
    const int64_t vec = 16 / itemsize(mix.grad);
    std::vector<Shape> shapes = {{70, vec * 2},   {70, vec * 8},   {70, vec * 9},   {35, vec * 33},  {19, vec * 100},
                                 {9, vec * 256},  {9, vec * 257},  {5, vec * 512},  {5, vec * 700},  {4, vec * 1000},
                                 {4, vec * 1024}, {4, vec * 1500}, {4, vec * 1536}, {4, vec * 2000}, {4, vec * 2048}};
    ASSERT_NO_FATAL_FAILURE(check_paths(mix, shapes, seen));
    shapes.push_back({4, vec * 2049});
    shapes.push_back({4, vec * 4096});
    ASSERT_NO_FATAL_FAILURE(check_paths(mix, shapes, seen));
  }
  for (const int32_t threads : {kSinkhornThreads, kWideSinkhornThreads}) {
    for (const int32_t vectors : {1, 2, 3, 4, 6, 8}) EXPECT_TRUE(seen.contains({true, vectors, threads})) << vectors;
  }
}

TEST(CudaSinkGDPaths, RowsInRegistersOffTheBoundary) {
  for (const Mix& mix : {testing::kFloat, Mix{DType::float32, DType::bfloat16, {}}}) {
    std::set<Path> seen;
    const int64_t vec = 16 / itemsize(mix.grad);
    const int64_t most = max_sinkhorn_vectors(false, vec);
    std::vector<Shape> shapes = {{70, 8},
                                 {70, vec * 2 + 1},
                                 {70, vec * 8 - 1},
                                 {35, vec * 33 + 2},
                                 {19, vec * 100},
                                 {9, vec * 256 - 1},
                                 {9, vec * 256},
                                 {9, vec * 256 + 1},
                                 {5, vec * 300 + 1},
                                 {5, vec * 512 - 1},
                                 {5, vec * 512},
                                 {5, vec * 700 + 1},
                                 {4, vec * 1000},
                                 {4, vec * 192 * most},
                                 {4, vec * 256 * most - 1}};
    ASSERT_NO_FATAL_FAILURE(check_paths(mix, shapes, seen, 1));
    shapes.push_back({4, vec * 1300 + 1});
    shapes.push_back({4, vec * 384 * most});
    shapes.push_back({4, vec * 512 * most - 3});
    ASSERT_NO_FATAL_FAILURE(check_paths(mix, shapes, seen, 3));
    for (const int32_t threads : {kSinkhornThreads, kWideSinkhornThreads}) {
      for (const int32_t vectors : {1, 2, 3, 4, 6, 8}) {
        EXPECT_EQ(seen.contains({false, vectors, threads}), vectors <= most) << vectors << ", " << threads;
      }
    }
  }
}

TEST(CudaSinkGDPaths, RowsThatDoNotFit) {
  std::set<Path> seen;
  for (const Mix& mix : {testing::kFloat, Mix{DType::float32, DType::bfloat16, {}}}) {
    const int64_t vec = 16 / itemsize(mix.grad);
    ASSERT_NO_FATAL_FAILURE(check_paths(mix, {{5, vec * 4097}, {18, 65}, {5, vec * 5000}}, seen));
    ASSERT_NO_FATAL_FAILURE(check_paths(mix, {{5, 16385}, {18, 64}, {4, 20003}}, seen));
  }
  EXPECT_TRUE(seen.contains({true, kSplitRows, kWideSinkhornThreads}));
  EXPECT_TRUE(seen.contains({false, kSplitRows, kWideSinkhornThreads}));
}

// The widths of large models' matrices: up to 32,768 columns in bf16 are read once an iteration, 40,000 twice.
TEST(CudaSinkGDPaths, WideRows) {
  for (const auto& [cols, reads] : {std::pair{28'672, 1}, {32'768, 1}, {40'000, 2}}) {
    std::vector<SinkGDProblem> problems = make_sinkgd(testing::kBFloat, {{6, cols}}, 2);
    cpu::SinkGDOptions options = kSinkGDOptions;
    options.iterations = 1;
    const auto launches =
        testing::launches_of([&] { ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, options)); });
    EXPECT_EQ(launches[0].bytes_read, static_cast<uint64_t>(6 * cols * 2 * reads));
  }
  for (const auto& [cols, reads] : {std::pair{16'384, 1}, {16'388, 2}}) {
    std::vector<SinkGDProblem> problems = make_sinkgd(testing::kFloat, {{6, cols}}, 2);
    cpu::SinkGDOptions options = kSinkGDOptions;
    options.iterations = 1;
    const auto launches =
        testing::launches_of([&] { ASSERT_NO_FATAL_FAILURE(cuda_step_and_check(problems, options)); });
    EXPECT_EQ(launches[0].bytes_read, static_cast<uint64_t>(6 * cols * 4 * reads));
  }
}

}  // namespace
}  // namespace sage_ext
