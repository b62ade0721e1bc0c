#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/launch_plan.h"
#include "cpu/common/parallel.h"

namespace sage_ext::cpu {

inline constexpr int64_t kMapChunk = int64_t{1} << 16;  // elements of a task

template <typename Tensor>
ChunkPlan plan_map(std::span<const Tensor> tensors) {
  std::vector<int64_t> sizes;
  sizes.reserve(tensors.size());
  for (const Tensor& tensor : tensors) sizes.push_back(tensor.numel);
  return plan_chunks(sizes, kMapChunk);
}

// An element-wise pass: body(tensor, begin, end) for chunks that cover every tensor's `numel` elements.
template <typename Tensor, typename Body>
void map_chunks(std::span<const Tensor> tensors, int threads, Body&& body) {
  const ChunkPlan plan = plan_map(tensors);
  parallel_tasks(plan.num_tasks(), threads, [&](int64_t task) {
    for (const Chunk& chunk : plan.task(task)) {
      body(tensors[static_cast<size_t>(chunk.tensor)], chunk.begin, chunk.end);
    }
  });
}

// What such a pass found in one chunk, and the index of the chunk's tensor.
template <typename Result>
struct ChunkResult {
  int64_t tensor;
  Result value;
};

// The same with a body that returns a Result: those of all chunks, in the order of the tensors and their elements, so
// that whoever adds them up does it in the same order for any number of threads.
template <typename Result, typename Tensor, typename Body>
std::vector<ChunkResult<Result>> reduce_chunks(std::span<const Tensor> tensors, int threads, Body&& body) {
  const ChunkPlan plan = plan_map(tensors);
  std::vector<ChunkResult<Result>> results(plan.chunks().size());
  parallel_tasks(plan.num_tasks(), threads, [&](int64_t task) {
    for (const Chunk& chunk : plan.task(task)) {
      results[static_cast<size_t>(&chunk - plan.chunks().data())] = {
          chunk.tensor, body(tensors[static_cast<size_t>(chunk.tensor)], chunk.begin, chunk.end)};
    }
  });
  return results;
}

}  // namespace sage_ext::cpu
