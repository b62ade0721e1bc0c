#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

// The one place that launches kernels. A kernel takes one struct by value, as a __grid_constant__ parameter: no
// copy, no synchronisation, and CUDA graphs capture it.
namespace sage_ext::cuda {

inline constexpr size_t kMaxParamBytes = 32764;  // of a kernel's parameters, since CUDA 12.1 on sm_70 and newer
inline constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("sage_ext: ") + what + " failed: " + cudaGetErrorString(status));
}

#if defined(SAGE_EXT_SIMT)
template <typename Params>
using KernelArgument = const Params&;
#else
template <typename Params>
using KernelArgument = Params;
#endif

template <typename Params>
void launch(const char* name, void (*kernel)(KernelArgument<Params>), int64_t blocks, int threads, cudaStream_t stream,
            const Params& params) {
  static_assert(sizeof(Params) <= kMaxParamBytes);
  if (blocks <= 0) return;
  if (blocks > kMaxBlocks) throw std::runtime_error(std::string("sage_ext: too many blocks for kernel ") + name);
  const dim3 grid(static_cast<unsigned>(blocks));
  const dim3 block(static_cast<unsigned>(threads));
#if defined(SAGE_EXT_SIMT)
  simt::launch(name, grid, block, 0, stream, kernel, params);
#else
  void* arguments[] = {const_cast<Params*>(&params)};
  check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, arguments, 0, stream), name);
#endif
}

inline void fill_zero(void* data, size_t bytes, cudaStream_t stream) {
  if (bytes > 0) check(cudaMemsetAsync(data, 0, bytes, stream), "cudaMemsetAsync");
}

}  // namespace sage_ext::cuda
