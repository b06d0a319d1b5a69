// The interface of the threads that work on one row: a CUDA block, or a single CPU thread.
//
// Core code is written once against this interface. A "lane group" is the unit that reduces without shared
// memory: a warp on the GPU, the thread itself on the CPU. CudaBlock is in cuda/cuda_block.cuh.
#pragma once

#include <cstdint>

#include "macros.h"

namespace unite {

struct SerialBlock {
  UNITE_HOST_DEVICE int thread_rank() const { return 0; }
  UNITE_HOST_DEVICE int size() const { return 1; }
  UNITE_HOST_DEVICE void sync() const {}

  UNITE_HOST_DEVICE int group_rank() const { return 0; }
  UNITE_HOST_DEVICE int num_groups() const { return 1; }
  UNITE_HOST_DEVICE int lane() const { return 0; }
  UNITE_HOST_DEVICE int num_lanes() const { return 1; }
  UNITE_HOST_DEVICE float group_max(float value) const { return value; }
  UNITE_HOST_DEVICE double group_sum(double value) const { return value; }
  UNITE_HOST_DEVICE uint64_t group_max(uint64_t value) const { return value; }

  // Sum of `value` over the threads of lower rank; `total` becomes the sum over all. All threads call it.
  UNITE_HOST_DEVICE int exclusive_sum(int value, int& total) const {
    total = value;
    return 0;
  }

  UNITE_HOST_DEVICE int32_t compare_and_swap(int32_t* address, int32_t expected, int32_t desired) const {
    const int32_t old = *address;
    if (old == expected) *address = desired;
    return old;
  }
  UNITE_HOST_DEVICE int32_t fetch_min(int32_t* address, int32_t value) const {
    const int32_t old = *address;
    if (value < old) *address = value;
    return old;
  }
};

}  // namespace unite
