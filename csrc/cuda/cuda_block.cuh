// A CUDA block with the interface of core/block.h; its lane groups are warps.
//
// Every reduction has a fixed shape, so results are bitwise the same from run to run.
#pragma once

#include <cstdint>

#include "../core/logits.h"
#include "compat.cuh"

namespace unite {

struct CudaBlock {
  static constexpr int kSharedInts = 2 * kWarp;

  int* warp_totals;  // shared, [2][kWarp]
  int turn = 0;

  __device__ explicit CudaBlock(int* shared) : warp_totals(shared) {}

  __device__ int thread_rank() const { return static_cast<int>(threadIdx.x); }
  __device__ int size() const { return static_cast<int>(blockDim.x); }
#ifdef CUDA_EMU
  void sync(int line = __builtin_LINE()) const { __syncthreads(line); }  // tells one call from another
#else
  __device__ void sync() const { __syncthreads(); }
#endif

  __device__ int group_rank() const { return thread_rank() / kWarp; }
  __device__ int num_groups() const { return size() / kWarp; }
  __device__ int lane() const { return thread_rank() % kWarp; }
  __device__ int num_lanes() const { return kWarp; }

  // Butterflies: every lane ends with the same bits.
  __device__ float group_max(float value) const {
    for (int step = kWarp / 2; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, step));
    return value;
  }
  __device__ float group_sum(float value) const {
    for (int step = kWarp / 2; step > 0; step /= 2) value = plain_sum(value, __shfl_xor_sync(kFullWarp, value, step));
    return value;
  }
  __device__ double group_sum(double value) const {
    for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kFullWarp, value, step);
    return value;
  }
  __device__ uint64_t group_max(uint64_t value) const {
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const uint64_t other = __shfl_xor_sync(kFullWarp, static_cast<unsigned long long>(value), step);
      value = other > value ? other : value;
    }
    return value;
  }

  // Two buffers alternate: the next call's barrier comes between this call's reads and the next write to the same
  // buffer, so one barrier per call is enough.
  __device__ int exclusive_sum(int value, int& total) {
    int* totals = warp_totals + kWarp * turn;
    turn ^= 1;
    int inclusive = value;
    for (int step = 1; step < kWarp; step *= 2) {
      const int below = __shfl_up_sync(kFullWarp, inclusive, step);
      if (lane() >= step) inclusive += below;
    }
    if (lane() == kWarp - 1) totals[group_rank()] = inclusive;
    sync();
    int before = 0;
    total = 0;
    for (int warp = 0; warp < num_groups(); ++warp) {
      const int warp_total = totals[warp];
      if (warp < group_rank()) before += warp_total;
      total += warp_total;
    }
    return before + inclusive - value;
  }

  __device__ int32_t compare_and_swap(int32_t* address, int32_t expected, int32_t desired) const {
    return atomicCAS(address, expected, desired);
  }
  __device__ int32_t fetch_min(int32_t* address, int32_t value) const { return atomicMin(address, value); }
};

}  // namespace unite
