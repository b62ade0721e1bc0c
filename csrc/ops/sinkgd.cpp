#include "cpu/sinkgd.h"

#include <algorithm>
#include <stdexcept>

#include "cpu/sinkgd_stages.h"
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
    const Checker checker(params_, Layout::row_major, common_.describe, common_.are_known);
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
  std::vector<cpu::SinkGDMatrix> cpu_matrices() const {
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
                            rows, cols, param_dtype, grad_dtype, whole(i)});
      }
    }
    return matrices;
  }

  cpu::SinkGDOptions cpu_options() const {
    return {lr(), arg<"alpha">(), arg<"eps">(), arg<"weight_decay">(), iterations(), unit(), grad_factor()};
  }

  void run_cpu() override { cpu::SinkGDStep(cpu_matrices(), cpu_options()).run(num_threads()); }

  WholeSize whole_size(const std::vector<int64_t>& shape) const override {
    const WholeSize size = size_of_last_two(shape);
    if (on_cuda() && std::max(size.rows, size.cols) > kMaxCudaSide) {
      throw std::invalid_argument(
          "on a GPU, SinkGD takes matrices of at most 2^30 rows and columns, also of which this "
          "process has a piece; give this parameter another rule");
    }
    return size;
  }

  // Between the halves of an iteration, and between iterations.
  enum class Stage { rows, shares, columns };

  // `of` does the parts of an iteration on a device.
  template <typename Parts>
  std::optional<Exchange> proceed_with(const Parts& of) {
    for (; iteration_ < iterations(); stage_ = Stage::rows, ++iteration_) {
      if (stage_ == Stage::rows && cut_->columns) {
        of.put_rows();
        stage_ = Stage::shares;
        return exchange("columns", row_sums_);
      }
      if (stage_ != Stage::columns) {
        if (stage_ == Stage::shares) {
          of.take_rows();
          of.put_columns();
        } else {
          of.rows_and_columns();
        }
        stage_ = Stage::columns;
        if (cut_->rows) return exchange("rows", iteration_ == 0 ? first_column_sums_ : column_sums_);
      }
      of.take_columns();
    }
    of.finish();
    return {};
  }

  // Where this process has nothing of a parameter, what the others have added up last is still in the buffer.
  Exchange exchange(const char* over, TensorList& buffers) const {
    for (size_t i = 0; i < params_.size(); ++i) {
      if (params_[i].numel() == 0) buffers[i].zero_();
    }
    return {over, buffers};
  }

  struct CpuParts {
    SinkGDPlan& plan;
    cpu::SinkGDStages& stages;

    void put_rows() const { stages.put_rows(num_threads(), plan.sums_); }
    void take_rows() const { stages.take_rows(plan.iteration_, plan.sums_); }
    void put_columns() const { stages.put_columns(num_threads(), plan.iteration_, plan.sums_); }
    void rows_and_columns() const { stages.rows_and_columns(num_threads(), plan.iteration_, plan.sums_); }
    void take_columns() const { stages.take_columns(plan.iteration_, plan.sums_); }
    void finish() const { stages.update(num_threads()); }
  };

  std::optional<Exchange> proceed_cpu() override {
    if (!stages_) {
      make_buffers(/*by_matrix=*/true);
      stages_.emplace(cpu_matrices(), cpu_options());
    }
    return proceed_with(CpuParts{*this, *stages_});
  }

#ifdef SAGE_EXT_WITH_CUDA
  std::vector<cuda::SinkGDTensor> cuda_tensors() const {
    std::vector<cuda::SinkGDTensor> tensors;
    tensors.reserve(params_.size());
    for (size_t i = 0; i < params_.size(); ++i) {
      const at::Tensor& param = params_[i];
      if (param.numel() == 0) continue;
      const int64_t rows = param.size(-2);
      const int64_t cols = param.size(-1);
      tensors.push_back({param.mutable_data_ptr(), grads_[i].const_data_ptr(), param.numel() / (rows * cols), rows,
                         cols, dtype_of(param), dtype_of(grads_[i]), whole(i)});
    }
    return tensors;
  }

  cuda::SinkGDOptions cuda_options() const {
    return {arg<"alpha">(), arg<"eps">(), arg<"weight_decay">(), iterations(), unit()};
  }

  void run_cuda(CudaStep& step) override {
    const std::vector<cuda::SinkGDTensor> tensors = cuda_tensors();
    cuda::sinkgd_step(tensors, cuda_options(), step.scalars(), step.workspace(cuda::sinkgd_workspace_bytes(tensors)),
                      step.stream());
  }

  struct CudaParts {
    SinkGDPlan& plan;
    const cuda::SinkGDPieces& pieces;
    CudaStep& step;

    void put_rows() const { cuda::sinkgd_put_rows(pieces, plan.iteration_, step.scalars(), step.stream()); }
    void take_rows() const { cuda::sinkgd_take_rows(pieces, plan.iteration_, step.scalars(), step.stream()); }
    void put_columns() const { cuda::sinkgd_put_columns(pieces, plan.iteration_, step.scalars(), step.stream()); }
    void rows_and_columns() const {
      cuda::sinkgd_rows_and_columns(pieces, plan.iteration_, step.scalars(), step.stream());
    }
    void take_columns() const { cuda::sinkgd_take_columns(pieces, plan.iteration_, step.scalars(), step.stream()); }
    void finish() const { cuda::sinkgd_finish(pieces, step.scalars(), step.stream()); }
  };

  std::optional<Exchange> proceed_cuda(CudaStep& step) override {
    const std::vector<cuda::SinkGDTensor> tensors = cuda_tensors();
    const cuda::SinkGDOptions options = cuda_options();
    if (!workspace_.defined()) {
      make_buffers(/*by_matrix=*/false);
      workspace_ = buffer_of(cuda::sinkgd_workspace_bytes(tensors));
    }
    const cuda::SinkGDPieces pieces{tensors, sums_, options, workspace_.mutable_data_ptr()};
    return proceed_with(CudaParts{*this, pieces, step});
  }

  at::Tensor workspace_;
#endif

  // A CPU has a matrix at a time, a device a tensor.
  void make_buffers(bool by_matrix) {
    for (size_t i = 0; i < params_.size(); ++i) {
      const at::Tensor& param = params_[i];
      const int64_t rows = param.size(-2);
      const int64_t cols = param.size(-1);
      std::vector<int64_t> leading = param.sizes().slice(0, param.dim() - 2).vec();
      std::vector<int64_t> of_rows = leading, of_columns = leading;
      of_rows.push_back(rows);
      of_columns.push_back(cols);
      row_sums_.push_back(buffer(i, of_rows, at::kDouble));
      first_column_sums_.push_back(buffer(i, of_columns, at::kDouble));
      column_sums_.push_back(buffer(i, of_columns, at::kFloat));
      if (param.numel() == 0) continue;
      auto* row_sums = static_cast<double*>(row_sums_[i].mutable_data_ptr());
      auto* first_column_sums = static_cast<double*>(first_column_sums_[i].mutable_data_ptr());
      auto* column_sums = static_cast<float*>(column_sums_[i].mutable_data_ptr());
      const int64_t matrices = by_matrix ? param.numel() / (rows * cols) : 1;
      for (int64_t m = 0; m < matrices; ++m) {
        sums_.push_back({row_sums + m * rows, first_column_sums + m * cols, column_sums + m * cols});
      }
    }
  }

  int iterations() const { return static_cast<int>(arg<"iterations">()); }
  bool unit() const { return arg<"normalization">() == "unit"; }

  Stage stage_ = Stage::rows;
  int iteration_ = 0;
  TensorList row_sums_, first_column_sums_, column_sums_;
  std::vector<SinkGDSums> sums_;
  std::optional<cpu::SinkGDStages> stages_;
};

}  // namespace

PlanPtr SinkGD::plan(Call<SinkGD>&& call) { return std::make_unique<SinkGDPlan>(std::move(call)); }

}  // namespace sage_ext::ops
