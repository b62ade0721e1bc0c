// Part of every instruction set's namespace (see foreach_isa.inl): a function that inlines a kernel's lambda has
// to be compiled for the same instruction set as the lambda.
namespace {

// For i in [0, count): body(i, grad[i], written[i]...) with fp32 values; what the body leaves in `written` is
// rounded once and stored. The arrays do not overlap.
template <typename Body, typename G, typename... Written>
inline __attribute__((always_inline)) void update_elements(int64_t count, Body body, const G* __restrict grad,
                                                           Written* __restrict... written) {
  int64_t done = 0;
  if constexpr (is_16_bit<G> || (is_16_bit<Written> || ...)) {
    const int64_t pairs = count / 2;
#pragma omp simd
    for (int64_t i = 0; i < pairs; ++i) {
      [&](auto... first) SAGE_EXT_ALWAYS_INLINE {
        body(2 * i, load_first(grad, i), first...);
        [&](auto... second) SAGE_EXT_ALWAYS_INLINE {
          body(2 * i + 1, load_second(grad, i), second...);
          (store_pair(written, i, first, second), ...);
        }(load_second(written, i)...);
      }(load_first(written, i)...);
    }
    done = 2 * pairs;
  }
#pragma omp simd
  for (int64_t i = done; i < count; ++i) {
    [&](auto... values) SAGE_EXT_ALWAYS_INLINE {
      body(i, to_float(grad[i]), values...);
      ((written[i] = from_float<Written>(values)), ...);
    }(to_float(written[i])...);
  }
}

// sum + x^2, with one rounding where the target has it; a libm call would be slow elsewhere.
inline __attribute__((always_inline)) float add_square(float sum, float x) {
#if SAGE_EXT_ISA_FMA
  return __builtin_fmaf(x, x, sum);
#else
  return sum + x * x;
#endif
}

// For i in [0, count): body(i, grad[i]) with the fp32 value.
template <typename Body, typename G>
inline __attribute__((always_inline)) void for_elements(int64_t count, Body body, const G* __restrict grad) {
  update_elements(count, body, grad);
}

}  // namespace
