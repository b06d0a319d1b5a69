// What differs between nvcc and the emulator that runs these kernels on a CPU (tests/cuda_on_cpu).
//
// Kernels use only what both support: dynamic shared memory through dynamic_shared() and Arena, launches through
// launch_kernel(), inline PTX only under __CUDA_ARCH__ and never where a result depends on it.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef CUDA_EMU
#include "cuda_emu.h"
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include "../core/macros.h"

namespace unite {

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xFFFFFFFFu;

#ifdef CUDA_EMU
inline char* dynamic_shared() {
  return emu::dynamic_shared();
}
template <class... Params, class... Args>
cudaError_t launch_kernel(void (*kernel)(Params...), dim3 grid, int threads, size_t shared, cudaStream_t,
                          Args... args) {
  emu::launch_kernel(grid, dim3(threads), shared, kernel, args...);
  return cudaSuccess;
}
#else
__device__ __forceinline__ char* dynamic_shared() {
  extern __shared__ __align__(16) char bytes[];
  return bytes;
}
// Returns this launch's error and clears it, so that the caller's next check does not see it.
template <class... Params>
cudaError_t launch_kernel(void (*kernel)(Params...), dim3 grid, int threads, size_t shared, cudaStream_t stream,
                          Params... args) {
  void* pointers[] = {&args...};
  const cudaError_t error =
      cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, dim3(threads), pointers, shared, stream);
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}
#endif

// Allocates consecutive arrays. The launcher makes the same calls with a null base to compute the size.
struct Arena {
  char* base;
  size_t used;

  template <class T>
  UNITE_HOST_DEVICE T* take(int count) {
    T* array = reinterpret_cast<T*>(base + used);
#ifdef CUDA_EMU
    if (base != nullptr) emu::shared_array(array, count * sizeof(T));  // the checker knows each array's bounds
    used += 16;
#endif
    used += (count * sizeof(T) + 15) / 16 * 16;
    return array;
  }
};

__device__ __forceinline__ void prefetch_to_l2(const void* address) {
#if defined(__CUDA_ARCH__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#else
  (void)address;
#endif
}

}  // namespace unite
