namespace {

template <typename W, typename G, typename S>
void adamw_chunk(const AdamWTensor& tensor, int64_t begin, int64_t end, float grad_factor) {
  const AdamWCoefficients k = tensor.coefficients;
  update_elements(
      end - begin,
      [=](int64_t, float g, float& w, float& m, float& v)
          SAGE_EXT_ALWAYS_INLINE { adamw_update(w, m, v, g * grad_factor, k); },
      static_cast<const G*>(tensor.grad) + begin, static_cast<W*>(tensor.param) + begin,
      static_cast<S*>(tensor.exp_avg) + begin, static_cast<S*>(tensor.exp_avg_sq) + begin);
}

AdamWChunk select_adamw_chunk(const AdamWTensor& t) {
  return visit_dtypes(
      [](auto w, auto g, auto s) -> AdamWChunk {
        return &adamw_chunk<typename decltype(w)::type, typename decltype(g)::type, typename decltype(s)::type>;
      },
      t.param_dtype, t.grad_dtype, t.state_dtype);
}

}  // namespace
