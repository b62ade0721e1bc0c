#include "cuda/sinkgd_rows.cuh"

#include <algorithm>
#include <iterator>
#include <vector>

#include "cuda/sinkgd_split_rows.cuh"
#include "cuda/sinkgd_table.cuh"

namespace sage_ext::cuda {

namespace {

template <typename G, int kThreads, bool kAligned, bool kWide>
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
  if constexpr (!kWide) {
    switch (e.plan.vectors) {
      case 1:
        return sinkgd_rows_in_registers<1, kAligned>(rows, shared);
      case 2:
        return sinkgd_rows_in_registers<2, kAligned>(rows, shared);
      case 3:
        return sinkgd_rows_in_registers<3, kAligned>(rows, shared);
      default:
        return sinkgd_rows_in_registers<4, kAligned>(rows, shared);
    }
  } else {
    // Rows that do not fit into the registers of 256 threads have 512 (see sinkhorn_threads()).
    if constexpr (kThreads == kWideSinkhornThreads) {
      if (e.plan.vectors == kSplitRows) return sinkgd_split_rows<kAligned ? kVecSize<G> : 1>(rows, shared);
    }
    if constexpr (kMaxVectors<kAligned, G> == kSinkhornVectors) {
      e.plan.vectors == 6 ? sinkgd_rows_in_registers<6, kAligned>(rows, shared)
                          : sinkgd_rows_in_registers<8, kAligned>(rows, shared);
    }
  }
}

// The entries of one kind: whether their rows start on 16-byte boundaries, and whether they fill the registers. A
// kernel for several kinds would need more of those than any of them.
template <typename G, bool kAligned, bool kWide>
void launch_kind(int threads, const SinkGDCommon& common, std::span<const SinkGDEntry> entries,
                 std::span<const int64_t> blocks, cudaStream_t stream) {
  std::vector<SinkGDEntry> chosen;
  std::vector<int64_t> chosen_blocks;
  for (size_t i = 0; i < entries.size(); ++i) {
    const int32_t vectors = entries[i].plan.vectors;
    if (entries[i].aligned != kAligned || (vectors > 4 || vectors == kSplitRows) != kWide) continue;
    chosen.push_back(entries[i]);
    chosen_blocks.push_back(blocks[i]);
  }
  if (chosen.empty()) return;
  const auto kernel = threads == kWideSinkhornThreads ? &sinkgd_rows_kernel<G, kWideSinkhornThreads, kAligned, kWide>
                                                      : &sinkgd_rows_kernel<G, kSinkhornThreads, kAligned, kWide>;
  launch_tensors("sinkgd_rows", kernel, threads, stream, common, std::span<const SinkGDEntry>(chosen),
                 std::span<const int64_t>(chosen_blocks));
}

}  // namespace

void launch_sinkgd_rows(DType grad_dtype, int threads, const SinkGDCommon& common, std::span<const SinkGDEntry> entries,
                        std::span<const int64_t> blocks, cudaStream_t stream) {
  visit_dtypes(
      [&](auto g) {
        using G = typename decltype(g)::type;
        using Launch = decltype(&launch_kind<G, true, true>);
        Launch kinds[] = {&launch_kind<G, true, false>, &launch_kind<G, true, true>, &launch_kind<G, false, false>,
                          &launch_kind<G, false, true>};
        // Like the blocks, in the opposite order of the iteration before.
        if (common.reverse) std::reverse(std::begin(kinds), std::end(kinds));
        for (const Launch kind : kinds) kind(threads, common, entries, blocks, stream);
      },
      grad_dtype);
}

}  // namespace sage_ext::cuda
