// Part of every instruction set's namespace (see foreach_isa.inl): arrays in blocks of 32 elements, which are a word of
// the sign planes. Packing bits and sums that stay in registers are beyond what compilers vectorise by themselves, so
// these are vector types of GCC and Clang, which become what the instruction set has. What includes this includes
// "cpu/common/x86_intrinsics.h" first, outside of the namespace.
namespace {

inline constexpr int kLanes = SAGE_EXT_ISA_LANES;  // of one vector
inline constexpr int kBlock = 32;
inline constexpr int kParts = kBlock / kLanes;
static_assert(kBlock == 32 && kBlock == kStrip, "the bits of a word, and what prefetch_strips() asks for");

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef double Doubles __attribute__((vector_size(8 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef int32_t Masks __attribute__((vector_size(4 * kLanes)));  // of a comparison: all bits of a lane, or none
typedef uint16_t Shorts __attribute__((vector_size(2 * kLanes)));

// Sums run in fp32 over so many blocks, each lane on its own, and then in fp64.
inline constexpr int64_t kBlocksPerFlush = 64;

#define SAGE_EXT_INLINE inline __attribute__((always_inline))

// For all parts of a block, k = 0 to kParts - 1: the loop has to be gone for sums to stay in registers.
#define SAGE_EXT_FOR_PARTS _Pragma("GCC unroll 8") for (int k = 0; k < kParts; ++k)

// Two vectors for the parts of a block in turn: additions need not wait for each other.
struct Lanes {
  static constexpr int kCount = 2 * kLanes;
  Floats vector[2];

  SAGE_EXT_INLINE explicit Lanes(float value) { vector[0] = vector[1] = Floats{} + value; }
  SAGE_EXT_INLINE Floats& of(int part) { return vector[part % 2]; }
  SAGE_EXT_INLINE float at(int i) const { return vector[i / kLanes][i % kLanes]; }
};

// Where sums go from fp32, still lane by lane.
struct WideLanes {
  Doubles lanes = {};

  SAGE_EXT_INLINE void take(Lanes& sums) {
    lanes += __builtin_convertvector(sums.vector[0], Doubles) + __builtin_convertvector(sums.vector[1], Doubles);
    sums = Lanes(0.0f);
  }

  SAGE_EXT_INLINE double sum() const {
    double total = 0.0;
    for (int i = 0; i < kLanes; ++i) total += lanes[i];
    return total;
  }
};

// Calls visit(block) for all blocks in [0, blocks), and flush() at least once in kBlocksPerFlush of them.
template <typename Visit, typename Flush>
SAGE_EXT_INLINE void for_blocks(int64_t blocks, const Visit& visit, const Flush& flush) {
  // From four places in turn, as update_elements() does.
  const int64_t distance = (blocks / kStreams - 1) | 1;
  int64_t done = 0;
  if (blocks >= 4 * kStreams) {
    for (int64_t i = 0; i < distance;) {
      const int64_t end = distance - i < kBlocksPerFlush / kStreams ? distance : i + kBlocksPerFlush / kStreams;
      for (; i < end; ++i) {
        visit(i);
        visit(i + distance);
        visit(i + 2 * distance);
        visit(i + 3 * distance);
      }
      flush();
    }
    done = kStreams * distance;
  }
  while (done < blocks) {
    const int64_t end = blocks - done < kBlocksPerFlush ? blocks : done + kBlocksPerFlush;
    for (; done < end; ++done) visit(done);
    flush();
  }
}

// The last block of an array, which may be partial: a copy, filled up with `padding`.
template <typename T>
SAGE_EXT_INLINE void copy_part(const T* data, int64_t count, T padding, T* block) {
  for (int i = 0; i < kBlock; ++i) block[i] = i < count ? data[i] : padding;
}

// The bits that the lanes of one part of a block have in a word.
SAGE_EXT_INLINE Words lane_bits(int part) {
  Words bits;
  for (int i = 0; i < kLanes; ++i) bits[i] = 1u << (part * kLanes + i);
  return bits;
}

// To words and back, which have 16 bits when they are stored. GCC converts the vector types with three to five
// instructions.
#if SAGE_EXT_X86_ISAS && SAGE_EXT_ISA_LANES == 16
SAGE_EXT_INLINE Words load_shorts(const void* data) {
  // The mask keeps it from warnings.
  return reinterpret_cast<Words>(
      _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(static_cast<const __m256i*>(data))));
}
#elif SAGE_EXT_X86_ISAS && SAGE_EXT_ISA_LANES == 8
SAGE_EXT_INLINE Words load_shorts(const void* data) {
  return reinterpret_cast<Words>(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(data))));
}
#else
SAGE_EXT_INLINE Words load_shorts(const void* data) {
  Shorts shorts;
  std::memcpy(&shorts, data, sizeof(shorts));
  return __builtin_convertvector(shorts, Words);
}
#endif

#if SAGE_EXT_X86_ISAS && SAGE_EXT_ISA_LANES == 8
SAGE_EXT_INLINE void store_shorts(void* data, const Words& words) {
  const auto lanes = reinterpret_cast<__m256i>(words);
  _mm_storeu_si128(static_cast<__m128i*>(data),
                   _mm_packus_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1)));
}
#else
SAGE_EXT_INLINE void store_shorts(void* data, const Words& words) {
  const Shorts shorts = __builtin_convertvector(words, Shorts);
  std::memcpy(data, &shorts, sizeof(shorts));
}
#endif

// f of every lane; a loop that the compiler does vectorise.
template <typename To, typename From, typename Function>
SAGE_EXT_INLINE To for_lanes(const From& from, const Function& f) {
  decltype(from[0] + from[0]) in[kLanes];
  decltype(f(in[0])) out[kLanes];
  std::memcpy(in, &from, sizeof(in));
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) out[i] = f(in[i]);
  To to;
  std::memcpy(&to, out, sizeof(to));
  return to;
}

SAGE_EXT_INLINE void load_part(const float* data, Floats& values) { std::memcpy(&values, data, sizeof(values)); }

SAGE_EXT_INLINE void load_part(const BFloat16* data, Floats& values) {
  values = reinterpret_cast<Floats>(load_shorts(data) << 16);
}

SAGE_EXT_INLINE void load_part(const Half* data, Floats& values) {
  values =
      for_lanes<Floats>(load_shorts(data), [](uint32_t bits) SAGE_EXT_ALWAYS_INLINE { return half_to_float(bits); });
}

// Stores the values, and leaves in them what they were rounded to.
SAGE_EXT_INLINE void store_part(float* data, Floats& values) { std::memcpy(data, &values, sizeof(values)); }

SAGE_EXT_INLINE void store_part(BFloat16* data, Floats& values) {
  const auto words =
      for_lanes<Words>(values, [](float x) SAGE_EXT_ALWAYS_INLINE { return float_to_bfloat16_high(x) & 0xffff0000u; });
  store_shorts(data, words >> 16);
  values = reinterpret_cast<Floats>(words);
}

SAGE_EXT_INLINE void store_part(Half* data, Floats& values) {
  const auto words = for_lanes<Words>(values, [](float x) SAGE_EXT_ALWAYS_INLINE { return float_to_half(x); });
  store_shorts(data, words);
  values = for_lanes<Floats>(words, [](uint32_t bits) SAGE_EXT_ALWAYS_INLINE { return half_to_float(bits); });
}

// All parts of a block whose elements' order is of no account. With kHalves, which wants 16-bit elements, a vector of
// words holds two parts, the low halves' and the high ones': shifts and masks, as in elements.h.
template <bool kHalves, typename T>
SAGE_EXT_INLINE void load_parts(const T* data, Floats (&parts)[kParts]) {
  if constexpr (kHalves) {
    SAGE_EXT_FOR_PARTS {
      Words words;
      std::memcpy(&words, data + k / 2 * 2 * kLanes, sizeof(words));
      if constexpr (std::is_same_v<T, BFloat16>) {
        parts[k] = reinterpret_cast<Floats>(k % 2 == 0 ? words << 16 : words & 0xffff0000u);
      } else {
        parts[k] = for_lanes<Floats>(k % 2 == 0 ? words & 0xffffu : words >> 16,
                                     [](uint32_t bits) SAGE_EXT_ALWAYS_INLINE { return half_to_float(bits); });
      }
    }
  } else {
    SAGE_EXT_FOR_PARTS load_part(data + k * kLanes, parts[k]);
  }
}

// Stores them in the same order.
template <bool kHalves, typename T>
SAGE_EXT_INLINE void store_parts(T* data, Floats (&parts)[kParts]) {
  if constexpr (kHalves) {
    SAGE_EXT_FOR_PARTS {
      if (k % 2 != 0) continue;
      Words low, high;
      if constexpr (std::is_same_v<T, BFloat16>) {
        low = for_lanes<Words>(parts[k], [](float x) SAGE_EXT_ALWAYS_INLINE { return float_to_bfloat16(x); });
        high = for_lanes<Words>(parts[k + 1],
                                [](float x) SAGE_EXT_ALWAYS_INLINE { return float_to_bfloat16_high(x) & 0xffff0000u; });
      } else {
        low = for_lanes<Words>(parts[k], [](float x) SAGE_EXT_ALWAYS_INLINE { return float_to_half(x); });
        high = for_lanes<Words>(parts[k + 1], [](float x) SAGE_EXT_ALWAYS_INLINE { return float_to_half(x) << 16; });
      }
      const Words words = low | high;
      std::memcpy(data + k * kLanes, &words, sizeof(words));
    }
  } else {
    SAGE_EXT_FOR_PARTS store_part(data + k * kLanes, parts[k]);
  }
}

// 1 or 0, and from two of them a sign: 0 of 0 and of NaN.
SAGE_EXT_INLINE Floats one_where(const Masks& mask) { return mask ? Floats{} + 1.0f : Floats{}; }
SAGE_EXT_INLINE Floats sign_of_lanes(const Floats& x) { return one_where(x > 0.0f) - one_where(x < 0.0f); }

// The signs that a word of both planes has for one part of a block.
SAGE_EXT_INLINE Floats sign_of_bits(uint32_t positive, uint32_t negative, int part) {
#if SAGE_EXT_X86_ISAS && SAGE_EXT_ISA_LANES == 16
  const int first = part * kLanes;
  const __m512 up = _mm512_maskz_mov_ps(static_cast<__mmask16>(positive >> first), Floats{} + 1.0f);
  return _mm512_mask_sub_ps(up, static_cast<__mmask16>(negative >> first), up, Floats{} + 1.0f);
#else
  const Words bits = lane_bits(part);
  return one_where((bits & positive) != 0) - one_where((bits & negative) != 0);
#endif
}

SAGE_EXT_INLINE Floats absolute(const Floats& x) {
  return reinterpret_cast<Floats>(reinterpret_cast<Words>(x) & 0x7fffffffu);
}

SAGE_EXT_INLINE Floats larger(const Floats& a, const Floats& b) { return a > b ? a : b; }
SAGE_EXT_INLINE Floats smaller(const Floats& a, const Floats& b) { return a < b ? a : b; }

// A bit for each lane that is more, or less, than 0.
#if SAGE_EXT_X86_ISAS && SAGE_EXT_ISA_LANES == 16
SAGE_EXT_INLINE uint32_t positive_bits(const Floats& x) { return _mm512_cmp_ps_mask(x, Floats{}, _CMP_GT_OQ); }
SAGE_EXT_INLINE uint32_t negative_bits(const Floats& x) { return _mm512_cmp_ps_mask(x, Floats{}, _CMP_LT_OQ); }
#else
SAGE_EXT_INLINE uint32_t bits_of(const Masks& mask) {
#if SAGE_EXT_X86_ISAS && SAGE_EXT_ISA_LANES == 8
  return static_cast<uint32_t>(__builtin_ia32_movmskps256(reinterpret_cast<Floats>(mask)));
#elif SAGE_EXT_X86_ISAS
  return static_cast<uint32_t>(__builtin_ia32_movmskps(reinterpret_cast<Floats>(mask)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<uint32_t>(mask[i] & 1) << i;
  return bits;
#endif
}
SAGE_EXT_INLINE uint32_t positive_bits(const Floats& x) { return bits_of(x > 0.0f); }
SAGE_EXT_INLINE uint32_t negative_bits(const Floats& x) { return bits_of(x < 0.0f); }
#endif

}  // namespace
