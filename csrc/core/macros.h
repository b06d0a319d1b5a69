// Marks a function as callable from host and device when nvcc compiles it; plain C++ otherwise.
#pragma once

#if defined(__CUDACC__) || defined(CUDA_EMU)
#define UNITE_HOST_DEVICE __host__ __device__
#else
#define UNITE_HOST_DEVICE
#endif

// A call of its own on the device, so that its registers are not those of the kernel.
#ifdef __CUDACC__
#define UNITE_NOINLINE __noinline__
#else
#define UNITE_NOINLINE
#endif
