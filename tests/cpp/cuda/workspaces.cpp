// Prints the bytes of scratch that steps of the CUDA kernels take, for tests/python/test_plan_memory.py. A line of its
// input is a rule, the itemsize of the gradients, how many tensors there are, and matrices, rows and columns of each.
#include <iostream>
#include <string>
#include <vector>

#include "cuda/adamw.h"
#include "cuda/alias.h"
#include "cuda/alias_adam.h"
#include "cuda/sage.h"
#include "cuda/scale.h"
#include "cuda/sinkgd.h"

namespace {

using namespace sage_ext;
using namespace sage_ext::cuda;

struct Sizes {
  int64_t matrices, rows, cols;
};

template <typename Tensor, typename Fill>
std::vector<Tensor> tensors(const std::vector<Sizes>& sizes, const Fill& fill) {
  std::vector<Tensor> list;
  for (const Sizes& size : sizes) fill(list.emplace_back(), size);
  return list;
}

int64_t bytes_of(const std::string& rule, DType dtype, const std::vector<Sizes>& sizes) {
  const auto set_numel = [](auto& tensor, const Sizes& s) { tensor.numel = s.matrices * s.rows * s.cols; };
  const auto set_sides = [&](auto& tensor, const Sizes& s) {
    tensor.matrices = s.matrices;
    tensor.rows = s.rows;
    tensor.cols = s.cols;
    tensor.grad_dtype = dtype;
  };
  if (rule == "adamw") return adamw_workspace_bytes(tensors<AdamWTensor>(sizes, set_numel));
  if (rule == "alias") return alias_workspace_bytes(tensors<AliasTensor>(sizes, set_numel));
  if (rule == "alias_adam") return alias_adam_workspace_bytes(tensors<AliasAdamTensor>(sizes, set_numel));
  if (rule == "sinkgd") return sinkgd_workspace_bytes(tensors<SinkGDTensor>(sizes, set_sides));
  if (rule == "scale0" || rule == "scale1") {
    ScaleOptions options{};
    options.columns = rule == "scale0";
    return scale_workspace_bytes(tensors<ScaleTensor>(sizes, set_sides), options);
  }
  return sage_workspace_bytes(tensors<SageTensor>(sizes, [&](SageTensor& tensor, const Sizes& s) {
    tensor.rows = s.rows;
    tensor.cols = s.cols;
    tensor.grad_dtype = dtype;
    if (rule == "sage_pieces") tensor.whole = {2 * s.rows, s.cols};
  }));
}

}  // namespace

int main() {
  std::string rule;
  int64_t itemsize = 0;
  size_t count = 0;
  while (std::cin >> rule >> itemsize >> count) {
    std::vector<Sizes> sizes(count);
    for (Sizes& size : sizes) std::cin >> size.matrices >> size.rows >> size.cols;
    std::cout << bytes_of(rule, itemsize == 2 ? DType::bfloat16 : DType::float32, sizes) << '\n';
  }
}
