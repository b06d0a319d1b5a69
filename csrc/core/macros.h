// Marks a function as callable from host and device when nvcc compiles it; plain C++ otherwise.
#pragma once

#if defined(__CUDACC__) || defined(CUDA_EMU)
#define UNITE_HOST_DEVICE __host__ __device__
#else
#define UNITE_HOST_DEVICE
#endif
