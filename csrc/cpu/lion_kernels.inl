namespace {

template <typename W, typename G, typename M>
void lion_chunk(const LionTensor& tensor, int64_t begin, int64_t end, float step, float grad_factor,
                const LionCoefficients& coefficients) {
  const LionCoefficients k = coefficients;
  update_elements(
      end - begin,
      [=](int64_t, float g, float& w, float& m) SAGE_EXT_ALWAYS_INLINE { lion_update(w, m, g * grad_factor, step, k); },
      static_cast<const G*>(tensor.grad) + begin, static_cast<W*>(tensor.param) + begin,
      static_cast<M*>(tensor.exp_avg) + begin);
}

LionChunk select_lion_chunk(const LionTensor& t) {
  return visit_dtypes(
      [](auto w, auto g, auto m) -> LionChunk {
        return &lion_chunk<typename decltype(w)::type, typename decltype(g)::type, typename decltype(m)::type>;
      },
      t.param_dtype, t.grad_dtype, t.exp_avg_dtype);
}

}  // namespace
