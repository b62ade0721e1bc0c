#include "cpu/common/blocks.inl"

namespace {

// Extrema or the 1-norm and, with planes, the inner product with the signs in them.
struct ValueSums {
  Lanes max, min;
  Lanes norm;
  // Not finite where a gradient is not: only then a NaN has to be looked for among the extrema.
  Lanes inner;
};

// One block; `valid` has a bit for each of its elements that exists.
template <bool kSigns, bool kNorm, typename G>
SAGE_EXT_INLINE void observe_block(ValueSums& sums, const G* grad, float factor, uint32_t* positive, uint32_t* negative,
                                   uint32_t valid, bool record) {
  uint32_t now_positive = 0;
  uint32_t now_negative = 0;
  SAGE_EXT_FOR_PARTS {
    Floats values;
    load_part(grad + k * kLanes, values);
    values *= factor;
    // What fills a block up may be infinite, and 0 times that is not 0.
    const Floats terms = valid == ~0u ? values : (lane_bits(k) & valid) != 0 ? values : Floats{};
    if constexpr (kNorm) {
      sums.norm.of(k) += absolute(terms);
    } else {
      sums.max.of(k) = larger(values, sums.max.of(k));
      sums.min.of(k) = smaller(values, sums.min.of(k));
    }
    if constexpr (kSigns) {
      sums.inner.of(k) += terms * sign_of_bits(*positive, *negative, k);
      now_positive |= positive_bits(values) << (k * kLanes);
      now_negative |= negative_bits(values) << (k * kLanes);
    } else if constexpr (!kNorm) {
      sums.inner.of(k) += values * 0.0f;
    }
  }
  if (kSigns && record) {
    *positive = now_positive & valid;
    *negative = now_negative & valid;
  }
}

template <bool kSigns, bool kNorm, typename G>
Observation observe_values(const void* data, Span span, float factor, uint32_t* signs, bool record) {
  const G* grad = static_cast<const G*>(data) + span.begin;
  const int64_t count = span.end - span.begin;
  if (count == 0) return {};
  uint32_t* const positive = kSigns ? signs + span.begin / kBlock : nullptr;
  uint32_t* const negative = kSigns ? positive + sign_words(span.numel) : nullptr;
  const Lanes first(to_float(grad[0]) * factor);
  ValueSums sums{first, first, Lanes(0.0f), Lanes(0.0f)};
  WideLanes inner_lanes, norm_lanes;
  const int64_t blocks = count / kBlock;
  const auto flush = [&]() SAGE_EXT_ALWAYS_INLINE {
    inner_lanes.take(sums.inner);
    if constexpr (kNorm) norm_lanes.take(sums.norm);
  };
  for_blocks(
      blocks,
      [&](int64_t block) SAGE_EXT_ALWAYS_INLINE {
        prefetch_strips(grad + block * kBlock);
        observe_block<kSigns, kNorm>(sums, grad + block * kBlock, factor, positive + block, negative + block, ~0u,
                                     record);
      },
      flush);
  if (const int64_t left = count - blocks * kBlock; left > 0) {
    G part[kBlock];
    copy_part(grad + blocks * kBlock, left, grad[0], part);
    observe_block<kSigns, kNorm>(sums, part, factor, positive + blocks, negative + blocks, (1u << left) - 1u, record);
    flush();
  }
  const double inner = inner_lanes.sum();
  Observation seen;
  seen.inner = kSigns ? inner : 0.0;
  if constexpr (kNorm) {
    seen.norm = norm_lanes.sum();
    return seen;
  }
  seen.max = sums.max.at(0);
  seen.min = sums.min.at(0);
  for (int i = 1; i < Lanes::kCount; ++i) {
    const float max = sums.max.at(i);
    const float min = sums.min.at(i);
    seen.max = max > seen.max ? max : seen.max;
    seen.min = min < seen.min ? min : seen.min;
  }
  if (inner - inner != 0.0) {
    for (int64_t i = 0; i < count; ++i) {
      const float value = to_float(grad[i]) * factor;
      if (value != value) seen.max = seen.min = value;
    }
  }
  return seen;
}

struct DifferenceSums {
  Lanes inner, difference;
};

template <typename G>
SAGE_EXT_INLINE void compare_block(DifferenceSums& sums, const G* grad, float factor, const G* prev_grad,
                                   float prev_factor) {
  SAGE_EXT_FOR_PARTS {
    Floats g, p;
    load_part(grad + k * kLanes, g);
    load_part(prev_grad + k * kLanes, p);
    g *= factor;
    p *= prev_factor;
    sums.inner.of(k) += g * sign_of_lanes(p);
    sums.difference.of(k) += absolute(g - p);
  }
}

template <typename G>
Observation observe_pair(const void* data, Span span, float factor, void* prev_data, float prev_factor, bool record) {
  const G* grad = static_cast<const G*>(data) + span.begin;
  G* prev_grad = static_cast<G*>(prev_data) + span.begin;
  const int64_t count = span.end - span.begin;
  DifferenceSums sums{Lanes(0.0f), Lanes(0.0f)};
  WideLanes inner, difference;
  const auto flush = [&]() SAGE_EXT_ALWAYS_INLINE {
    inner.take(sums.inner);
    difference.take(sums.difference);
  };
  const int64_t blocks = count / kBlock;
  for_blocks(
      blocks,
      [&](int64_t block) SAGE_EXT_ALWAYS_INLINE {
        prefetch_strips(grad + block * kBlock, prev_grad + block * kBlock);
        compare_block(sums, grad + block * kBlock, factor, prev_grad + block * kBlock, prev_factor);
        if (record) std::memcpy(prev_grad + block * kBlock, grad + block * kBlock, kBlock * sizeof(G));
      },
      flush);
  if (const int64_t left = count - blocks * kBlock; left > 0) {
    G g_part[kBlock], p_part[kBlock];
    copy_part(grad + blocks * kBlock, left, from_float<G>(0.0f), g_part);
    copy_part(prev_grad + blocks * kBlock, left, from_float<G>(0.0f), p_part);
    compare_block(sums, g_part, factor, p_part, prev_factor);
    flush();
    if (record) std::memcpy(prev_grad + blocks * kBlock, grad + blocks * kBlock, static_cast<size_t>(left) * sizeof(G));
  }
  Observation seen;
  seen.inner = inner.sum();
  seen.norm = difference.sum();
  return seen;
}

template <bool kNorm>
ObserveValues select_observe_values(bool has_signs, DType dtype) {
  return visit_dtypes(
      [=](auto g) -> ObserveValues {
        using G = typename decltype(g)::type;
        return has_signs ? &observe_values<true, kNorm, G> : &observe_values<false, kNorm, G>;
      },
      dtype);
}

ObservePair select_observe_pair(DType dtype) {
  return visit_dtypes([](auto g) -> ObservePair { return &observe_pair<typename decltype(g)::type>; }, dtype);
}

}  // namespace
