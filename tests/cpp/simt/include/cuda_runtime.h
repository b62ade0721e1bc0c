#pragma once

// CUDA's face for kernels that a C++ compiler builds for the emulator: what <cuda_runtime.h> and the compiler give
// them on a device. README.md says what is modelled. Tests include "simt/simt.h" instead.
#include <bit>
#include <climits>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <source_location>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// const T __grid_constant__ name: a copy of a table for each thread would be most of a launch's time.
#define __grid_constant__ &
#define __align__(bytes) __attribute__((aligned(bytes)))
// Nothing, because the standard library's headers spell __attribute__((__noinline__)).
#define __noinline__

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

struct alignas(8) int2 {
  int x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };

namespace simt {

using Site = std::source_location;  // the place of a barrier or warp primitive: a default argument everywhere

// Called by a thread before it reads or writes global memory: counted byte by byte, and the address has to be a
// multiple of the size, a power of two. Shared memory is checked for that, too, but not counted.
void on_load(const void* address, unsigned bytes);
void on_store(const void* address, unsigned bytes);
// For a value that every thread reads, such as a table's entry: counted apart, once a block and address.
void on_uniform_load(const void* address, unsigned bytes);

namespace detail {

struct Indices {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
};
extern Indices indices;  // of the running thread

// One declaration of static shared memory. Where it lies in the running block is cached here.
struct SharedVariable {
  const char* name;
  // No Site: GCC 12 puts what a static one points to in a section that the linker drops with an inline function's
  // second copy, while AddressSanitizer keeps the variable.
  const char* file;
  int line;
  uint64_t block = 0;
  void* storage = nullptr;
};
void* shared_storage(SharedVariable& variable, size_t bytes, size_t alignment);
void* dynamic_shared_storage(size_t alignment);

enum class Shuffle { index, up, down, butterfly };

uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t bits, int operand, int width, const Site& where);
// Which lanes of the mask have a predicate that holds.
unsigned vote(const char* what, unsigned mask, bool predicate, const Site& where);
// How many threads of the block have a predicate that holds.
int barrier(const char* what, bool predicate, const Site& where);
unsigned active_lanes();
void fence();
void on_atomic(const void* address, unsigned bytes);

struct Kernel {
  void (*invoke)(void (*function)(), const void* params);
  void (*function)();
  const void* params;
};
void launch(const char* name, dim3 grid, dim3 block, size_t dynamic_shared_bytes, const Kernel& kernel);

}  // namespace detail

namespace detail {

// A kernel's argument is Params by value, or where it is a __grid_constant__, a reference.
template <typename Argument, typename Params>
void launch_with(const char* name, dim3 grid, dim3 block, size_t dynamic_shared_bytes, void (*kernel)(Argument),
                 const Params& params) {
  static_assert(std::is_trivially_destructible_v<Params>, "kernel parameters own nothing");
  static_assert(sizeof(Params) <= 32764, "more than a kernel's parameters may have");
  const auto invoke = [](void (*function)(), const void* argument) {
    reinterpret_cast<void (*)(Argument)>(function)(*static_cast<const Params*>(argument));
  };
  launch(name, grid, block, dynamic_shared_bytes,
         {invoke, reinterpret_cast<void (*)()>(kernel), static_cast<const void*>(&params)});
}

}  // namespace detail

template <typename Params>
void launch(const char* name, dim3 grid, dim3 block, size_t dynamic_shared_bytes, cudaStream_t /*stream*/,
            void (*kernel)(Params), const Params& params) {
  detail::launch_with(name, grid, block, dynamic_shared_bytes, kernel, params);
}

template <typename Params>
void launch(const char* name, dim3 grid, dim3 block, size_t dynamic_shared_bytes, cudaStream_t /*stream*/,
            void (*kernel)(const Params&), const Params& params) {
  detail::launch_with(name, grid, block, dynamic_shared_bytes, kernel, params);
}

}  // namespace simt

inline const uint3& threadIdx = simt::detail::indices.thread;
inline const uint3& blockIdx = simt::detail::indices.block;
inline const dim3& blockDim = simt::detail::indices.block_dim;
inline const dim3& gridDim = simt::detail::indices.grid_dim;
inline constexpr int warpSize = 32;

// A variable of the block: SAGE_EXT_SHARED(float, total); arrays through an alias of their type.
#define SAGE_EXT_SHARED(type, name)                                                                     \
  static_assert(std::is_trivially_default_constructible_v<type>, "shared memory is never constructed"); \
  static constinit ::simt::detail::SharedVariable simt_shared_##name{#name, __FILE__, __LINE__};        \
  std::remove_reference_t<type>& name = *static_cast<std::remove_reference_t<type>*>(                   \
      ::simt::detail::shared_storage(simt_shared_##name, sizeof(type), alignof(type)))

// type* name, the launch's dynamic shared memory.
#define SAGE_EXT_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(::simt::detail::dynamic_shared_storage(alignof(type)))

inline void __syncthreads(const simt::Site& where = simt::Site::current()) {
  simt::detail::barrier("__syncthreads", false, where);
}
inline int __syncthreads_count(int predicate, const simt::Site& where = simt::Site::current()) {
  return simt::detail::barrier("__syncthreads_count", predicate != 0, where);
}
inline int __syncthreads_or(int predicate, const simt::Site& where = simt::Site::current()) {
  return simt::detail::barrier("__syncthreads_or", predicate != 0, where) != 0;
}
inline int __syncthreads_and(int predicate, const simt::Site& where = simt::Site::current()) {
  return simt::detail::barrier("__syncthreads_and", predicate == 0, where) == 0;
}

inline void __syncwarp(unsigned mask = ~0u, const simt::Site& where = simt::Site::current()) {
  simt::detail::vote("__syncwarp", mask, false, where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, const simt::Site& where = simt::Site::current()) {
  return simt::detail::vote("__ballot_sync", mask, predicate != 0, where);
}
inline int __any_sync(unsigned mask, int predicate, const simt::Site& where = simt::Site::current()) {
  return simt::detail::vote("__any_sync", mask, predicate != 0, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, const simt::Site& where = simt::Site::current()) {
  return simt::detail::vote("__all_sync", mask, predicate == 0, where) == 0;
}
inline unsigned __activemask() { return simt::detail::active_lanes(); }

namespace simt::detail {

template <typename T>
concept Shuffled = std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8);

template <Shuffled T>
T shuffle_value(Shuffle kind, unsigned mask, T value, int operand, int width, const Site& where) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  return std::bit_cast<T>(static_cast<Bits>(shuffle(kind, mask, std::bit_cast<Bits>(value), operand, width, where)));
}

// Deltas are unsigned in CUDA; whatever leaves the warp is the same.
inline int clamp_delta(unsigned delta) { return delta < 64 ? static_cast<int>(delta) : 64; }

}  // namespace simt::detail

template <simt::detail::Shuffled T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, const simt::Site& where = simt::Site::current()) {
  return simt::detail::shuffle_value(simt::detail::Shuffle::index, mask, value, lane, width, where);
}
template <simt::detail::Shuffled T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 const simt::Site& where = simt::Site::current()) {
  return simt::detail::shuffle_value(simt::detail::Shuffle::up, mask, value, simt::detail::clamp_delta(delta), width,
                                     where);
}
template <simt::detail::Shuffled T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   const simt::Site& where = simt::Site::current()) {
  return simt::detail::shuffle_value(simt::detail::Shuffle::down, mask, value, simt::detail::clamp_delta(delta), width,
                                     where);
}
template <simt::detail::Shuffled T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  const simt::Site& where = simt::Site::current()) {
  return simt::detail::shuffle_value(simt::detail::Shuffle::butterfly, mask, value, lane_mask, width, where);
}

namespace simt::detail {

// No floating point: its sums would depend on the order of the threads.
template <typename T>
concept Atomic = std::same_as<T, int> || std::same_as<T, unsigned> || std::same_as<T, unsigned long long>;

// Inlined, so that each atomic of a kernel is an instruction of its own to on_atomic.
template <Atomic T, typename Update>
__forceinline__ T atomic(T* address, Update update) {
  on_atomic(address, sizeof(T));
  const T old = *address;
  *address = update(old);
  return old;
}

}  // namespace simt::detail

template <simt::detail::Atomic T>
__forceinline__ T atomicAdd(T* address, std::type_identity_t<T> value) {
  using Unsigned = std::make_unsigned_t<T>;  // wraps around
  return simt::detail::atomic(
      address, [value](T old) { return static_cast<T>(static_cast<Unsigned>(old) + static_cast<Unsigned>(value)); });
}
template <simt::detail::Atomic T>
__forceinline__ T atomicMax(T* address, std::type_identity_t<T> value) {
  return simt::detail::atomic(address, [value](T old) { return old < value ? value : old; });
}
template <simt::detail::Atomic T>
__forceinline__ T atomicMin(T* address, std::type_identity_t<T> value) {
  return simt::detail::atomic(address, [value](T old) { return value < old ? value : old; });
}
template <simt::detail::Atomic T>
__forceinline__ T atomicOr(T* address, std::type_identity_t<T> value) {
  return simt::detail::atomic(address, [value](T old) { return old | value; });
}
template <simt::detail::Atomic T>
__forceinline__ T atomicExch(T* address, std::type_identity_t<T> value) {
  return simt::detail::atomic(address, [value](T) { return value; });
}
template <simt::detail::Atomic T>
__forceinline__ T atomicCAS(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  return simt::detail::atomic(address, [compare, value](T old) { return old == compare ? value : old; });
}

inline void __threadfence() { simt::detail::fence(); }
inline void __threadfence_block() { simt::detail::fence(); }

inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline int __popc(unsigned value) { return std::popcount(value); }
inline int __clz(int value) { return std::countl_zero(static_cast<unsigned>(value)); }
inline int __ffs(int value) { return value == 0 ? 0 : std::countr_zero(static_cast<unsigned>(value)) + 1; }

// Done at once and listed among the session's launches.
cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t stream = nullptr);
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "invalid value"; }
