namespace {

template <typename W, typename G, typename S>
void adamw_chunk(const AdamWTensor& tensor, int64_t begin, int64_t end, float grad_factor) {
  W* __restrict param = static_cast<W*>(tensor.param);
  const G* __restrict grad = static_cast<const G*>(tensor.grad);
  S* __restrict exp_avg = static_cast<S*>(tensor.exp_avg);
  S* __restrict exp_avg_sq = static_cast<S*>(tensor.exp_avg_sq);
  const AdamWCoefficients k = tensor.coefficients;
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    float w = to_float(param[i]);
    float m = to_float(exp_avg[i]);
    float v = to_float(exp_avg_sq[i]);
    adamw_update(w, m, v, to_float(grad[i]) * grad_factor, k);
    param[i] = from_float<W>(w);
    exp_avg[i] = from_float<S>(m);
    exp_avg_sq[i] = from_float<S>(v);
  }
}

AdamWChunk select_adamw_chunk(const AdamWTensor& t) {
  return visit_dtypes(
      [](auto w, auto g, auto s) -> AdamWChunk {
        return &adamw_chunk<typename decltype(w)::type, typename decltype(g)::type, typename decltype(s)::type>;
      },
      t.param_dtype, t.grad_dtype, t.state_dtype);
}

}  // namespace
