#pragma once

#include "cuda/common/multi_tensor.cuh"
#include "cuda/common/step_scalars.cuh"
#include "cuda/scale_source.cuh"

// The first launch of SCALE over rows: 1 / norm of every row, and the momentum on the way.
namespace sage_ext::cuda {

inline constexpr int kRowThreads = 256;

struct ScaleCommon {
  MomentumCoefficients momentum;
  double eps;
  bool puts_sums;  // other processes have the rest of the rows (or columns)
  StepScalars scalars;
};

struct RowEntry {
  const void* grad;
  void* exp_avg;
  void* out;  // [rows]: 1 / norm in fp32; or the sums of squares in fp64
  int64_t rows, cols;
  double mean_factor;
  uint32_t team;  // threads of a row: a power of two up to 32, or the whole block
  uint32_t rows_per_block;
};

using RowTable = TensorTable<ScaleCommon, RowEntry>;

// The sum over the threads of a team, in each of them. All threads of the block call it.
__device__ __forceinline__ double team_sum(double value, int team) {
  if (team == kRowThreads) {
    double values[1] = {value};
    block_sum<kRowThreads>(values);
    return values[0];
  }
  return lane_sum(value, team);
}

// This lane's part of a row's sum of squares: fp32 over what is in flight, fp64 beyond.
template <typename Source>
__device__ __forceinline__ double sum_of_lane(Source& source, int64_t begin, int64_t cols, int lane, int team,
                                              bool by_vector) {
  constexpr int kVec = Source::kVec;
  double total = 0.0;
  if (by_vector) {
    const int64_t stride = static_cast<int64_t>(team) * kVec;
    for (int64_t col = static_cast<int64_t>(lane) * kVec; col < cols; col += kRowsInFlight * stride) {
#pragma unroll
      for (int u = 0; u < kRowsInFlight; ++u) {
        if (col + u * stride < cols) source.load(u, begin + col + u * stride);
      }
      float sum = 0.0f;
#pragma unroll
      for (int u = 0; u < kRowsInFlight; ++u) {
        if (col + u * stride >= cols) continue;
        float x[kVec];
        source.values(u, begin + col + u * stride, x);
#pragma unroll
        for (int e = 0; e < kVec; ++e) sum = add_square(sum, x[e]);
      }
      total += static_cast<double>(sum);
    }
    return total;
  }
  for (int64_t col = lane; col < cols; col += static_cast<int64_t>(team) * kVec) {
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      if (col + e * team < cols) source.load_one(e, begin + col + e * team);
    }
    float sum = 0.0f;
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      if (col + e * team < cols) sum = add_square(sum, source.value_one(e, begin + col + e * team));
    }
    total += static_cast<double>(sum);
  }
  return total;
}

template <typename Source>
__device__ __forceinline__ void invert_rows(Source& source, const RowEntry& t, int64_t block,
                                            const ScaleCommon& common) {
  const auto team = static_cast<int>(t.team);
  const int teams = kRowThreads / team;
  const int lane = static_cast<int>(threadIdx.x) % team;
  const bool by_vector = source.aligned && t.cols % Source::kVec == 0;
  const int64_t first = block * t.rows_per_block;
  const int64_t end = first + t.rows_per_block < t.rows ? first + t.rows_per_block : t.rows;
  for (int64_t row0 = first; row0 < end; row0 += teams) {
    const int64_t row = row0 + static_cast<int>(threadIdx.x) / team;
    const bool exists = row < end;
    double sum = exists ? sum_of_lane(source, row * t.cols, t.cols, lane, team, by_vector) : 0.0;
    sum = team_sum(sum, team);
    // What fp32 cannot tell is added up in fp64; a NaN is one in any precision.
    const bool is_unsafe = exists && !squares_are_safe(sum) && sum == sum;
    if (__any_sync(~0u, static_cast<int>(is_unsafe)) != 0) {  // of all warps alike, where a team is the block
      double exact = 0.0;
      __syncwarp();  // before lanes read what others stored
#pragma unroll 1
      for (int64_t col = is_unsafe ? lane : t.cols; col < t.cols; col += team) {
        exact = add_square(exact, static_cast<double>(source.again(row * t.cols + col)));
      }
      exact = team_sum(exact, team);
      if (is_unsafe) sum = exact;
    }
    if (!exists || lane != 0) continue;
    if (common.puts_sums) {
      store_one(static_cast<double*>(t.out) + row, sum);
    } else {
      store_one(static_cast<float*>(t.out) + row, scale_inverse(sum, t.mean_factor, common.eps));
    }
  }
}

template <typename G>
__global__ void __launch_bounds__(kRowThreads) scale_rows_kernel(const RowTable __grid_constant__ table) {
  if (skips_step(table.common.scalars)) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const RowEntry& t = table.tensors[index];
  GradientSource<G> source(static_cast<const G*>(t.grad), grad_factor(table.common.scalars));
  invert_rows(source, t, block, table.common);
}

template <typename G, typename M>
__global__ void __launch_bounds__(kRowThreads) scale_momentum_rows_kernel(const RowTable __grid_constant__ table) {
  if (skips_step(table.common.scalars)) return;
  const auto [index, block] = find_tensor(table, blockIdx.x);
  const RowEntry& t = table.tensors[index];
  MomentumSource<G, M> source(static_cast<const G*>(t.grad), static_cast<M*>(t.exp_avg),
                              grad_factor(table.common.scalars), table.common.momentum);
  invert_rows(source, t, block, table.common);
}

}  // namespace sage_ext::cuda
