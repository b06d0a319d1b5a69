// The parameters of one fused step, as plain data. Every backend fills them, and a launch passes them by value.
#pragma once

#include <cstdint>

#include "hash_map.h"
#include "logits.h"

namespace unite {

constexpr int kMaxTopK = 256;
constexpr int kMaxWalk = 1024;           // members * k
constexpr int kMaxSlots = kMaxWalk + 1;  // one more for `include`

enum class Score : int32_t { kLogits = 0, kProbs = 1 };
enum class Duplicates : int32_t { kRepeat = 0, kDrop = 1 };
enum class Combine : int32_t { kMean = 0, kProduct = 1 };

struct MemberLogits {
  const void* data;          // [batch, width], last dimension contiguous
  int64_t row_stride;        // in elements
  const uint32_t* eligible;  // bit i of the stretch: id i may enter a top-k; zero padded
  int32_t vocab_size;        // highest eligible id + 1: how much of a row is read
  Dtype dtype;
};

struct StepParams {
  int32_t batch, members, k, primary;
  int32_t num_slots;  // the slots' static extent U: members * k, one more with `include`
  Score score;
  Duplicates duplicates;
  Combine combine;
  float weights[kMaxMembers];  // for Combine::kMean normalised to sum 1; for kProduct any, the primary's above 0
  MemberLogits logits[kMaxMembers];

  const MapEntry* map;       // [1 << log2_capacity]
  const int32_t* class_ids;  // [num_classes, members] tagged ids
  int32_t log2_capacity;
  const int64_t* include;  // [batch], -1: none; null: no row has one

  int64_t* next_ids;    // [batch, members]
  int64_t* union_ids;   // [batch, num_slots, members], -1 padded
  float* union_probs;   // [batch, num_slots], 0 padded
  float* member_probs;  // [batch, num_slots, members], 0 padded
  int32_t* union_size;  // [batch]
  int32_t* winner;      // [batch], -1: none
  int32_t* status;      // [batch], see Status
};

// status[row]: kOk, kBadInclude, or 1 + the first member without an eligible logit above -inf.
constexpr int32_t kOk = 0;
constexpr int32_t kBadInclude = -1;

// The union's walk begins with the primary; the other members follow in order.
UNITE_HOST_DEVICE inline int walk_member(int position, int primary) {
  if (position == 0) return primary;
  return position <= primary ? position - 1 : position;
}

UNITE_HOST_DEVICE inline int walk_position(int member, int primary) {
  if (member == primary) return 0;
  return member < primary ? member + 1 : member;
}

// Whether a member's top-k opens slots. Under Combine::kProduct one without a positive weight only scores.
UNITE_HOST_DEVICE inline bool proposes(const StepParams& p, int member) {
  return p.combine == Combine::kMean || p.weights[member] > 0.0f;
}

UNITE_HOST_DEVICE inline const void* row_pointer(const MemberLogits& logits, int64_t row) {
  const int64_t bytes = logits.dtype == Dtype::kFloat32 ? 4 : 2;
  return static_cast<const char*>(logits.data) + row * logits.row_stride * bytes;
}

}  // namespace unite
