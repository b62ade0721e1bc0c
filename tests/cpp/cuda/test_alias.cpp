// ALIAS's kernels against fp64: storage types, sizes, forms, schedules of steps, inputs on the device.
#include "alias_support.h"

namespace sage_ext {
namespace {

using testing::AliasInputs;
using testing::AliasProblem;
using testing::cuda_alias_step;
using testing::cuda_step_and_check;
using testing::cuda_steps_and_check;
using testing::DeviceScalars;
using testing::kAliasOptions;
using testing::make_alias;
using testing::Mix;
using testing::Random;

using Offsets = std::array<int64_t, 4>;  // of W, g, the gradient before it, and the planes

std::vector<Mix> grad_mixes() {
  std::vector<Mix> mixes;
  for (const DType param : testing::kDTypes) {
    for (const DType grad : testing::kDTypes) mixes.push_back({param, grad, grad});
  }
  return mixes;
}

// All forms and gaps.
class CudaAlias : public ::testing::TestWithParam<AliasOptions> {};

TEST_P(CudaAlias, EveryMixOfDTypes) {
  for (const Mix& mix : grad_mixes()) {
    SCOPED_TRACE(testing::describe(mix));
    AliasProblem problem = make_alias(GetParam(), mix, {777, 1, 31, 32, 33, 4097}, 1);
    ASSERT_NO_FATAL_FAILURE(cuda_steps_and_check(problem, 4));
  }
}

INSTANTIATE_TEST_SUITE_P(Forms, CudaAlias, ::testing::ValuesIn(testing::alias_forms()));

}  // namespace
}  // namespace sage_ext
