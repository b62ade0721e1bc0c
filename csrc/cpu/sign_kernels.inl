namespace {

template <typename W, typename G, typename M>
void lion_chunk(const LionTensor& tensor, int64_t begin, int64_t end, float step, float grad_factor,
                const LionCoefficients& coefficients) {
  W* __restrict param = static_cast<W*>(tensor.param);
  const G* __restrict grad = static_cast<const G*>(tensor.grad);
  M* __restrict exp_avg = static_cast<M*>(tensor.exp_avg);
  const LionCoefficients k = coefficients;
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    float w = to_float(param[i]);
    float m = to_float(exp_avg[i]);
    lion_update(w, m, to_float(grad[i]) * grad_factor, step, k);
    param[i] = from_float<W>(w);
    exp_avg[i] = from_float<M>(m);
  }
}

LionChunk select_lion_chunk(const LionTensor& t) {
  return visit_dtypes(
      [](auto w, auto g, auto m) -> LionChunk {
        return &lion_chunk<typename decltype(w)::type, typename decltype(g)::type, typename decltype(m)::type>;
      },
      t.param_dtype, t.grad_dtype, t.exp_avg_dtype);
}

}  // namespace
