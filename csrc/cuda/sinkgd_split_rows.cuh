#pragma once

#include "cuda/sinkgd_rows.cuh"

// The row half of a SinkGD iteration for rows that do not fit into registers. The block reads its rows twice, once for
// the row sums and once for the column sums; the second time they mostly come from the second-level cache.
namespace sage_ext::cuda {

inline constexpr int kSplitUnroll = 4;

// N neighbouring elements, 16 bytes or one.
template <typename G, int N>
__device__ __forceinline__ void load_grads(const G* address, float (&grads)[N]) {
  if constexpr (N == 1) {
    grads[0] = to_float(load_one(address));
  } else {
    Pack<G, N> pack;
    pack.load(address);
    pack.unpack(grads);
  }
}

// N is 1 or fills 16 bytes. A row is longer than the block has threads, whatever N is: all of them share it, and each
// has columns of its own.
template <int N, typename G, int kThreads>
__device__ __forceinline__ void sinkgd_split_rows(const SinkGDRows<G>& block, SinkGDShared<G, kThreads>& shared) {
  const int thread = opaque_thread_index();
  const auto pieces = static_cast<int>(block.cols / N);  // at most 2^30
  for (int row = block.row_begin; row < block.row_end; ++row) {
    const G* data = block.grad + row * block.cols;
    const float old = old_scale_of_slot(block, row, 1);
    // Sums of sums: the error of a row's sum does not grow with the row.
    float total = 0.0f;
    for (int piece = thread; piece < pieces;) {
      float sum = 0.0f;
#pragma unroll kSplitUnroll
      for (int step = 0; step < 64 && piece < pieces; ++step, piece += kThreads) {
        float grads[N];
        float scales[N];
        load_grads(data + int64_t{piece} * N, grads);
        load_col_scales(block.col_scale, int64_t{piece} * N, scales);
#pragma unroll
        for (int e = 0; e < N; ++e) sum = add_square(sum, grads[e] * scales[e]);
      }
      total += sum;
    }
    put_row_sum(shared, 0, kThreads, total);
    finish_row_sums(block, shared, row, 1, old,
                    [&] { put_row_sum(shared, 0, kThreads, exact_row_sum<N>(block, row)); });
    __syncthreads();  // before the next row's sum, and so that all threads see the scales in memory
  }

  for (int piece = thread; piece < pieces; piece += kThreads) {
    float sums[N] = {};
#pragma unroll kSplitUnroll
    for (int row = block.row_begin; row < block.row_end; ++row) {
      float grads[N];
      load_grads(block.grad + row * block.cols + int64_t{piece} * N, grads);
      const float scale = load_uniform(block.row_scale + row);
#pragma unroll
      for (int e = 0; e < N; ++e) sums[e] = add_square(sums[e], grads[e] * scale);
    }
#pragma unroll
    for (int e = 0; e < N; ++e) store_one(block.partial + int64_t{piece} * N + e, sums[e]);
  }
}

}  // namespace sage_ext::cuda
