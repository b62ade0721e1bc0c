#include "cpu/blocks.inl"

namespace {

// The last block of an array, which may be partial: a copy, filled up with `padding`.
template <typename T>
inline __attribute__((always_inline)) void copy_part(const T* data, int64_t count, T padding, T* block) {
  for (int i = 0; i < kBlock; ++i) block[i] = i < count ? data[i] : padding;
}

// Extrema and, with planes, the inner product with the signs in them. Whole blocks at a time.
struct ExtremaSums {
  float max[kBlock], min[kBlock];
  // Of products that are not finite where a gradient is not: only then a NaN has to be looked for.
  float inner[kBlock];
  double total = 0.0;

  void clear_inner() {
    for (int i = 0; i < kBlock; ++i) inner[i] = 0.0f;
  }

  void flush() {
    total += sum_of_block(inner);
    clear_inner();
  }
};

inline __attribute__((always_inline)) void add_extrema(ExtremaSums& sums, const float* values) {
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) {
    sums.max[i] = values[i] > sums.max[i] ? values[i] : sums.max[i];
    sums.min[i] = values[i] < sums.min[i] ? values[i] : sums.min[i];
  }
}

inline __attribute__((always_inline)) uint32_t pack_positive(const float* values) {
  uint32_t word = 0;
#pragma omp simd reduction(| : word)
  for (int i = 0; i < kBlock; ++i) word |= values[i] > 0.0f ? 1u << i : 0u;
  return word;
}

inline __attribute__((always_inline)) uint32_t pack_negative(const float* values) {
  uint32_t word = 0;
#pragma omp simd reduction(| : word)
  for (int i = 0; i < kBlock; ++i) word |= values[i] < 0.0f ? 1u << i : 0u;
  return word;
}

// One block: `valid` has a bit for each of its elements that exists.
template <bool kSigns, typename G>
inline __attribute__((always_inline)) void observe_block(ExtremaSums& sums, const G* grad, float factor,
                                                         uint32_t* positive, uint32_t* negative, uint32_t valid,
                                                         bool record) {
  float values[kBlock];
  load_block(grad, values);
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) values[i] *= factor;
  add_extrema(sums, values);
  if constexpr (kSigns) {
    const uint32_t p = *positive;
    const uint32_t n = *negative;
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) sums.inner[i] += values[i] * sign_at(p, n, i);
    if (record) {
      *positive = pack_positive(values) & valid;
      *negative = pack_negative(values) & valid;
    }
  } else {
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) sums.inner[i] += values[i] * 0.0f;
  }
}

template <bool kSigns, typename G>
Observation observe_values(const void* data, Span span, float factor, uint32_t* signs, bool record) {
  const G* grad = static_cast<const G*>(data) + span.begin;
  const int64_t count = span.end - span.begin;
  if (count == 0) return {};
  uint32_t* const positive = kSigns ? signs + span.begin / kBlock : nullptr;
  uint32_t* const negative = kSigns ? positive + sign_words(span.numel) : nullptr;
  ExtremaSums sums;
  const float first = to_float(grad[0]) * factor;
  for (int i = 0; i < kBlock; ++i) sums.max[i] = sums.min[i] = first;
  sums.clear_inner();
  const int64_t blocks = count / kBlock;
  for (int64_t block = 0; block < blocks;) {
    const int64_t flush = blocks - block < kBlocksPerFlush ? blocks : block + kBlocksPerFlush;
    for (; block < flush; ++block) {
      observe_block<kSigns>(sums, grad + block * kBlock, factor, positive + block, negative + block, ~0u, record);
    }
    sums.flush();
  }
  if (const int64_t left = count - blocks * kBlock; left > 0) {
    G part[kBlock];
    copy_part(grad + blocks * kBlock, left, grad[0], part);
    observe_block<kSigns>(sums, part, factor, positive + blocks, negative + blocks, (1u << left) - 1u, record);
    sums.flush();
  }
  Observation seen;
  seen.inner = kSigns ? sums.total : 0.0;
  seen.max = sums.max[0];
  seen.min = sums.min[0];
  for (int i = 1; i < kBlock; ++i) {
    seen.max = sums.max[i] > seen.max ? sums.max[i] : seen.max;
    seen.min = sums.min[i] < seen.min ? sums.min[i] : seen.min;
  }
  if (sums.total - sums.total != 0.0) {
    for (int64_t i = 0; i < count; ++i) {
      const float value = to_float(grad[i]) * factor;
      if (value != value) seen.max = seen.min = value;
    }
  }
  return seen;
}

template <typename G>
Observation observe_pair(const void* data, Span span, float factor, void* prev_data, float prev_factor, bool record) {
  const G* grad = static_cast<const G*>(data) + span.begin;
  G* prev_grad = static_cast<G*>(prev_data) + span.begin;
  const int64_t count = span.end - span.begin;
  float inner[kBlock] = {};
  float difference[kBlock] = {};
  Observation seen;
  const auto add = [&](const G* g_block, const G* p_block) SAGE_EXT_ALWAYS_INLINE {
    float g[kBlock], p[kBlock];
    load_block(g_block, g);
    load_block(p_block, p);
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) {
      const float scaled = g[i] * factor;
      const float before = p[i] * prev_factor;
      inner[i] += scaled * sign_of(before);
      difference[i] += __builtin_fabsf(scaled - before);
    }
  };
  const auto flush = [&] {
    seen.inner += sum_of_block(inner);
    seen.difference += sum_of_block(difference);
    for (int i = 0; i < kBlock; ++i) inner[i] = difference[i] = 0.0f;
  };
  const int64_t blocks = count / kBlock;
  for (int64_t block = 0; block < blocks;) {
    const int64_t end = blocks - block < kBlocksPerFlush ? blocks : block + kBlocksPerFlush;
    for (; block < end; ++block) {
      add(grad + block * kBlock, prev_grad + block * kBlock);
      if (record) std::memcpy(prev_grad + block * kBlock, grad + block * kBlock, kBlock * sizeof(G));
    }
    flush();
  }
  if (const int64_t left = count - blocks * kBlock; left > 0) {
    G g_part[kBlock], p_part[kBlock];
    copy_part(grad + blocks * kBlock, left, from_float<G>(0.0f), g_part);
    copy_part(prev_grad + blocks * kBlock, left, from_float<G>(0.0f), p_part);
    add(g_part, p_part);
    flush();
    if (record) std::memcpy(prev_grad + blocks * kBlock, grad + blocks * kBlock, static_cast<size_t>(left) * sizeof(G));
  }
  return seen;
}

template <bool kSigns>
ObserveValues select_observe_values(DType dtype) {
  return visit_dtypes([](auto g) -> ObserveValues { return &observe_values<kSigns, typename decltype(g)::type>; },
                      dtype);
}

ObservePair select_observe_pair(DType dtype) {
  return visit_dtypes([](auto g) -> ObservePair { return &observe_pair<typename decltype(g)::type>; }, dtype);
}

}  // namespace
