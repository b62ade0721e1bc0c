#pragma once

#include "cuda/common/sign_planes.cuh"

// What ALIAS and ALIAS-Adam ask of a gradient g and the signs of the one before it, p.
namespace sage_ext::cuda {

// What a pass takes of this thread's elements of g: add() gets each one, end_group() follows on at most eight.
struct Nothing {
  __device__ __forceinline__ void add(float) {}
  __device__ __forceinline__ void end_group() {}
};

// The largest of g and of -g.
struct Extrema {
  float largest[2] = {-kInfinity<float>, -kInfinity<float>};

  __device__ __forceinline__ void add(float g) {
    largest[0] = nan_max(largest[0], g);
    largest[1] = nan_max(largest[1], -g);
  }
  __device__ __forceinline__ void end_group() {}
};

// The sum of |g|.
struct Norm {
  double sum = 0.0;
  float group = 0.0f;

  __device__ __forceinline__ void add(float g) { group += fabsf(g); }
  __device__ __forceinline__ void end_group() {
    sum += static_cast<double>(group);
    group = 0.0f;
  }
};

// This thread's part of <g, sign(p)> in a block's chunk of a tensor, in whose planes the signs of g take the place of
// those of p; and what `taken` takes of g.
template <typename G, typename Taken>
__device__ __forceinline__ double observe_signs(const G* grad, const SignPlanes& planes, int count, float factor,
                                                Taken& taken) {
  double inner = 0.0;
  float group = 0.0f;
  update_with_signs(
      grad, planes, count,
      [&](float g, float sign) {
        g *= factor;
        group = fmaf(g, sign, group);  // the product is exact
        taken.add(g);
        return g;
      },
      [&] {
        inner += static_cast<double>(group);
        group = 0.0f;
        taken.end_group();
      });
  return inner;
}

}  // namespace sage_ext::cuda
