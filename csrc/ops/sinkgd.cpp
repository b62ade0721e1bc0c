#include "cpu/sinkgd.h"

#include <algorithm>

#include "ops/common/rule_plan.h"

#ifdef SAGE_EXT_WITH_CUDA
#include "cuda/sinkgd.h"
#include "ops/common/cuda_step.h"
#endif

namespace sage_ext::ops {

namespace {

constexpr int64_t kMaxCudaSide = int64_t{1} << 30;  // the kernels count rows and columns in 32 bits

class SinkGDPlan final : public RulePlan<SinkGD> {
 public:
  explicit SinkGDPlan(Call<SinkGD>&& call) : RulePlan(std::move(call)) {
    const Checker checker(params_, Layout::row_major, common_.describe);
    check_common();
    for (size_t i = 0; i < params_.size(); ++i) {
      if (params_[i].dim() < 2) {
        checker.fail("params", i, params_[i],
                     "SinkGD normalises rows and columns and needs at least two dimensions; give this parameter "
                     "another rule (SAGE, Lion or AdamW, as FusedHybrid does)");
      }
      if (params_[i].is_cuda() && std::max(params_[i].size(-2), params_[i].size(-1)) > kMaxCudaSide) {
        checker.fail("params", i, params_[i],
                     "on a GPU, SinkGD takes matrices of at most 2^30 rows and columns; reshape it or give it another "
                     "rule");
      }
    }
    grads_ = checker.grads(grads_);
    checker.no_overlap(written(), grads_);
  }

 private:
  void run_cpu() override {
    std::vector<cpu::SinkGDMatrix> matrices;
    matrices.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      const at::Tensor& param = params_[i];
      if (param.numel() == 0) continue;
      const int64_t rows = param.size(-2);
      const int64_t cols = param.size(-1);
      const DType param_dtype = dtype_of(param);
      const DType grad_dtype = dtype_of(grads_[i]);
      auto* param_data = static_cast<char*>(param.mutable_data_ptr());
      const auto* grad_data = static_cast<const char*>(grads_[i].const_data_ptr());
      for (int64_t matrix = 0; matrix < param.numel() / (rows * cols); ++matrix) {
        const int64_t offset = matrix * rows * cols;
        matrices.push_back({param_data + offset * itemsize(param_dtype), grad_data + offset * itemsize(grad_dtype),
                            rows, cols, param_dtype, grad_dtype});
      }
    }
    cpu::SinkGDStep step(std::move(matrices), {lr(), arg<"alpha">(), arg<"eps">(), arg<"weight_decay">(), iterations(),
                                               unit(), grad_factor()});
    step.run(num_threads());
  }

#ifdef SAGE_EXT_WITH_CUDA
  void run_cuda(CudaStep& step) override {
    std::vector<cuda::SinkGDTensor> tensors;
    tensors.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      const at::Tensor& param = params_[i];
      if (param.numel() == 0) continue;
      const int64_t rows = param.size(-2);
      const int64_t cols = param.size(-1);
      tensors.push_back({param.mutable_data_ptr(), grads_[i].const_data_ptr(), param.numel() / (rows * cols), rows,
                         cols, dtype_of(param), dtype_of(grads_[i])});
    }
    cuda::sinkgd_step(tensors, {arg<"alpha">(), arg<"eps">(), arg<"weight_decay">(), iterations(), unit()},
                      step.scalars(), step.workspace(cuda::sinkgd_workspace_bytes(tensors)), step.stream());
  }
#endif

  int iterations() const { return static_cast<int>(arg<"iterations">()); }
  bool unit() const { return arg<"normalization">() == "unit"; }
};

}  // namespace

PlanPtr SinkGD::plan(Call<SinkGD>&& call) { return std::make_unique<SinkGDPlan>(std::move(call)); }

}  // namespace sage_ext::ops
