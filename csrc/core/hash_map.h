// The hash map over all members' ids: from (member, id) to the class of the id and the other members' ids of the
// class.
//
// Layout: open addressing with linear probing over a power-of-two number of 16-byte entries, so that a
// probe is one aligned 16-byte load. An entry is four int32: key, class, other[0], other[1]. With at most
// three members, other[] holds the ids of the key's class in the members other than the key's own, in
// member order. With more, other[] is unused and the ids come from the class table [num_classes, members].
// The builder doubles the capacity until no key needs more than kMaxProbes probes.
//
// An id field ("tagged id") is kNoId, or the id in the low 28 bits plus kFirstSubToken when the class has no
// representative in that member and the id is only the first sub-token of its bytes.
#pragma once

#include <cstdint>

#include "macros.h"

namespace unite {

constexpr int kMaxMembers = 8;
constexpr int kMaxInlineMembers = 3;  // entries carry the other members' ids up to this many members
constexpr int kIdBits = 28;           // ids below 2^28; three more bits name the member
constexpr int32_t kIdMask = (1 << kIdBits) - 1;
constexpr int32_t kFirstSubToken = 1 << kIdBits;
constexpr int32_t kNoId = -1;
constexpr int32_t kEmptyKey = -1;
constexpr int32_t kEosClass = 0;  // class 0 is EOS in every alignment
constexpr int32_t kNoClass = -1;
constexpr int kMaxProbes = 32;
constexpr int kMaxLog2Capacity = 30;

struct alignas(16) MapEntry {
  int32_t key;
  int32_t cls;
  int32_t other[2];
};

UNITE_HOST_DEVICE inline int32_t map_key(int member, int32_t id) {
  return member << kIdBits | id;
}

// Fibonacci hashing: the high bits of the product are well mixed for dense ids.
UNITE_HOST_DEVICE inline uint32_t map_slot(int32_t key, int log2_capacity) {
#ifdef UNITE_MAP_SLOT  // a benchmark's own layout
  return UNITE_MAP_SLOT(key, log2_capacity);
#else
  return (static_cast<uint32_t>(key) * 0x9E3779B1u) >> (32 - log2_capacity);
#endif
}

UNITE_HOST_DEVICE inline int32_t untag(int32_t tagged) {
  return tagged < 0 ? kNoId : tagged & kIdMask;
}
UNITE_HOST_DEVICE inline bool is_first_sub_token(int32_t tagged) {
  return tagged >= 0 && (tagged & kFirstSubToken) != 0;
}

UNITE_HOST_DEVICE inline MapEntry load_entry(const MapEntry* entry) {
#if defined(__CUDA_ARCH__)
  const int4 raw = __ldg(reinterpret_cast<const int4*>(entry));
  return MapEntry{raw.x, raw.y, {raw.z, raw.w}};
#else
  return *entry;
#endif
}

// The entry of `key`, or one whose cls is kNoClass if the map does not have it.
UNITE_HOST_DEVICE inline MapEntry find(const MapEntry* entries, int log2_capacity, int32_t key) {
  const uint32_t mask = (1u << log2_capacity) - 1u;
  uint32_t slot = map_slot(key, log2_capacity);
#if defined(__CUDA_ARCH__)
#pragma unroll 1  // the first probe is nearly always enough; the others would only fill the instruction cache
#endif
  for (int probe = 0; probe < kMaxProbes; ++probe) {
    const MapEntry entry = load_entry(entries + slot);
    if (entry.key == key) return entry;
    if (entry.key == kEmptyKey) break;
    slot = (slot + 1) & mask;
  }
  return MapEntry{key, kNoClass, {kNoId, kNoId}};
}

// The index of the tagged id of `member` in other[] of an entry whose key belongs to `owner`.
UNITE_HOST_DEVICE inline int other_index(int owner, int member) {
  return member < owner ? member : member - 1;
}

}  // namespace unite
