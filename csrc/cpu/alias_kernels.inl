#include "cpu/blocks.inl"

namespace {

// Moves `count` elements and adds up how far they went. `load_direction(block, values)` gives what the sign is taken
// of, for whole blocks and for the elements that are left.
template <typename W, typename LoadDirection>
inline __attribute__((always_inline)) Displacement move_blocks(W* param, int64_t count, float step, float decay,
                                                               LoadDirection load_direction) {
  float sums[kBlock] = {};
  float farthest[kBlock] = {};
  Displacement moved;
  const auto move = [&](W* block, int64_t index) SAGE_EXT_ALWAYS_INLINE {
    float before[kBlock], after[kBlock];
    load_direction(index, after);
    load_block(block, before);
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) {
      float value = before[i];
      sign_sgd_update(value, after[i], step, decay);
      after[i] = value;
    }
    store_block(block, after);
    load_block(block, after);  // as it was rounded
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) {
      const float distance = __builtin_fabsf(after[i] - before[i]);
      sums[i] += distance;
      farthest[i] = distance > farthest[i] ? distance : farthest[i];
    }
  };
  const auto flush = [&] {
    moved.sum += sum_of_block(sums);
    for (int i = 0; i < kBlock; ++i) sums[i] = 0.0f;
  };
  const int64_t blocks = count / kBlock;
  for (int64_t block = 0; block < blocks;) {
    const int64_t end = blocks - block < kBlocksPerFlush ? blocks : block + kBlocksPerFlush;
    for (; block < end; ++block) move(param + block * kBlock, block);
    flush();
  }
  if (const int64_t left = count - blocks * kBlock; left > 0) {
    W part[kBlock] = {};
    std::memcpy(part, param + blocks * kBlock, static_cast<size_t>(left) * sizeof(W));
    move(part, blocks);
    flush();
    std::memcpy(param + blocks * kBlock, part, static_cast<size_t>(left) * sizeof(W));
  }
  for (const float distance : farthest) {
    if (static_cast<double>(distance) > moved.max) moved.max = static_cast<double>(distance);
  }
  if (moved.sum != moved.sum) moved.max = moved.sum;  // a NaN is in the sum, at least
  return moved;
}

template <typename W>
Displacement move_by_signs(const AliasTensor& tensor, int64_t begin, int64_t end, float step, float decay, float) {
  const uint32_t* positive = tensor.signs + begin / kBlock;
  const uint32_t* negative = positive + sign_words(tensor.numel);
  return move_blocks(static_cast<W*>(tensor.param) + begin, end - begin, step, decay,
                     [=](int64_t block, float* signs) SAGE_EXT_ALWAYS_INLINE {
                       const uint32_t p = positive[block];
                       const uint32_t n = negative[block];
#pragma omp simd
                       for (int i = 0; i < kBlock; ++i) signs[i] = sign_at(p, n, i);
                     });
}

template <typename W, typename G>
Displacement move_by_grads(const AliasTensor& tensor, int64_t begin, int64_t end, float step, float decay,
                           float grad_factor) {
  const G* grad = static_cast<const G*>(tensor.grad) + begin;
  const int64_t count = end - begin;
  return move_blocks(static_cast<W*>(tensor.param) + begin, count, step, decay,
                     [=](int64_t block, float* values) SAGE_EXT_ALWAYS_INLINE {
                       const int64_t left = count - block * kBlock;
                       if (left >= kBlock) {
                         load_block(grad + block * kBlock, values);
                       } else {
                         for (int i = 0; i < kBlock; ++i)
                           values[i] = i < left ? to_float(grad[block * kBlock + i]) : 0.0f;
                       }
#pragma omp simd
                       for (int i = 0; i < kBlock; ++i) values[i] *= grad_factor;
                     });
}

AliasMove select_move_by_signs(const AliasTensor& t) {
  return visit_dtypes([](auto w) -> AliasMove { return &move_by_signs<typename decltype(w)::type>; }, t.param_dtype);
}

AliasMove select_move_by_grads(const AliasTensor& t) {
  return visit_dtypes(
      [](auto w, auto g) -> AliasMove {
        return &move_by_grads<typename decltype(w)::type, typename decltype(g)::type>;
      },
      t.param_dtype, t.grad_dtype);
}

}  // namespace
