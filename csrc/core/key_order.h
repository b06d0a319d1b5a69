// The total order of every top-k: value descending, id ascending, as one unsigned 64-bit key.
//
// Keys are unique within a row. Comparing them as integers therefore puts the lower id first among equal logits, and
// gives the same result in every run. kNoKey is below every real key and means "no candidate".
#pragma once

#include <cstdint>

#include "logits.h"

namespace unite {

constexpr uint64_t kNoKey = 0;

UNITE_HOST_DEVICE inline uint64_t make_key(float sanitized, int32_t id) {
  return static_cast<uint64_t>(order_bits(sanitized)) << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(id));
}

UNITE_HOST_DEVICE inline int32_t key_id(uint64_t key) {
  return static_cast<int32_t>(0xFFFFFFFFu - static_cast<uint32_t>(key));
}

UNITE_HOST_DEVICE inline float key_value(uint64_t key) {
  return from_order_bits(static_cast<uint32_t>(key >> 32));
}

}  // namespace unite
