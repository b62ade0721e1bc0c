// Part of every instruction set's namespace (see foreach_isa.inl): arrays in blocks of 32 elements, which are a word of
// the sign planes. Loops over a block have a constant length, so that they become a few vectors without a tail.
namespace {

inline constexpr int kBlock = 32;
static_assert(kBlock == kSignsPerWord);

// Sums run in fp32 over so many blocks, each element of a block in a sum of its own, and then in fp64.
inline constexpr int64_t kBlocksPerFlush = 64;

template <typename T>
inline __attribute__((always_inline)) void load_block(const T* __restrict data, float* __restrict values) {
  if constexpr (is_16_bit<T>) {
#pragma omp simd
    for (int i = 0; i < kBlock / 2; ++i) {
      values[2 * i] = load_first(data, i);
      values[2 * i + 1] = load_second(data, i);
    }
  } else {
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) values[i] = to_float(data[i]);
  }
}

template <typename T>
inline __attribute__((always_inline)) void store_block(T* __restrict data, const float* __restrict values) {
  if constexpr (is_16_bit<T>) {
#pragma omp simd
    for (int i = 0; i < kBlock / 2; ++i) store_pair(data, i, values[2 * i], values[2 * i + 1]);
  } else {
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) data[i] = from_float<T>(values[i]);
  }
}

inline double sum_of_block(const float* values) {
  double sum = 0.0;
  for (int i = 0; i < kBlock; ++i) sum += static_cast<double>(values[i]);
  return sum;
}

}  // namespace
