// A small hash table from a non-negative integer to the smallest index inserted under it.
//
// All threads of a block insert at once; the result does not depend on their order.
#pragma once

#include <cstdint>

#include "macros.h"

namespace unite {

struct IndexTable {
  int32_t* keys;     // [capacity], power of two
  int32_t* indices;  // [capacity]
  int32_t capacity;

  static constexpr int32_t kEmpty = -1;
  static constexpr int32_t kAbsent = 0x7FFFFFFF;

  // Load stays at or below one half.
  UNITE_HOST_DEVICE static int32_t capacity_for(int entries) {
    int32_t capacity = 32;
    while (capacity < 2 * entries) capacity *= 2;
    return capacity;
  }

  template <class Block>
  UNITE_HOST_DEVICE void clear(const Block& block) const {
    for (int i = block.thread_rank(); i < capacity; i += block.size()) {
      keys[i] = kEmpty;
      indices[i] = kAbsent;
    }
  }

  template <class Block>
  UNITE_HOST_DEVICE void insert_min(const Block& block, int32_t key, int32_t index) const {
    uint32_t at = start(key);
    for (;;) {
      const int32_t held = block.compare_and_swap(keys + at, kEmpty, key);
      if (held == kEmpty || held == key) break;
      at = (at + 1) & (capacity - 1);
    }
    block.fetch_min(indices + at, index);
  }

  // Call it only after a sync that makes the inserts visible.
  UNITE_HOST_DEVICE int32_t find(int32_t key) const {
    for (uint32_t at = start(key);; at = (at + 1) & (capacity - 1)) {
      if (keys[at] == key) return indices[at];
      if (keys[at] == kEmpty) return kAbsent;
    }
  }

 private:
  UNITE_HOST_DEVICE uint32_t start(int32_t key) const {
    const uint32_t mixed = static_cast<uint32_t>(key) * 0x9E3779B1u;
    return (mixed ^ mixed >> 15) & (capacity - 1);
  }
};

}  // namespace unite
