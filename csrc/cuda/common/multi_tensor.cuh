#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "core/dtype.h"
#include "core/launch_plan.h"
#include "cuda/common/launch.h"

// One launch over many tensors: their pointers and sizes travel by value in the kernel's parameter, and a block
// finds its tensor by a search in the prefix sums of the tensors' blocks.
namespace sage_ext::cuda {

template <typename Common, typename Tensor>
struct TensorTable {
  static constexpr int kCapacity =
      static_cast<int>((kMaxParamBytes - sizeof(Common) - 32) / (sizeof(Tensor) + sizeof(uint32_t)));
  Common common;  // the same for all tensors
  Tensor tensors[kCapacity];
  uint32_t first_block[kCapacity];
  int32_t count;

#if defined(SAGE_EXT_SIMT)
  // Every thread of the emulator gets a copy, which takes longer than all else if it has the empty places as well.
  TensorTable() = default;
  TensorTable(const TensorTable& other) : common(other.common), count(other.count) {
    std::copy_n(other.tensors, count, tensors);
    std::copy_n(other.first_block, count, first_block);
  }
#endif
};

// A block's place: the tensor's index in the table, and which of the tensor's blocks this is.
struct BlockPlace {
  int tensor;
  int64_t block;
};

template <typename Table>
__device__ __forceinline__ BlockPlace find_tensor(const Table& table, uint32_t block) {
  int low = 0;
  int high = table.count - 1;  // the last tensor whose first block is not past ours
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.first_block[middle] <= block) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return {low, static_cast<int64_t>(block - table.first_block[low])};
}

// Launches `kernel` over all tensors: once, unless they are more than a table holds. tensors[i] gets blocks[i]
// blocks, at least 1.
template <typename Common, typename Tensor>
void launch_tensors(const char* name, void (*kernel)(KernelArgument<TensorTable<Common, Tensor>>), int threads,
                    cudaStream_t stream, const Common& common, std::span<const Tensor> tensors,
                    std::span<const int64_t> blocks) {
  using Table = TensorTable<Common, Tensor>;
  for (const LaunchRange& range : plan_launches(blocks, Table::kCapacity, kMaxBlocks)) {
    Table table;
    table.common = common;
    table.count = static_cast<int32_t>(range.end - range.begin);
    uint32_t first = 0;
    for (int64_t i = range.begin; i < range.end; ++i) {
      table.tensors[i - range.begin] = tensors[static_cast<size_t>(i)];
      table.first_block[i - range.begin] = first;
      first += static_cast<uint32_t>(blocks[static_cast<size_t>(i)]);
    }
    launch(name, kernel, range.blocks, threads, stream, table);
  }
}

// Calls body(dtypes, tensors) for every mix of dtypes that occurs: a launch has one. `dtypes_of(tensor)` is an
// array of DType. The order within a mix is kept.
template <typename Tensor, typename DTypesOf, typename Body>
void for_each_dtype_mix(std::span<const Tensor> tensors, DTypesOf&& dtypes_of, Body&& body) {
  std::map<decltype(dtypes_of(tensors[0])), std::vector<Tensor>> mixes;
  for (const Tensor& tensor : tensors) mixes[dtypes_of(tensor)].push_back(tensor);
  for (const auto& [dtypes, mix] : mixes) body(dtypes, std::span<const Tensor>(mix));
}

}  // namespace sage_ext::cuda
