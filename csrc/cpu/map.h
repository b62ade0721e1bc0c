#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/launch_plan.h"
#include "cpu/parallel.h"

namespace sage_ext::cpu {

inline constexpr int64_t kMapChunk = int64_t{1} << 15;

// An element-wise pass: body(tensor, begin, end) for chunks that cover every tensor's `numel` elements.
template <typename Tensor, typename Body>
void map_chunks(std::span<const Tensor> tensors, int threads, Body&& body) {
  std::vector<int64_t> sizes;
  sizes.reserve(tensors.size());
  for (const Tensor& tensor : tensors) sizes.push_back(tensor.numel);
  const ChunkPlan plan = plan_chunks(sizes, kMapChunk);
  parallel_tasks(plan.num_tasks(), threads, [&](int64_t task) {
    for (const Chunk& chunk : plan.task(task)) {
      body(tensors[static_cast<size_t>(chunk.tensor)], chunk.begin, chunk.end);
    }
  });
}

}  // namespace sage_ext::cpu
