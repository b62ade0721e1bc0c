#include "cpu/common/blocks.inl"

namespace {

struct MoveSums {
  Lanes sum, max;
};

// One block; sign_of(k) is the signs of its part k.
template <typename W, typename SignOf>
SAGE_EXT_INLINE void move_block(MoveSums& sums, W* param, float step, float decay, const SignOf& sign_of) {
  SAGE_EXT_FOR_PARTS {
    Floats before;
    load_part(param + k * kLanes, before);
    Floats after = before;
    step_by_sign(after, sign_of(k), step, decay);
    store_part(param + k * kLanes, after);
    const Floats distance = absolute(after - before);
    sums.sum.of(k) += distance;
    sums.max.of(k) = larger(distance, sums.max.of(k));
  }
}

// Moves `count` elements and adds up how far they went; sign_of(block, k) is the signs of a block's part k. Behind the
// last element, which may be inside of a block, they are 0.
template <typename W, typename SignOf>
SAGE_EXT_INLINE Displacement move_blocks(W* param, int64_t count, float step, float decay, const SignOf& sign_of) {
  MoveSums sums{Lanes(0.0f), Lanes(0.0f)};
  WideLanes sum;
  const int64_t blocks = count / kBlock;
  const auto flush = [&]() SAGE_EXT_ALWAYS_INLINE { sum.take(sums.sum); };
  for_blocks(
      blocks,
      [&](int64_t block) SAGE_EXT_ALWAYS_INLINE {
        prefetch_strips(param + block * kBlock);
        move_block(sums, param + block * kBlock, step, decay,
                   [&](int k) SAGE_EXT_ALWAYS_INLINE { return sign_of(block, k); });
      },
      flush);
  if (const int64_t left = count - blocks * kBlock; left > 0) {
    W part[kBlock] = {};
    std::memcpy(part, param + blocks * kBlock, static_cast<size_t>(left) * sizeof(W));
    move_block(sums, part, step, decay, [&](int k) SAGE_EXT_ALWAYS_INLINE { return sign_of(blocks, k); });
    flush();
    std::memcpy(param + blocks * kBlock, part, static_cast<size_t>(left) * sizeof(W));
  }
  Displacement moved;
  moved.sum = sum.sum();
  for (int i = 0; i < Lanes::kCount; ++i) {
    const auto distance = static_cast<double>(sums.max.at(i));
    if (distance > moved.max) moved.max = distance;
  }
  if (moved.sum != moved.sum) moved.max = moved.sum;  // a NaN is in the sum, at least
  return moved;
}

template <typename W>
Displacement move_by_signs(const AliasTensor& tensor, int64_t begin, int64_t end, float step, float decay, float) {
  const uint32_t* positive = tensor.signs + begin / kBlock;
  const uint32_t* negative = positive + sign_words(tensor.numel);
  return move_blocks(static_cast<W*>(tensor.param) + begin, end - begin, step, decay,
                     [=](int64_t block, int k)
                         SAGE_EXT_ALWAYS_INLINE { return sign_of_bits(positive[block], negative[block], k); });
}

template <typename W, typename G>
Displacement move_by_grads(const AliasTensor& tensor, int64_t begin, int64_t end, float step, float decay,
                           float grad_factor) {
  const G* grad = static_cast<const G*>(tensor.grad) + begin;
  const int64_t count = end - begin;
  const int64_t blocks = count / kBlock;
  G last[kBlock] = {};
  std::memcpy(last, grad + blocks * kBlock, static_cast<size_t>(count - blocks * kBlock) * sizeof(G));
  return move_blocks(static_cast<W*>(tensor.param) + begin, count, step, decay,
                     [&](int64_t block, int k) SAGE_EXT_ALWAYS_INLINE {
                       if (k == 0) prefetch_strips(grad + block * kBlock);
                       Floats g;
                       load_part((block < blocks ? grad + block * kBlock : last) + k * kLanes, g);
                       return sign_of_lanes(g * grad_factor);
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
