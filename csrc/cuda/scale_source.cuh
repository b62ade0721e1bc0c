#pragma once

#include "core/math/scale.h"
#include "cuda/common/column_sums.cuh"
#include "cuda/common/elements.cuh"
#include "cuda/common/reduce.cuh"

// What SCALE normalises. Each element is asked for once.
namespace sage_ext::cuda {

// The gradient.
template <typename G>
struct GradientSource {
  static constexpr int kVec = kVecSize<G>;
  const G* grad;
  float factor;
  bool aligned;
  Pack<G, kVec> packs[kRowsInFlight];
  G singles[kVec];

  __device__ __forceinline__ GradientSource(const G* data, float grad_factor)
      : grad(data), factor(grad_factor), aligned(Pack<G, kVec>::is_aligned(data)) {}

  __device__ __forceinline__ void load(int u, int64_t i) { packs[u].load(grad + i); }
  __device__ __forceinline__ void values(int u, int64_t, float (&x)[kVec]) {
    packs[u].unpack(x);
#pragma unroll
    for (int e = 0; e < kVec; ++e) x[e] *= factor;
  }
  __device__ __forceinline__ void load_one(int e, int64_t i) { singles[e] = cuda::load_one(grad + i); }
  __device__ __forceinline__ float value_one(int e, int64_t) { return to_float(singles[e]) * factor; }

  // Of an element that has been asked for.
  __device__ __forceinline__ float again(int64_t i) const { return to_float(cuda::load_one(grad + i)) * factor; }
};

// The momentum, which is brought up to date and stored on the way: its elements are those that are stored.
template <typename G, typename M>
struct MomentumSource {
  static constexpr int kVec = kGroupSize<G, M>;
  const G* grad;
  M* exp_avg;
  float factor;
  MomentumCoefficients momentum;
  bool aligned;
  Pack<G, kVec> grads[kRowsInFlight];
  Pack<M, kVec> moments[kRowsInFlight];
  G single_grads[kVec];
  M single_moments[kVec];

  __device__ __forceinline__ MomentumSource(const G* grad_data, M* exp_avg_data, float grad_factor,
                                            const MomentumCoefficients& k)
      : grad(grad_data),
        exp_avg(exp_avg_data),
        factor(grad_factor),
        momentum(k),
        aligned(Pack<G, kVec>::is_aligned(grad_data) && Pack<M, kVec>::is_aligned(exp_avg_data)) {}

  __device__ __forceinline__ void load(int u, int64_t i) {
    grads[u].load(grad + i);
    moments[u].load(exp_avg + i);
  }
  __device__ __forceinline__ void values(int u, int64_t i, float (&x)[kVec]) {
    float g[kVec];
    grads[u].unpack(g);
    moments[u].unpack(x);
#pragma unroll
    for (int e = 0; e < kVec; ++e) x[e] = momentum_update(x[e], g[e] * factor, momentum);
    moments[u].pack(x);
    moments[u].store(exp_avg + i);
    moments[u].unpack(x);
  }
  __device__ __forceinline__ void load_one(int e, int64_t i) {
    single_grads[e] = cuda::load_one(grad + i);
    single_moments[e] = cuda::load_one(exp_avg + i);
  }
  __device__ __forceinline__ float value_one(int e, int64_t i) {
    const M stored =
        from_float<M>(momentum_update(to_float(single_moments[e]), to_float(single_grads[e]) * factor, momentum));
    store_one(exp_avg + i, stored);
    return to_float(stored);
  }

  __device__ __forceinline__ float again(int64_t i) const { return to_float(cuda::load_one(exp_avg + i)); }
};

// Either of them for sum_columns(): the terms are squares.
template <typename Source>
struct SquaresOf : Source {
  using Source::kVec;
  using Source::Source;

  __device__ __forceinline__ void terms(int u, int64_t i, float (&squares)[kVec]) {
    this->values(u, i, squares);
#pragma unroll
    for (int e = 0; e < kVec; ++e) squares[e] *= squares[e];
  }
  __device__ __forceinline__ float term_one(int e, int64_t i) {
    const float x = this->value_one(e, i);
    return x * x;
  }
};

}  // namespace sage_ext::cuda
