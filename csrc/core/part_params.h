// The parameters of each part of the step, as plain data. The parts are for members whose logits are elsewhere: every
// member finds its keys and scores the slots where it runs, and only keys, slots and scores are exchanged.
#pragma once

#include <cstdint>

#include "step_params.h"

namespace unite {

// A matrix [rows, columns] with any strides, in elements.
template <class T>
struct Matrix {
  const T* data;
  int64_t row_stride, stride;

  UNITE_HOST_DEVICE T at(int64_t row, int column) const { return data[row * row_stride + column * stride]; }
};

// One member's top-k. `step` has that member alone, and no outputs.
struct TopKeysPart {
  StepParams step;
  uint64_t* keys;   // [batch, k], kNoKey padded
  float* log_sums;  // [batch], see RowScratch::log_sum; 0 for Score::kLogits
};

// The union of all members' keys. It uses of `step`: sizes, the primary, the weights and how they combine, the tables,
// `include`, every member's vocab_size, and the outputs union_size and status.
struct UnionPart {
  StepParams step;
  const uint64_t* keys;   // [batch, members, k] in member order
  int32_t* slots;         // [batch, num_slots, members] tagged ids, -1 padded
  int32_t* slot_classes;  // [batch, num_slots], -1 padded
  int32_t* key_slots;     // [batch, members, k] the slot of every key's class, -1 if it has none
};

// One member's logits of given ids. logits.vocab_size is the width of a row; `eligible` is not read.
struct GatherPart {
  MemberLogits logits;
  int32_t batch, num_slots;
  Matrix<int32_t> ids;  // tagged ids; data is null when the ids are 64 bits wide
  Matrix<int64_t> wide_ids;
  float* values;  // [batch, num_slots]
};

// One member's softmax over the slots, or for Combine::kProduct its scores.
struct ScorePart {
  int32_t batch, num_slots, k;
  Score score;
  Duplicates duplicates;
  Combine combine;
  Matrix<float> values;       // [batch, num_slots] its logits of the slots' ids
  Matrix<int32_t> slots;      // [batch, num_slots] its tagged ids
  const int32_t* union_size;  // [batch]
  Matrix<int64_t> keys;       // [batch, k] its own top-k
  Matrix<int32_t> key_slots;  // [batch, k] the slots of their classes
  const float* log_sums;      // [batch]
  float* scores;              // [batch, num_slots], 0 padded
};

// From all members' parts to the step's outputs. It uses of `step`: sizes, primary, weights and how they combine, and
// all outputs.
struct CombinePart {
  StepParams step;
  const float* member_scores;   // [batch, num_slots, members]
  const int32_t* slots;         // [batch, num_slots, members]
  const int32_t* slot_classes;  // [batch, num_slots]
  const int32_t* union_size;    // [batch]
  const int32_t* status;        // [batch]
};

}  // namespace unite
