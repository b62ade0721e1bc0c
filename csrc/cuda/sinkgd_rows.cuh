#pragma once

#include <algorithm>

#include "core/launch_plan.h"
#include "core/math/sinkgd.h"
#include "cuda/common/reduce.cuh"
#include "cuda/common/shared.cuh"
#include "cuda/common/vec128.cuh"

// The row half of a SinkGD iteration, with the rows' share of the column sums: rows that fit into registers.
namespace sage_ext::cuda {

// Of max_sinkhorn_vectors(): a function of the host, which device code cannot call.
template <bool kAligned, typename G>
inline constexpr int kMaxVectors = max_sinkhorn_vectors(kAligned, kVecSize<G>);

// One block's rows of one matrix. Kept in shared memory: registers are for the rows.
template <typename G>
struct SinkGDRows {
  const G* grad;           // of the matrix
  const float* col_scale;  // [cols]; null in the first iteration, where every column has scale 1
  float* row_scale;        // [rows]
  float* partial;          // [cols]: this block's column sums of squares
  int64_t cols;
  float first_scale;  // of every row in the first iteration
  SinkGDNorm norm;
  int row_begin, row_end;
  int team;  // threads that share a row, a power of two

  __device__ __forceinline__ float old_scale(int row) const {
    return col_scale == nullptr ? first_scale : load_one(row_scale + row);
  }
};

// The kernel holds several variants of the pass. What they compute from the thread's index must not be kept in
// registers for all of them.
__device__ __forceinline__ int opaque(int value) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(value));
#endif
  return value;
}
__device__ __forceinline__ int opaque_thread_index() { return opaque(static_cast<int>(threadIdx.x)); }

// N column scales from `col` on. The rows of a block read them again and again: they stay in the first-level cache.
template <int N>
__device__ __forceinline__ void load_col_scales(const float* col_scale, int64_t col, float (&scales)[N]) {
  if (col_scale == nullptr) {
#pragma unroll
    for (int e = 0; e < N; ++e) scales[e] = 1.0f;
  } else if constexpr (N % 4 == 0) {
    load_uniform_floats(col_scale + col, scales);
  } else {
#pragma unroll
    for (int e = 0; e < N; ++e) scales[e] = load_uniform(col_scale + col + e);
  }
}

// What a block shares. Its teams work on a group of rows at a time, at most one row a thread; a slot is a row of that
// group.
template <typename G, int kThreads>
struct SinkGDShared {
  double row_sums[kThreads];  // [slot][warp of the team]
  float row_scales[kThreads];
  float col_sums[2 * kThreads * kVecSize<G>];  // of teams that are side by side; or see kOwnPieces
};

__device__ __forceinline__ int warps_of(int team) { return team > kWarpSize ? team / kWarpSize : 1; }

// Adds each of kRows values over the lanes of a team and leaves the sums of each of the team's warps in shared memory,
// in the slots my_team, my_team + teams, ... While there are several values, each step over the lanes halves them: a
// lane goes on with one half and gives the other away. Every thread of the block calls it.
template <int kRows, typename Shared, typename T>
__device__ __forceinline__ void put_row_sums(Shared& shared, int my_team, int teams, int team, T (&values)[kRows]) {
  const int width = team < kWarpSize ? team : kWarpSize;
  static_assert(kRows <= kMinSinkhornTeam);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  int mask = width / 2;
  int r = 0;
#pragma unroll
  for (int half = kRows / 2; half > 0; half /= 2) {
    const bool has_upper = (lane & mask) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const T given = has_upper ? values[i] : values[i + half];
      const T kept = has_upper ? values[i + half] : values[i];
      values[i] = kept + __shfl_xor_sync(~0u, given, mask);
    }
    r += has_upper ? half : 0;
    mask /= 2;
  }
  const T sum = lane_sum(values[0], 2 * mask);
  if (lane % (width / kRows) == 0) {
    const int warp = static_cast<int>(threadIdx.x) % team / kWarpSize;
    shared.row_sums[(r * teams + my_team) * warps_of(team) + warp] = static_cast<double>(sum);
  }
}

// The same for one value.
template <typename Shared, typename T>
__device__ __forceinline__ void put_row_sum(Shared& shared, int slot, int team, T value) {
  T values[1] = {value};
  put_row_sums(shared, slot, 0, team, values);
}

// The sum over the team's warps, in their order; after a barrier.
template <typename Shared>
__device__ __forceinline__ double get_row_sum(const Shared& shared, int slot, int team) {
  const int warps = warps_of(team);
  double sum = 0.0;
  for (int warp = 0; warp < warps; ++warp) sum += shared.row_sums[slot * warps + warp];
  return sum;
}

// The row's new scale, computed in fp32 or in fp64.
template <typename Real, typename G>
__device__ __forceinline__ float update_row_scale(const SinkGDRows<G>& block, int row, float old, double sum) {
  const auto scale =
      static_cast<float>(sinkgd_rescale(static_cast<Real>(old), static_cast<Real>(sum),
                                        static_cast<Real>(block.norm.target), static_cast<Real>(block.norm.eps)));
  store_one(block.row_scale + row, scale);
  return scale;
}

// The old scale of the row whose new one this thread will compute, of the group that starts at `first`. Asked for
// early: between the two halves of a group everybody would wait for it.
template <typename G>
__device__ __forceinline__ float old_scale_of_slot(const SinkGDRows<G>& block, int first, int slots) {
  const int slot = static_cast<int>(threadIdx.x);
  return slot < slots && first + slot < block.row_end ? block.old_scale(first + slot) : 1.0f;
}

// Turns the row sums of the group that starts at `first` into row scales. put_exact_sums() replaces all sums by
// fp64 ones; it is called, by every thread of the block, if a sum or scale left fp32's safe range or is zero. Returns
// whether.
template <typename G, typename Shared, typename PutExactSums>
__device__ __forceinline__ bool finish_row_sums(const SinkGDRows<G>& block, Shared& shared, int first, int slots,
                                                float old, const PutExactSums& put_exact_sums) {
  __syncthreads();
  const int slot = static_cast<int>(threadIdx.x);
  const int row = first + slot;
  int is_unsafe = 0;
  if (slot < slots) {
    float scale = 0.0f;
    if (row < block.row_end) {
      const double sum = get_row_sum(shared, slot, block.team);
      is_unsafe = static_cast<int>(!squares_are_safe(sum) || !sinkgd_scale_is_safe(old));
      if (is_unsafe == 0) scale = update_row_scale<float>(block, row, old, sum);
    }
    shared.row_scales[slot] = scale;
  }
  if (__syncthreads_or(is_unsafe) == 0) return false;
  put_exact_sums();
  __syncthreads();
  if (is_unsafe != 0) {
    shared.row_scales[slot] = update_row_scale<double>(block, row, old, get_row_sum(shared, slot, block.team));
  }
  __syncthreads();
  return true;
}

// N elements that are loaded one by one, each in a register of its own: to put two of 16 bits into one would be to wait
// for them.
template <typename T, int N>
struct Loose {
  T elements[N];

  __device__ __forceinline__ void stay_packed() {}
  __device__ __forceinline__ void unpack(float (&values)[N]) const {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = to_float(elements[i]);
  }
};

// Which columns a thread has: kVectors pieces of kN. Where rows start on 16-byte boundaries a piece is 16 neighbouring
// bytes; elsewhere its elements are a team apart, so that neighbouring lanes load neighbouring elements.
template <bool kAligned, int kN>
struct TeamColumns;

template <int kN>
struct TeamColumns<true, kN> {
  int team, lane;
  int count;  // of its pieces

  __device__ __forceinline__ TeamColumns(int team, int lane, int cols)
      : team(team), lane(lane), count((cols / kN - lane + team - 1) / team) {}

  __device__ __forceinline__ int column(int v, int e) const { return (lane + v * team) * kN + e; }

  template <typename G>
  using Piece = Pack<G, kN>;

  template <typename G>
  __device__ __forceinline__ void load(const G* row, int v, bool is_row, Pack<G, kN>& pack) const {
    pack.load_or_zero(v < opaque(is_row ? count : 0), row + lane * kN + v * team * kN);
  }

  __device__ __forceinline__ void load_scales(const float* col_scale, int v, float (&scales)[kN]) const {
    if (v < opaque(count)) load_col_scales(col_scale, column(v, 0), scales);
  }

  __device__ __forceinline__ void store(float* partial, int v, const float (&sums)[kN]) const {
    Pack<float, kN> pack;
    pack.pack(sums);
    if (v < count) pack.store(partial + column(v, 0));
  }
};

template <int kN>
struct TeamColumns<false, kN> {
  int team, lane;
  int count;  // of its columns, which are a team apart

  __device__ __forceinline__ TeamColumns(int team, int lane, int cols)
      : team(team), lane(lane), count((cols - lane + team - 1) / team) {}

  __device__ __forceinline__ int column(int v, int e) const { return lane + (v * kN + e) * team; }

  template <typename G>
  using Piece = Loose<G, kN>;

  template <typename G>
  __device__ __forceinline__ void load(const G* row, int v, bool is_row, Loose<G, kN>& loose) const {
    const int here = opaque(is_row ? count : 0);
    const G* const first = row + lane;
#pragma unroll
    for (int e = 0; e < kN; ++e) {
      const int i = v * kN + e;
      loose.elements[e] = load_or_zero(i < here, first + i * team);
    }
  }

  __device__ __forceinline__ void load_scales(const float* col_scale, int v, float (&scales)[kN]) const {
    const int here = opaque(count);
#pragma unroll
    for (int e = 0; e < kN; ++e) {
      const int i = v * kN + e;
      scales[e] = col_scale == nullptr ? 1.0f : load_uniform_or_zero(i < here, col_scale + lane + i * team);
    }
  }

  __device__ __forceinline__ void store(float* partial, int v, const float (&sums)[kN]) const {
#pragma unroll
    for (int e = 0; e < kN; ++e) {
      if (v * kN + e < count) store_one(partial + column(v, e), sums[e]);
    }
  }
};

// Adds the column sums of teams that are side by side, in their order, and writes them.
template <int kThreads, typename G, typename Columns>
__device__ __forceinline__ void store_team_sums(const SinkGDRows<G>& block, SinkGDShared<G, kThreads>& shared,
                                                const Columns& columns, const float (&sums)[kVecSize<G>]) {
  constexpr int kN = kVecSize<G>;
  const int width = block.team * kN;
  const int first = static_cast<int>(threadIdx.x) / block.team * width;
#pragma unroll
  for (int e = 0; e < kN; ++e) shared.col_sums[first + columns.column(0, e)] = sums[e];
  __syncthreads();
  for (int col = static_cast<int>(threadIdx.x); col < static_cast<int>(block.cols); col += kThreads) {
    float sum = 0.0f;
    for (int i = col; i < kThreads * kN; i += width) sum += shared.col_sums[i];
    store_one(block.partial + col, sum);
  }
}

// The sum of squares of one row's entries times the column scales, in fp64, over the pieces of N elements that this
// lane of the team has. Reads the row anew: it is rare, and must not cost registers elsewhere.
template <int N, typename G>
__device__ __forceinline__ double exact_row_sum(const SinkGDRows<G>& block, int row) {
  double sum = 0.0;
  if (row >= block.row_end) return sum;
#pragma unroll 1
  for (int64_t col = static_cast<int>(threadIdx.x) % block.team * N; col < block.cols; col += block.team * N) {
#pragma unroll 1
    for (int e = 0; e < N; ++e) {
      float scale[1];
      load_col_scales(block.col_scale, col + e, scale);
      const float grad = to_float(load_one(block.grad + row * block.cols + col + e));
      sum = add_square(sum, static_cast<double>(grad) * static_cast<double>(scale[0]));
    }
  }
  return sum;
}

// Each thread holds kVectors pieces of 16 bytes of a row, of as many rows at a time as its registers hold. The loads of
// the next rows are issued piece by piece, as the last use of a piece leaves its registers: while a block adds up, as
// much is on its way to it as it has.
template <int kVectors, bool kAligned, typename G, int kThreads>
__device__ __forceinline__ void sinkgd_rows_in_registers(const SinkGDRows<G>& block,
                                                         SinkGDShared<G, kThreads>& shared) {
  constexpr int kN = kVecSize<G>;
  constexpr int kRows = kMaxVectors<kAligned, G> / kVectors;
  const int thread = opaque_thread_index();
  const int team = kVectors == 1 ? block.team : kThreads;
  const int teams = kThreads / team;
  const int my_team = thread / team;
  using Columns = TeamColumns<kAligned, kN>;
  const Columns columns(team, thread % team, static_cast<int>(block.cols));

  // Sums of squares of this thread's columns. 64 of them beside a row of 32 registers are a few too many: the last two
  // pieces' are in shared memory then.
  constexpr int kSharedPieces = kVectors * kN == 64 ? 2 : 0;
  constexpr int kOwnPieces = kVectors - kSharedPieces;
  float sums[kOwnPieces][kN] = {};
  float* const shared_sums = shared.col_sums + thread;  // at a stride of kThreads
  const auto sum_of = [&](int v, int e) -> float& {
    return v < kOwnPieces ? sums[v < kOwnPieces ? v : 0][e] : shared_sums[((v - kOwnPieces) * kN + e) * kThreads];
  };
#pragma unroll
  for (int v = kOwnPieces; v < kVectors; ++v) {
#pragma unroll
    for (int e = 0; e < kN; ++e) sum_of(v, e) = 0.0f;
  }

  typename Columns::template Piece<G> pieces[kRows][kVectors];
  const auto load_piece = [&](int first, int r, int v) {
    const int row = first + r * teams + my_team;
    columns.load(block.grad + row * block.cols, v, row < block.row_end, pieces[r][v]);
  };
  const auto load_rows = [&](int first) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) load_piece(first, r, v);
    }
  };
  // There are no registers for that beside more sums, nor for loose elements of several short rows.
  constexpr bool kLoadsAhead = kVectors * kN < 32 && (kAligned || kN == 4 || kVectors > 1);
  if constexpr (kLoadsAhead) load_rows(block.row_begin);
  for (int first = block.row_begin; first < block.row_end; first += kRows * teams) {
    const float old = old_scale_of_slot(block, first, kRows * teams);
    if constexpr (!kLoadsAhead) load_rows(first);
    float squares[kRows] = {};
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      float scales[kN] = {};
      columns.load_scales(block.col_scale, v, scales);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float grads[kN];
        pieces[r][v].stay_packed();
        pieces[r][v].unpack(grads);
#pragma unroll
        for (int e = 0; e < kN; ++e) squares[r] = add_square(squares[r], grads[e] * scales[e]);
      }
    }
    put_row_sums(shared, my_team, teams, team, squares);
    const bool was_rare = finish_row_sums(block, shared, first, kRows * teams, old, [&] {
#pragma unroll 1
      for (int r = 0; r < kRows; ++r) {
        const int slot = r * teams + my_team;
        put_row_sum(shared, slot, team, exact_row_sum<kAligned ? kN : 1>(block, first + slot));
      }
    });
    // Loaded again, so that the rows need not stay in registers all through the rare path.
    if (was_rare) load_rows(first);

#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float scale = shared.row_scales[r * teams + my_team];
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        float grads[kN];
        pieces[r][v].stay_packed();
        pieces[r][v].unpack(grads);
#pragma unroll
        for (int e = 0; e < kN; ++e) {
          float& sum = sum_of(v, e);
          sum = add_square(sum, grads[e] * scale);
        }
        if constexpr (kLoadsAhead) load_piece(first + kRows * teams, r, v);
      }
    }
  }

  if constexpr (kVectors == 1) {
    if (teams > 1) {
      store_team_sums(block, shared, columns, sums[0]);
      return;
    }
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    float values[kN];
#pragma unroll
    for (int e = 0; e < kN; ++e) values[e] = sum_of(v, e);
    columns.store(block.partial, v, values);
  }
}

}  // namespace sage_ext::cuda
