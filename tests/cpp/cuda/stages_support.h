#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "cuda/sage_support.h"
#include "cuda/scale_support.h"
#include "cuda/sinkgd_support.h"
#include "stage_cases.h"

// The stages of SAGE, SCALE and SinkGD on the emulator, on all processes, in the order in which a plan calls them.
namespace sage_ext::testing {

// Scratch of each process, poisoned, which is kept between the stages.
class Workspaces {
 public:
  void add(int64_t bytes) {
    buffers_.emplace_back(DType::float32, ceil_div(bytes, 4));
    simt::poison(buffers_.back().data(), static_cast<size_t>(bytes));
  }
  void* of(size_t process) { return buffers_[process].data(); }

 private:
  std::vector<Buffer> buffers_;
};

class CudaSageStages {
 public:
  CudaSageStages(Pieces<SageProblem>& pieces, const cpu::SageOptions& options, const cuda::StepScalars& scalars)
      : pieces_(pieces), options_(cuda_options(options)), scalars_(scalars), sums_(pieces, /*empty_are_zero=*/true) {
    for (std::vector<SageProblem>& process : pieces.processes) {
      Buffer& counters = counters_.emplace_back(DType::float32, static_cast<int64_t>(process.size()));
      std::vector<cuda::SageTensor>& tensors = tensors_.emplace_back();
      for (size_t i = 0; i < process.size(); ++i) {
        SageProblem& p = process[i];
        counters.set(static_cast<int64_t>(i), p.step - 1);
        tensors.push_back({p.param.data(), p.grad.data(), p.exp_avg.data(), p.s_range.floats(), counters.floats() + i,
                           p.rows, p.cols, p.param.dtype(), p.grad.dtype(), p.exp_avg.dtype(), pieces.whole(i)});
      }
      workspaces_.add(cuda::sage_workspace_bytes(tensors));
      own_.push_back(sums_.of(own_.size(), process.size()));
    }
  }

  void put_columns() {
    for_all([&](size_t p) { cuda::sage_put_columns(tensors_[p], own_[p], scalars_, workspaces_.of(p), nullptr); });
  }
  void put_squares() {
    for_all([&](size_t p) {
      cuda::sage_put_squares(tensors_[p], own_[p], options_, scalars_, workspaces_.of(p), nullptr);
    });
  }
  void finish() {
    for_all([&](size_t p) { cuda::sage_finish(tensors_[p], own_[p], options_, scalars_, workspaces_.of(p), nullptr); });
  }

  void run() {
    put_columns();
    sums_.columns.add_up(Over::rows);
    put_squares();
    sums_.squares.add_up(Over::columns);
    finish();
  }

  // That every process has counted, pieces without elements too.
  void expect_counted(bool counts = true) const {
    for (size_t p = 0; p < counters_.size(); ++p) {
      for (size_t i = 0; i < own_[p].size(); ++i) {
        EXPECT_EQ(counters_[p][static_cast<int64_t>(i)], pieces_.processes[p][i].step - (counts ? 0 : 1));
      }
    }
  }

 private:
  template <typename Stage>
  void for_all(const Stage& stage) {
    for (size_t p = 0; p < tensors_.size(); ++p) stage(p);
  }

  Pieces<SageProblem>& pieces_;
  cuda::SageOptions options_;
  const cuda::StepScalars& scalars_;
  SageBuffers sums_;
  std::vector<Buffer> counters_;
  std::vector<std::vector<cuda::SageTensor>> tensors_;
  std::vector<std::vector<SageSums>> own_;
  Workspaces workspaces_;
};

class CudaScaleStages {
 public:
  CudaScaleStages(Pieces<ScaleProblem>& pieces, const cpu::ScaleOptions& o, const cuda::StepScalars& scalars)
      : options_{o.momentum, o.eps, o.weight_decay, o.rms, o.columns},
        scalars_(scalars),
        sums_(scale_sums(pieces, o.columns, /*empty_are_zero=*/true)) {
    for (std::vector<ScaleProblem>& process : pieces.processes) {
      std::vector<cuda::ScaleTensor>& tensors = tensors_.emplace_back();
      std::vector<double*>& own = own_.emplace_back();
      for (size_t i = 0; i < process.size(); ++i) {
        ScaleProblem& p = process[i];
        tensors.push_back({p.param.data(), p.grad.data(), o.momentum == 0.0 ? nullptr : p.exp_avg.data(), p.matrices,
                           p.rows, p.cols, p.param.dtype(), p.grad.dtype(), p.exp_avg.dtype(), pieces.whole(i)});
        own.push_back(sums_.of(own_.size() - 1, i));
      }
      workspaces_.add(cuda::scale_workspace_bytes(tensors, options_));
    }
  }

  void put_sums() {
    for (size_t p = 0; p < tensors_.size(); ++p) {
      cuda::scale_put_sums(tensors_[p], own_[p], options_, scalars_, workspaces_.of(p), nullptr);
    }
  }
  void finish() {
    for (size_t p = 0; p < tensors_.size(); ++p) {
      cuda::scale_finish(tensors_[p], own_[p], options_, scalars_, workspaces_.of(p), nullptr);
    }
  }

  void run() {
    put_sums();
    sums_.add_up(options_.columns ? Over::rows : Over::columns);
    finish();
  }

 private:
  cuda::ScaleOptions options_;
  const cuda::StepScalars& scalars_;
  Sums<double> sums_;
  std::vector<std::vector<cuda::ScaleTensor>> tensors_;
  std::vector<std::vector<double*>> own_;
  Workspaces workspaces_;
};

class CudaSinkGDStages {
 public:
  CudaSinkGDStages(Pieces<SinkGDStack>& pieces, const cpu::SinkGDOptions& options, const cuda::StepScalars& scalars)
      : options_(cuda_options(options)), scalars_(scalars), sums_(pieces, /*empty_are_zero=*/true) {
    for (std::vector<SinkGDStack>& process : pieces.processes) {
      std::vector<cuda::SinkGDTensor>& tensors = tensors_.emplace_back();
      std::vector<SinkGDSums>& own = own_.emplace_back();
      for (size_t i = 0; i < process.size(); ++i) {
        SinkGDStack& p = process[i];
        tensors.push_back({p.param.data(), p.grad.data(), p.matrices, p.rows, p.cols, p.param.dtype(), p.grad.dtype(),
                           pieces.whole(i)});
        own.push_back(sums_.of(own_.size() - 1, i));
      }
      workspaces_.add(cuda::sinkgd_workspace_bytes(tensors));
    }
  }

  void rows_and_columns(int iteration) { for_all(&cuda::sinkgd_rows_and_columns, iteration); }
  void put_rows(int iteration) { for_all(&cuda::sinkgd_put_rows, iteration); }
  void take_rows(int iteration) { for_all(&cuda::sinkgd_take_rows, iteration); }
  void put_columns(int iteration) { for_all(&cuda::sinkgd_put_columns, iteration); }
  void take_columns(int iteration) { for_all(&cuda::sinkgd_take_columns, iteration); }
  void finish() {
    for (size_t p = 0; p < tensors_.size(); ++p) cuda::sinkgd_finish(of(p), scalars_, nullptr);
  }

  void run(bool rows_are_cut) {
    for (int i = 0; i < options_.iterations; ++i) {
      if (rows_are_cut) {
        put_rows(i);
        sums_.rows.add_up(Over::columns);
        take_rows(i);
        put_columns(i);
      } else {
        rows_and_columns(i);
      }
      sums_.add_up_columns(i);
      take_columns(i);
    }
    finish();
  }

  // Those of the only process.
  std::vector<cuda::SinkGDTensor>& tensors() { return tensors_[0]; }

 private:
  cuda::SinkGDPieces of(size_t process) {
    return {tensors_[process], own_[process], options_, workspaces_.of(process)};
  }

  template <typename Part>
  void for_all(Part* part, int iteration) {
    for (size_t p = 0; p < tensors_.size(); ++p) part(of(p), iteration, scalars_, nullptr);
  }

  cuda::SinkGDOptions options_;
  const cuda::StepScalars& scalars_;
  SinkGDBuffers sums_;
  std::vector<std::vector<cuda::SinkGDTensor>> tensors_;
  std::vector<std::vector<SinkGDSums>> own_;
  Workspaces workspaces_;
};

// With `kLrTensor` the learning rate is on the device.
template <bool kLrTensor = false>
struct Emulator {
  static std::vector<Mesh> some_meshes() { return {{3, 1}, {2, 2}}; }
  static std::vector<Size> large_sizes() { return {{9, 4097}, {70, 1025}}; }

  static void run(Pieces<SageProblem>& pieces, const cpu::SageOptions& o) {
    const DeviceScalars scalars(o.lr, o.grad_factor, kLrTensor);
    CudaSageStages stages(pieces, o, scalars.get());
    stages.run();
    stages.expect_counted();
  }
  static void run(Pieces<ScaleProblem>& pieces, const cpu::ScaleOptions& o) {
    const DeviceScalars scalars(o.lr, o.grad_factor, kLrTensor);
    CudaScaleStages(pieces, o, scalars.get()).run();
  }
  static void run(Pieces<SinkGDStack>& pieces, const cpu::SinkGDOptions& o) {
    const DeviceScalars scalars(o.lr, o.grad_factor, kLrTensor);
    CudaSinkGDStages(pieces, o, scalars.get()).run(pieces.mesh.columns > 1);
  }
};

}  // namespace sage_ext::testing
