#pragma once

#include <cstdint>

#include "core/dtype.h"

// What ALIAS takes from a part of one gradient g and the one before it, p: one pass over it, which also records g.
// `factor` multiplies every element of g on load. A NaN wins in every maximum and minimum.
namespace sage_ext::cpu {

struct Observation {
  double inner = 0.0;  // <g, sign(p)>
  double norm = 0.0;   // the 1-norm of g, or of g - p
  float max = 0.0f, min = 0.0f;
};

// The elements [begin, end) of an array of `numel`; `begin` is a multiple of 32.
struct Span {
  int64_t begin, end, numel;
};

// max and min; with `signs`, which are the bit planes of p and, if it is to be recorded, then of g, inner as well.
Observation observe_extrema(const void* grad, DType dtype, Span span, float factor, uint32_t* signs, bool record);

// norm, of g; with `signs` inner as well.
Observation observe_norm(const void* grad, DType dtype, Span span, float factor, uint32_t* signs, bool record);

// inner and norm, of g - p; `prev_grad` is p over `prev_factor` and, if it is to be recorded, then g as it came.
Observation observe_difference(const void* grad, DType dtype, Span span, float factor, void* prev_grad,
                               float prev_factor, bool record);

}  // namespace sage_ext::cpu
