namespace {

template <typename W, typename G>
void sign_sgd_chunk(const SignSGDTensor& tensor, int64_t begin, int64_t end, float step, float grad_factor,
                    const SignumCoefficients& coefficients) {
  const float decay = coefficients.decay;
  update_elements(
      end - begin,
      [=](int64_t, float g, float& w) SAGE_EXT_ALWAYS_INLINE { sign_sgd_update(w, g * grad_factor, step, decay); },
      static_cast<const G*>(tensor.grad) + begin, static_cast<W*>(tensor.param) + begin);
}

template <typename W, typename G, typename M>
void signum_chunk(const SignSGDTensor& tensor, int64_t begin, int64_t end, float step, float grad_factor,
                  const SignumCoefficients& coefficients) {
  const SignumCoefficients k = coefficients;
  update_elements(
      end - begin,
      [=](int64_t, float g, float& w, float& m)
          SAGE_EXT_ALWAYS_INLINE { signum_update(w, m, g * grad_factor, step, k); },
      static_cast<const G*>(tensor.grad) + begin, static_cast<W*>(tensor.param) + begin,
      static_cast<M*>(tensor.exp_avg) + begin);
}

SignSGDChunk select_sign_sgd_chunk(const SignSGDTensor& t, bool has_momentum) {
  if (!has_momentum) {
    return visit_dtypes(
        [](auto w, auto g) -> SignSGDChunk {
          return &sign_sgd_chunk<typename decltype(w)::type, typename decltype(g)::type>;
        },
        t.param_dtype, t.grad_dtype);
  }
  return visit_dtypes(
      [](auto w, auto g, auto m) -> SignSGDChunk {
        return &signum_chunk<typename decltype(w)::type, typename decltype(g)::type, typename decltype(m)::type>;
      },
      t.param_dtype, t.grad_dtype, t.exp_avg_dtype);
}

}  // namespace
