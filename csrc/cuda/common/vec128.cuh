#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/numeric.h"

// The only functions that touch global memory: 16 bytes a thread for the bodies of arrays, single elements for
// heads and tails, and what every thread of a block reads. The emulator counts bytes and sectors here.
namespace sage_ext::cuda {

#if defined(SAGE_EXT_SIMT)
#define SAGE_EXT_ON_LOAD(address, bytes) ::simt::on_load(address, bytes)
#define SAGE_EXT_ON_STORE(address, bytes) ::simt::on_store(address, bytes)
#define SAGE_EXT_ON_UNIFORM_LOAD(address, bytes) ::simt::on_uniform_load(address, bytes)
#else
#define SAGE_EXT_ON_LOAD(address, bytes)
#define SAGE_EXT_ON_STORE(address, bytes)
#define SAGE_EXT_ON_UNIFORM_LOAD(address, bytes)
#endif

inline constexpr int kVecBytes = 16;

template <typename T>
inline constexpr int kVecSize = kVecBytes / static_cast<int>(sizeof(T));

// 16 bytes, or 8 where an array of a narrow type goes along with one of a wide type. On a boundary of their size.
template <typename Word>
__device__ __forceinline__ Word load_vec(const void* address) {
  SAGE_EXT_ON_LOAD(address, sizeof(Word));
  return *static_cast<const Word*>(address);
}

template <typename Word>
__device__ __forceinline__ void store_vec(void* address, const Word& value) {
  SAGE_EXT_ON_STORE(address, sizeof(Word));
  *static_cast<Word*>(address) = value;
}

// The same of a value that was not loaded as one: nvcc makes four stores of four bytes of it otherwise.
__device__ __forceinline__ void store_whole(void* address, const uint4& value) {
  SAGE_EXT_ON_STORE(address, sizeof(uint4));
#if defined(__CUDA_ARCH__)
  __stwb(static_cast<uint4*>(address), value);
#else
  *static_cast<uint4*>(address) = value;
#endif
}

template <typename T>
__device__ __forceinline__ T load_one(const T* address) {
  SAGE_EXT_ON_LOAD(address, sizeof(T));
  return *address;
}

template <typename T>
__device__ __forceinline__ void store_one(T* address, T value) {
  SAGE_EXT_ON_STORE(address, sizeof(T));
  *address = value;
}

// What a block reads again and again, so that it comes from a cache: scalars such as a learning rate, and vectors with
// a value for each column.
template <typename T>
__device__ __forceinline__ T load_uniform(const T* address) {
  SAGE_EXT_ON_UNIFORM_LOAD(address, sizeof(T));
  return *address;
}

// The value if `is_there`, and zero otherwise: a load and no branch, which would take longer than the load.
template <typename T>
__device__ __forceinline__ T load_or_zero(bool is_there, const T* address) {
#if defined(__CUDA_ARCH__)
  static_assert(sizeof(T) == 4 || sizeof(T) == 2);
  const auto flag = static_cast<uint32_t>(is_there);
  if constexpr (sizeof(T) == 4) {
    uint32_t bits;
    asm volatile(
        "{\n"
        "  .reg .pred there;\n"
        "  setp.ne.u32 there, %2, 0;\n"
        "  mov.b32 %0, 0;\n"
        "  @there ld.global.b32 %0, [%1];\n"
        "}"
        : "=&r"(bits)
        : "l"(__cvta_generic_to_global(address)), "r"(flag));
    T value;
    std::memcpy(&value, &bits, sizeof(T));
    return value;
  } else {
    uint16_t bits;
    asm volatile(
        "{\n"
        "  .reg .pred there;\n"
        "  setp.ne.u32 there, %2, 0;\n"
        "  mov.b16 %0, 0;\n"
        "  @there ld.global.b16 %0, [%1];\n"
        "}"
        : "=&h"(bits)
        : "l"(__cvta_generic_to_global(address)), "r"(flag));
    return {bits};
  }
#else
  return is_there ? load_one(address) : T{};
#endif
}

template <typename T>
__device__ __forceinline__ T load_uniform_or_zero(bool is_there, const T* address) {
#if defined(__CUDA_ARCH__)
  return load_or_zero(is_there, address);
#else
  return is_there ? load_uniform(address) : T{};
#endif
}

// N such values from a 16-byte boundary on.
template <int N>
__device__ __forceinline__ void load_uniform_floats(const float* address, float (&values)[N]) {
  static_assert(N % 4 == 0);
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    const float4 four = load_uniform(reinterpret_cast<const float4*>(address + i));
    values[i] = four.x;
    values[i + 1] = four.y;
    values[i + 2] = four.z;
    values[i + 3] = four.w;
  }
}

__device__ __forceinline__ bool is_vec_aligned(const void* address, int bytes = kVecBytes) {
  return reinterpret_cast<uintptr_t>(address) % static_cast<unsigned>(bytes) == 0;
}

// How many elements lie before the first 16-byte boundary.
template <typename T>
__device__ __forceinline__ int elements_to_alignment(const T* address) {
  const auto past = static_cast<int>(reinterpret_cast<uintptr_t>(address) % kVecBytes);
  return past == 0 ? 0 : (kVecBytes - past) / static_cast<int>(sizeof(T));
}

// N elements of one array as they lie in memory: one vector of 8 bytes, or some of 16.
template <typename T, int N>
struct Pack {
  static constexpr int kBytes = N * static_cast<int>(sizeof(T));
  using Word = std::conditional_t<kBytes == 8, uint2, uint4>;
  static constexpr int kWords = kBytes / static_cast<int>(sizeof(Word));
  static constexpr int kPerWord = N / kWords;
  static_assert(kWords * sizeof(Word) == kBytes);
  Word words[kWords];

  // Whether load() and store() may be used.
  __device__ __forceinline__ static bool is_aligned(const T* address) {
    return is_vec_aligned(address, static_cast<int>(sizeof(Word)));
  }

  __device__ __forceinline__ void load(const T* address) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = load_vec<Word>(address + i * kPerWord);
  }

  // As load_or_zero(), of one vector of 16 bytes.
  __device__ __forceinline__ void load_or_zero(bool is_there, const T* address) {
    static_assert(kWords == 1 && sizeof(Word) == 16);
#if defined(__CUDA_ARCH__)
    asm volatile(
        "{\n"
        "  .reg .pred there;\n"
        "  setp.ne.u32 there, %5, 0;\n"
        "  mov.b32 %0, 0;\n"
        "  mov.b32 %1, 0;\n"
        "  mov.b32 %2, 0;\n"
        "  mov.b32 %3, 0;\n"
        "  @there ld.global.v4.b32 {%0, %1, %2, %3}, [%4];\n"
        "}"
        : "=&r"(words[0].x), "=&r"(words[0].y), "=&r"(words[0].z), "=&r"(words[0].w)
        : "l"(__cvta_generic_to_global(address)), "r"(static_cast<uint32_t>(is_there)));
#else
    *this = {};
    if (is_there) load(address);
#endif
  }

  __device__ __forceinline__ void store(T* address) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) store_vec(address + i * kPerWord, words[i]);
  }

  // Makes the compiler forget what it has unpacked, so that it keeps N elements of 16 bits in N / 2 registers.
  __device__ __forceinline__ void stay_packed() {
#if defined(__CUDA_ARCH__)
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      asm volatile("" : "+r"(words[i].x), "+r"(words[i].y));
      if constexpr (sizeof(Word) == 16) asm volatile("" : "+r"(words[i].z), "+r"(words[i].w));
    }
#endif
  }

  __device__ __forceinline__ void unpack(float (&values)[N]) const {
    if constexpr (std::is_same_v<T, BFloat16>) {
      // Two of them are 32 bits: nvcc would first cut the upper one out, and then shift it back.
      uint32_t pairs[N / 2];
      std::memcpy(pairs, words, sizeof(words));
#pragma unroll
      for (int i = 0; i < N / 2; ++i) {
        values[2 * i] = bits_float(pairs[i] << 16);
        values[2 * i + 1] = bits_float(pairs[i] & 0xffff0000u);
      }
      return;
    }
    T elements[N];
    std::memcpy(elements, words, sizeof(words));
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = to_float(elements[i]);
  }

  __device__ __forceinline__ void pack(const float (&values)[N]) {
    T elements[N];
#pragma unroll
    for (int i = 0; i < N; ++i) elements[i] = from_float<T>(values[i]);
    std::memcpy(words, elements, sizeof(words));
  }
};

}  // namespace sage_ext::cuda
