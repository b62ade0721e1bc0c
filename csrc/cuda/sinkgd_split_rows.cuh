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

// N is 1 or fills 16 bytes.
template <int N, typename G, int kThreads>
__device__ __forceinline__ void sinkgd_split_rows(const SinkGDRows<G>& block, SinkGDShared<G, kThreads>& shared) {
  const int thread = opaque_thread_index();

  const int team = block.team;
  const int teams = kThreads / team;
  const int64_t pieces = block.cols / N;
  for (int first = block.row_begin; first < block.row_end; first += teams) {
    const int row = first + thread / team;
    const int64_t my_pieces = row < block.row_end ? pieces : 0;
    const G* data = block.grad + row * block.cols;
    // Sums of sums: the error of a row's sum does not grow with the row.
    float total = 0.0f;
    for (int64_t piece = thread % team; piece < my_pieces;) {
      float sum = 0.0f;
#pragma unroll kSplitUnroll
      for (int step = 0; step < 64 && piece < my_pieces; ++step, piece += team) {
        float grads[N];
        float scales[N];
        load_grads(data + piece * N, grads);
        load_col_scales(block.col_scale, piece * N, scales);
#pragma unroll
        for (int e = 0; e < N; ++e) sum = add_square(sum, grads[e] * scales[e]);
      }
      total += sum;
    }
    put_row_sum(shared, thread / team, team, total);
    finish_row_sums(block, shared, first, teams,
                    [&] { put_row_sum(shared, thread / team, team, exact_row_sum<N>(block, row)); });
    __syncthreads();  // before the next group's sums, and so that all threads see the scales in memory
  }

  // Few columns: threads share them, each with every parts-th row; their sums are added in order.
  const int64_t parts = pieces < kThreads ? kThreads / pieces : 1;
  const int64_t part = parts > 1 ? thread / pieces : 0;
  for (int64_t begin = 0; begin < pieces; begin += kThreads) {
    const int64_t piece = parts > 1 ? thread % pieces : begin + thread;
    float sums[N] = {};
    if (piece < pieces && part < parts) {
#pragma unroll kSplitUnroll
      for (int row = block.row_begin + static_cast<int>(part); row < block.row_end; row += static_cast<int>(parts)) {
        float grads[N];
        load_grads(block.grad + row * block.cols + piece * N, grads);
        const float scale = load_uniform(block.row_scale + row);
#pragma unroll
        for (int e = 0; e < N; ++e) sums[e] = add_square(sums[e], grads[e] * scale);
      }
    }
    if (parts > 1) {
#pragma unroll
      for (int e = 0; e < N; ++e) shared.col_sums[thread * N + e] = sums[e];
      __syncthreads();
      for (int64_t col = thread; col < block.cols; col += kThreads) {
        float sum = 0.0f;
        for (int64_t i = 0; i < parts; ++i) sum += shared.col_sums[i * block.cols + col];
        store_one(block.partial + col, sum);
      }
    } else if (piece < pieces) {
#pragma unroll
      for (int e = 0; e < N; ++e) store_one(block.partial + piece * N + e, sums[e]);
    }
  }
}

}  // namespace sage_ext::cuda
