#include "cuda/sign_sgd.h"

#include <array>

#include "core/math/sign.h"
#include "cuda/common/sign_launches.cuh"
#include "cuda/common/step_scalars.cuh"

namespace sage_ext::cuda {

namespace {

struct SignSGDCommon {
  SignumCoefficients coefficients;  // for scalars.lr; with a tensor lr the kernel replaces the decay
  double weight_decay;
  StepScalars scalars;
};

using SignSGDTable = TensorTable<SignSGDCommon, SignEntry>;

template <typename W, typename G>
__global__ void __launch_bounds__(kMapThreads) sign_sgd_kernel(const SignSGDTable __grid_constant__ table) {
  const StepScalars& scalars = table.common.scalars;
  if (skips_step(scalars)) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const SignEntry& tensor = table.tensors[index];
  const double lr = learning_rate(scalars);
  const float decay = decay_factor(lr, table.common.weight_decay);
  const auto step = static_cast<float>(lr);
  const float factor = grad_factor(scalars);

  auto* param = static_cast<W*>(tensor.param);
  const BlockElements range = elements_of_block(param, tensor.numel, block);
  constexpr int kN = kGroupSize<W, G>;
  constexpr int kU = kGroupsInFlight<W, G>;
  update_elements<kN, kU>(
      range, [&](float& w, float g) { sign_sgd_update(w, g * factor, step, decay); },
      ArrayOperand<W, kN, kU>(param + range.begin),
      ArrayOperand<const G, kN, kU>(static_cast<const G*>(tensor.grad) + range.begin));
}

template <typename W, typename G, typename M>
__global__ void __launch_bounds__(kMapThreads) signum_kernel(const SignSGDTable __grid_constant__ table) {
  const StepScalars& scalars = table.common.scalars;
  if (skips_step(scalars)) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const SignEntry& tensor = table.tensors[index];
  const double lr = learning_rate(scalars);
  SignumCoefficients k = table.common.coefficients;
  k.decay = decay_factor(lr, table.common.weight_decay);
  const auto step = static_cast<float>(lr);
  const float factor = grad_factor(scalars);

  auto* param = static_cast<W*>(tensor.param);
  const BlockElements range = elements_of_block(param, tensor.numel, block);
  constexpr int kN = kGroupSize<W, G, M>;
  constexpr int kU = kGroupsInFlight<W, G, M>;
  update_elements<kN, kU>(
      range, [&](float& w, float g, float& m) { signum_update(w, m, g * factor, step, k); },
      ArrayOperand<W, kN, kU>(param + range.begin),
      ArrayOperand<const G, kN, kU>(static_cast<const G*>(tensor.grad) + range.begin),
      ArrayOperand<M, kN, kU>(static_cast<M*>(tensor.exp_avg) + range.begin));
}

}  // namespace

void sign_sgd_step(std::span<const SignSGDTensor> tensors, const SignSGDOptions& options, const StepScalars& scalars,
                   cudaStream_t stream) {
  const SignSGDCommon common{signum_coefficients(scalars.lr, options.momentum, options.weight_decay),
                             options.weight_decay, scalars};
  if (options.momentum == 0.0) {
    const auto dtypes_of = [](const SignSGDTensor& t) { return std::array{t.param_dtype, t.grad_dtype}; };
    for_each_sign_launch(tensors, dtypes_of, [&](const auto& dtypes, auto entries, auto blocks) {
      visit_dtypes(
          [&](auto w, auto g) {
            launch_tensors("sign_sgd", &sign_sgd_kernel<typename decltype(w)::type, typename decltype(g)::type>,
                           kMapThreads, stream, common, entries, blocks);
          },
          dtypes[0], dtypes[1]);
    });
    return;
  }
  const auto dtypes_of = [](const SignSGDTensor& t) {
    return std::array{t.param_dtype, t.grad_dtype, t.exp_avg_dtype};
  };
  for_each_sign_launch(tensors, dtypes_of, [&](const auto& dtypes, auto entries, auto blocks) {
    visit_dtypes(
        [&](auto w, auto g, auto m) {
          launch_tensors(
              "signum",
              &signum_kernel<typename decltype(w)::type, typename decltype(g)::type, typename decltype(m)::type>,
              kMapThreads, stream, common, entries, blocks);
        },
        dtypes[0], dtypes[1], dtypes[2]);
  });
}

}  // namespace sage_ext::cuda
