#include <stdexcept>

#include "cpu/sinkgd.h"
#include "ops/common.h"

namespace sage_ext::ops {

namespace {

class SinkGDPlan final : public Plan {
 public:
  SinkGDPlan(TensorList params, TensorList grads, SinkGDArgs args)
      : params_(std::move(params)), args_(std::move(args)) {
    check_not_negative("alpha", args_.alpha);
    check_not_negative("eps", args_.eps);
    if (args_.iterations < 1 || args_.iterations > 1000) {
      throw std::invalid_argument("iterations is " + std::to_string(args_.iterations) + "; it must be in [1, 1000]");
    }
    if (args_.normalization != "sqrt" && args_.normalization != "unit") {
      throw std::invalid_argument("normalization is \"" + args_.normalization + "\"; it may be \"sqrt\" or \"unit\"");
    }
    check_common(args_.common);
    const Checker checker(params_, Layout::row_major, args_.common.describe);
    for (size_t i = 0; i < params_.size(); ++i) {
      if (params_[i].dim() < 2) {
        checker.fail("params", i, params_[i],
                     "SinkGD normalises rows and columns and needs at least two dimensions; give this parameter "
                     "another rule (SAGE, Lion or AdamW, as FusedHybrid does)");
      }
    }
    grads_ = checker.grads(grads);
    checker.no_overlap({&params_}, grads_);
  }

  void run() override {
    if (skips_step(args_.common)) return;
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
    cpu::SinkGDStep step(std::move(matrices), {args_.common.lr, args_.alpha, args_.eps, args_.common.weight_decay,
                                               static_cast<int>(args_.iterations), args_.normalization == "unit",
                                               grad_factor(args_.common)});
    step.run(num_threads());
    bump_versions(params_);
  }

 private:
  TensorList params_, grads_;
  SinkGDArgs args_;
};

}  // namespace

PlanPtr plan_sinkgd(TensorList params, TensorList grads, SinkGDArgs args) {
  return std::make_unique<SinkGDPlan>(std::move(params), std::move(grads), std::move(args));
}

}  // namespace sage_ext::ops
