#include "cpu/scale.h"

#include <stdexcept>

#include "ops/common/rule_plan.h"

#ifdef SAGE_EXT_WITH_CUDA
#include "cuda/scale.h"
#include "ops/common/cuda_step.h"
#endif

namespace sage_ext::ops {

namespace {

class ScalePlan final : public RulePlan {
 public:
  ScalePlan(TensorList params, TensorList grads, TensorList exp_avgs, ScaleArgs args, CommonArgs common)
      : RulePlan(std::move(params), {}, std::move(common)), exp_avgs_(std::move(exp_avgs)), args_(std::move(args)) {
    check_beta("momentum", args_.momentum);
    check_not_negative("eps", args_.eps);
    if (args_.dim != 0 && args_.dim != 1) {
      throw std::invalid_argument("dim is " + std::to_string(args_.dim) +
                                  "; it may be 0 (a norm for every column) or 1 (a norm for every row)");
    }
    if (args_.normalization != "rms" && args_.normalization != "l2") {
      throw std::invalid_argument("normalization is \"" + args_.normalization + "\"; it may be \"rms\" or \"l2\"");
    }
    const Checker checker(params_, Layout::row_major, common_.describe);
    check_common();
    for (size_t i = 0; i < params_.size(); ++i) {
      if (params_[i].dim() < 2) {
        checker.fail("params", i, params_[i],
                     "SCALE normalises rows or columns and needs at least two dimensions; give this parameter to "
                     "AdamW, as FusedHybrid does");
      }
    }
    checker.momentum("exp_avgs", exp_avgs_, args_.momentum);
    grads_ = checker.grads(grads);
    checker.no_overlap(written(), grads_);
  }

 private:
  Lists written() const override { return {&params_, &exp_avgs_}; }

  void run_cpu() override {
    std::vector<cpu::ScaleMatrix> matrices;
    matrices.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      const at::Tensor& param = params_[i];
      if (param.numel() == 0) continue;
      const int64_t cols = param.size(-1);
      const int64_t rows = columns() ? param.size(-2) : param.numel() / cols;
      for (int64_t begin = 0; begin < param.numel(); begin += rows * cols) {
        matrices.push_back({written(param, begin), read(grads_[i], begin), exp_avg(i, begin), rows, cols,
                            dtype_of(param), dtype_of(grads_[i]), exp_avg_dtype(i)});
      }
    }
    cpu::ScaleStep step(std::move(matrices), {lr(), args_.momentum, args_.eps, common_.weight_decay, rms(), columns(),
                                              grad_factor(common_)});
    step.run(num_threads());
  }

#ifdef SAGE_EXT_WITH_CUDA
  void run_cuda(CudaStep& step) override {
    std::vector<cuda::ScaleTensor> tensors;
    tensors.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      const at::Tensor& param = params_[i];
      if (param.numel() == 0) continue;
      const int64_t rows = param.size(-2);
      const int64_t cols = param.size(-1);
      tensors.push_back({written(param, 0), read(grads_[i], 0), exp_avg(i, 0), param.numel() / (rows * cols), rows,
                         cols, dtype_of(param), dtype_of(grads_[i]), exp_avg_dtype(i)});
    }
    const cuda::ScaleOptions options{args_.momentum, args_.eps, common_.weight_decay, rms(), columns()};
    cuda::scale_step(tensors, options, step.scalars(), step.workspace(cuda::scale_workspace_bytes(tensors, options)),
                     step.stream());
  }
#endif

  // Addresses of elements.
  static void* written(const at::Tensor& tensor, int64_t element) {
    return static_cast<char*>(tensor.mutable_data_ptr()) + element * static_cast<int64_t>(tensor.element_size());
  }
  static const void* read(const at::Tensor& tensor, int64_t element) {
    return static_cast<const char*>(tensor.const_data_ptr()) + element * static_cast<int64_t>(tensor.element_size());
  }
  void* exp_avg(size_t i, int64_t element) const {
    return exp_avgs_.empty() ? nullptr : written(exp_avgs_[i], element);
  }

  DType exp_avg_dtype(size_t i) const { return exp_avgs_.empty() ? DType::float32 : dtype_of(exp_avgs_[i]); }
  bool rms() const { return args_.normalization == "rms"; }
  bool columns() const { return args_.dim == 0; }

  TensorList exp_avgs_;
  ScaleArgs args_;
};

}  // namespace

PlanPtr plan_scale(TensorList params, TensorList grads, TensorList exp_avgs, ScaleArgs args, CommonArgs common) {
  return std::make_unique<ScalePlan>(std::move(params), std::move(grads), std::move(exp_avgs), std::move(args),
                                     std::move(common));
}

}  // namespace sage_ext::ops
