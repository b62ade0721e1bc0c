namespace {

template <typename W, typename G, typename S>
void alias_adam_chunk(const AliasAdamTensor& tensor, int64_t begin, int64_t end,
                      const AliasAdamCoefficients& coefficients) {
  const AliasAdamCoefficients k = coefficients;
  update_elements(
      end - begin,
      [=](int64_t, float g, float& w, float& m, float& v) SAGE_EXT_ALWAYS_INLINE { alias_adam_update(w, m, v, g, k); },
      static_cast<const G*>(tensor.grad) + begin, static_cast<W*>(tensor.param) + begin,
      static_cast<S*>(tensor.exp_avg) + begin, static_cast<S*>(tensor.exp_avg_sq) + begin);
}

AliasAdamChunk select_alias_adam_chunk(const AliasAdamTensor& t) {
  return visit_dtypes(
      [](auto w, auto g, auto s) -> AliasAdamChunk {
        return &alias_adam_chunk<typename decltype(w)::type, typename decltype(g)::type, typename decltype(s)::type>;
      },
      t.param_dtype, t.grad_dtype, t.state_dtype);
}

}  // namespace
