#include "cuda/adamw.h"

#include <array>

#include "core/math/adamw.h"
#include "cuda/common/elements.cuh"
#include "cuda/common/multi_tensor.cuh"
#include "cuda/common/shared.cuh"
#include "cuda/common/step_scalars.cuh"

namespace sage_ext::cuda {

namespace {

struct AdamWEntry {
  void* param;
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  float* step;
  unsigned* finished;  // blocks of this tensor that are done; 0 before the launch
  int64_t numel;
  unsigned blocks;
};

struct AdamWCommon {
  AdamWConstants constants;
  StepScalars scalars;
};

using AdamWTable = TensorTable<AdamWCommon, AdamWEntry>;

template <typename W, typename G, typename S>
__global__ void __launch_bounds__(kMapThreads) adamw_kernel(const AdamWTable __grid_constant__ table) {
  const StepScalars& scalars = table.common.scalars;
  if (skips_step(scalars)) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const AdamWEntry& tensor = table.tensors[index];

  // The bias corrections are fp64 functions of the step counter: once a block is enough.
  SAGE_EXT_SHARED(AdamWCoefficients, shared_coefficients);
  if (threadIdx.x == 0) {
    const float step = load_uniform(tensor.step) + 1.0f;
    shared_coefficients = adamw_coefficients(learning_rate(scalars), table.common.constants, step);
    // Every block has read the counter before it reports, so the last one may advance it.
    __threadfence();
    if (atomicAdd(tensor.finished, 1u) + 1 == tensor.blocks) store_one(tensor.step, step);
  }
  __syncthreads();
  const AdamWCoefficients k = shared_coefficients;
  const float factor = grad_factor(scalars);

  auto* param = static_cast<W*>(tensor.param);
  const BlockElements range = elements_of_block(param, tensor.numel, block);
  constexpr int kN = kGroupSize<W, G, S>;
  constexpr int kU = kGroupsInFlight<W, G, S, S>;
  update_elements<kN, kU>(
      range, [&](float& w, float g, float& m, float& v) { adamw_update(w, m, v, g * factor, k); },
      ArrayOperand<W, kN, kU>(param + range.begin),
      ArrayOperand<const G, kN, kU>(static_cast<const G*>(tensor.grad) + range.begin),
      ArrayOperand<S, kN, kU>(static_cast<S*>(tensor.exp_avg) + range.begin),
      ArrayOperand<S, kN, kU>(static_cast<S*>(tensor.exp_avg_sq) + range.begin));
}

}  // namespace

int64_t adamw_workspace_bytes(std::span<const AdamWTensor> tensors) {
  return static_cast<int64_t>(tensors.size() * sizeof(unsigned));
}

void adamw_step(std::span<const AdamWTensor> tensors, const AdamWOptions& options, const StepScalars& scalars,
                void* workspace, cudaStream_t stream) {
  const AdamWCommon common{adamw_constants(options.beta1, options.beta2, options.eps, options.weight_decay), scalars};
  auto* finished = static_cast<unsigned*>(workspace);
  fill_zero(workspace, static_cast<size_t>(adamw_workspace_bytes(tensors)), stream);
  const auto dtypes_of = [](const AdamWTensor& t) { return std::array{t.param_dtype, t.grad_dtype, t.state_dtype}; };
  for_each_dtype_mix(tensors, dtypes_of, [&](const auto& dtypes, std::span<const AdamWTensor> mix) {
    std::vector<AdamWEntry> entries;
    std::vector<int64_t> blocks;
    for (const AdamWTensor& t : mix) {
      // An empty parameter steps as well: one block, which only advances its counter.
      blocks.push_back(std::max<int64_t>(ceil_div(t.numel, kMapChunk), 1));
      entries.push_back({t.param, t.grad, t.exp_avg, t.exp_avg_sq, t.step, finished++, t.numel,
                         static_cast<unsigned>(blocks.back())});
    }
    visit_dtypes(
        [&](auto w, auto g, auto s) {
          launch_tensors(
              "adamw",
              &adamw_kernel<typename decltype(w)::type, typename decltype(g)::type, typename decltype(s)::type>,
              kMapThreads, stream, common, std::span<const AdamWEntry>(entries), std::span<const int64_t>(blocks));
        },
        dtypes[0], dtypes[1], dtypes[2]);
  });
}

}  // namespace sage_ext::cuda
