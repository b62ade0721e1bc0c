#pragma once

#include <memory>
#include <span>
#include <vector>

#include "cpu/sinkgd_kernels.h"

namespace sage_ext::cpu {

// A SinkGD step over pieces of matrices, stage by stage. In every iteration either
//   rows_and_columns()                            where rows are whole: their scales, and the sums of columns;
// or, of the gradient read twice,
//   put_rows(), take_rows(), put_columns()        with the rows' sums added up in between;
// and then take_columns(), with those of the columns added up. In the end update().
class SinkGDStages {
 public:
  SinkGDStages(std::span<const SinkGDMatrix> pieces, const SinkGDOptions& options);

  void rows_and_columns(int threads, int iteration, std::span<const SinkGDSums> sums);
  void put_rows(int threads, std::span<const SinkGDSums> sums);
  void take_rows(int iteration, std::span<const SinkGDSums> sums);
  void put_columns(int threads, int iteration, std::span<const SinkGDSums> sums);
  void take_columns(int iteration, std::span<const SinkGDSums> sums);
  void update(int threads);

 private:
  // body(index, work, first row, end, the block's share) for all blocks of rows.
  template <typename Body>
  void for_blocks(int threads, const Body& body) const;
  void add_columns(int threads, int iteration, std::span<const SinkGDSums> sums) const;

  SinkGDOptions options_;
  std::vector<SinkGDWork> works_;
  std::vector<SinkGDKernels> kernels_;
  ChunkPlan row_plan_;     // chunk: blocks of rows
  ChunkPlan column_plan_;  // chunk: range of columns
  std::unique_ptr<double[]> doubles_;
  std::unique_ptr<float[]> floats_;
};

}  // namespace sage_ext::cpu
