// The column operand of updates: the column of every element, whatever the width and where a chunk starts.
#include "cuda/common/matrix_place.cuh"

#include <vector>

#include "simt/simt.h"
#include "support.h"

namespace sage_ext {
namespace {

constexpr int kN = 8;

struct Params {
  const float* data;
  int64_t cols;
  cuda::BlockElements range;
  float* groups;   // what load() gives for the chunk's groups
  float* singles;  // what load_one() gives for the head and the chunk
};

__global__ void read_columns(const Params __grid_constant__ p) {
  cuda::ColumnValues<kN, 2> columns(p.data, p.cols, p.range);
  const auto thread = static_cast<int>(threadIdx.x);
  for (int i = thread * kN; i + kN <= p.range.count; i += 32 * kN) {
    columns.load(1, i);
    columns.unpack(1);
    for (int e = 0; e < kN; ++e) p.groups[i + e] = columns.values[e];
  }
  for (int i = thread - p.range.head; i < p.range.count; i += 32) {
    columns.load_one(i);
    p.singles[i + p.range.head] = columns.values[0];
  }
}

// `first` is the first column that exists.
void check(int64_t cols, const cuda::BlockElements& range, int64_t first = 0) {
  SCOPED_TRACE(std::to_string(cols) + " columns, chunk at " + std::to_string(range.begin));
  testing::Buffer data(DType::float32, cols - first);
  for (int64_t j = first; j < cols; ++j) data.set(j - first, static_cast<double>(j % 100'003));
  std::vector<float> groups(static_cast<size_t>(range.count));
  std::vector<float> singles(static_cast<size_t>(range.count + range.head));
  simt::launch("read_columns", 1, 32, 0, nullptr, read_columns,
               Params{data.floats() - first, cols, range, groups.data(), singles.data()});
  for (int i = -range.head; i < range.count; ++i) {
    const auto expected = static_cast<float>((range.begin + i) % cols % 100'003);
    ASSERT_EQ(singles[static_cast<size_t>(i + range.head)], expected) << i;
    if (i >= 0 && i < range.count / kN * kN) {
      ASSERT_EQ(groups[static_cast<size_t>(i)], expected) << i;
    }
  }
}

TEST(CudaColumnValues, EveryWidth) {
  const auto chunk = static_cast<int>(cuda::kMapChunk);
  for (const int64_t cols : {1, 2, 3, 4, 5, 7, 8, 9, 100, 777, 4096, 8191, 16382, 16383, 16384, 16385, 20000, 40000}) {
    for (const int head : {0, 1, 6, 7}) {
      ASSERT_NO_FATAL_FAILURE(check(cols, {head, 2000, head}));
      ASSERT_NO_FATAL_FAILURE(check(cols, {head + 3 * cuda::kMapChunk, chunk, 0}));
    }
    // The chunk starts in the last column, and far into a tensor.
    ASSERT_NO_FATAL_FAILURE(check(cols, {cols * 50 - 1, chunk, 0}));
    ASSERT_NO_FATAL_FAILURE(check(cols, {cols * 5'000'000'000 + cols - 1, chunk, 0}));
  }
}

TEST(CudaColumnValues, MoreColumnsThanThirtyTwoBits) {
  const int64_t cols = 5'000'000'003;
  ASSERT_NO_FATAL_FAILURE(check(cols, {cols - 16'000, 16'000, 0}, cols - 16'001));
}

}  // namespace
}  // namespace sage_ext
