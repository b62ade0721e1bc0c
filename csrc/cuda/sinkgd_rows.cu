#include "cuda/sinkgd_rows.cuh"

#include "cuda/sinkgd_split_rows.cuh"
#include "cuda/sinkgd_table.cuh"

namespace sage_ext::cuda {

namespace {

template <bool kAligned, typename G, int kThreads>
__device__ __forceinline__ void sinkgd_block_rows(const SinkGDRows<G>& rows, SinkGDShared<G, kThreads>& shared,
                                                  int vectors) {
  switch (vectors) {
    case 1:
      return sinkgd_rows_in_registers<1, kAligned>(rows, shared);
    case 2:
      return sinkgd_rows_in_registers<2, kAligned>(rows, shared);
    case kSplitRows:
      // Rows that do not fit into the registers of 256 threads have 512 (see sinkhorn_threads()).
      if constexpr (kThreads == kWideSinkhornThreads) sinkgd_split_rows<kAligned ? kVecSize<G> : 1>(rows, shared);
      return;
    default:
      if constexpr (kAligned) {
        vectors == 4 ? sinkgd_rows_in_registers<4, kAligned>(rows, shared)
                     : sinkgd_rows_in_registers<8, kAligned>(rows, shared);
      }
  }
}

template <typename G, int kThreads>
__global__ void __launch_bounds__(kThreads, 512 / kThreads)
    sinkgd_rows_kernel(const SinkGDTable __grid_constant__ table) {
  if (skips_step(table.common.scalars)) return;
  const auto [index, block] = place_of_block(table);
  const SinkGDEntry& e = table.tensors[index];
  const int64_t matrix = block / e.plan.row_blocks;
  const int64_t row_block = block % e.plan.row_blocks;
  using Rows = SinkGDRows<G>;
  SAGE_EXT_SHARED(Rows, rows);
  if (threadIdx.x == 0) {
    const auto row_begin = static_cast<int>(row_block * e.plan.rows_per_block);
    const int64_t left = e.rows - row_begin;
    rows = {static_cast<const G*>(e.grad) + matrix * e.rows * e.cols,
            table.common.is_first ? nullptr : e.col_scale + matrix * e.cols,
            e.row_scale + matrix * e.rows,
            e.partial + block * e.cols,
            e.cols,
            grad_factor(table.common.scalars),
            sinkgd_row_norm(table.common.form(), e.whole_rows, e.whole_cols, table.common.is_first),
            row_begin,
            row_begin + static_cast<int>(left < e.plan.rows_per_block ? left : e.plan.rows_per_block),
            e.plan.team};
  }
  __syncthreads();
  using Shared = SinkGDShared<G, kThreads>;
  SAGE_EXT_SHARED(Shared, shared);
  if (e.aligned) {
    sinkgd_block_rows<true>(rows, shared, e.plan.vectors);
  } else {
    sinkgd_block_rows<false>(rows, shared, e.plan.vectors);
  }
}

}  // namespace

void launch_sinkgd_rows(DType grad_dtype, int threads, const SinkGDCommon& common, std::span<const SinkGDEntry> entries,
                        std::span<const int64_t> blocks, cudaStream_t stream) {
  visit_dtypes(
      [&](auto g) {
        using G = typename decltype(g)::type;
        const auto kernel = threads == kWideSinkhornThreads ? &sinkgd_rows_kernel<G, kWideSinkhornThreads>
                                                            : &sinkgd_rows_kernel<G, kSinkhornThreads>;
        launch_tensors("sinkgd_rows", kernel, threads, stream, common, entries, blocks);
      },
      grad_dtype);
}

}  // namespace sage_ext::cuda
