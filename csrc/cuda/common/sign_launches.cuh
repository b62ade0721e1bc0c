#pragma once

#include "cuda/common/elements.cuh"
#include "cuda/common/multi_tensor.cuh"

// What the launches of Lion, Sign-SGD and Signum share.
namespace sage_ext::cuda {

struct SignEntry {
  void* param;
  const void* grad;
  void* exp_avg;  // not used without momentum
  int64_t numel;
};

// Calls `run(dtypes, entries, blocks)` for every mix of dtypes; `dtypes_of` names those that make a mix.
template <typename Tensor, typename DTypesOf, typename Run>
void for_each_sign_launch(std::span<const Tensor> tensors, const DTypesOf& dtypes_of, const Run& run) {
  for_each_dtype_mix(tensors, dtypes_of, [&](const auto& dtypes, std::span<const Tensor> mix) {
    std::vector<SignEntry> entries;
    std::vector<int64_t> blocks;
    for (const Tensor& t : mix) {
      if (t.numel == 0) continue;
      entries.push_back({t.param, t.grad, t.exp_avg, t.numel});
      blocks.push_back(ceil_div(t.numel, kMapChunk));
    }
    run(dtypes, std::span<const SignEntry>(entries), std::span<const int64_t>(blocks));
  });
}

}  // namespace sage_ext::cuda
