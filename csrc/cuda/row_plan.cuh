// The slices of one row, and the memory where they publish their keys.
//
// The workspace begins with one arrival counter per row of a launch, at an offset that does not depend on shapes; every
// launch leaves them at zero. They are followed by one record per row: for each slice its sorted top-k keys, and then
// for Score::kProbs the sums of every member's chunks. If a row's slots do not fit into shared memory (members * k near
// its limit), the record has space for them too.
#pragma once

#include <cstdint>

#include "../core/union.h"
#include "compat.cuh"
#include "fused_step.h"
#include "top_k.cuh"

namespace unite {

constexpr int kMaxRowsPerLaunch = 16384;                // also keeps gridDim.y in its limits
constexpr int kMaxKeysPerRow = 2048;                    // published by all slices of a row; bounds the merge
constexpr int64_t kMaxRecordBytes = int64_t{64} << 20;  // of one launch; larger batches take several
constexpr size_t kMaxSharedBytes = 48 << 10;            // what every device grants without opting in

struct RowPlan {
  int slices_per_row;
  int words_per_row;       // of a record
  int spill_word;          // where in the record slot ids and scores go; -1: they stay in shared memory
  int first[kMaxMembers];  // a member's first slice among the row's; larger vocabularies come first
  int slices[kMaxMembers];
  int length[kMaxMembers];     // of a slice, in elements
  int sums_word[kMaxMembers];  // where in the record the sums of a member's chunks begin, for Score::kProbs
};

struct MergeScratch {
  uint64_t* words;   // [slices_per_row, k], the keys of the row's record
  uint64_t* keys;    // [slices_per_row * k], those that may belong to the top-k, member by member
  uint64_t* bounds;  // [members]
  int* counts;       // [members]
};

// The part of shared memory that all phases use; it comes first.
struct RowControl {
  int* warp_totals;   // [CudaBlock::kSharedInts]
  int* is_last;       // [1]
  int* size;          // [1]
  int* shared_class;  // [1]
  float* log_sum;     // [members]
  uint64_t* top;      // [members, k]
};

UNITE_HOST_DEVICE inline RowControl take_control(Arena& arena, const StepParams& p) {
  RowControl c;
  c.warp_totals = arena.take<int>(CudaBlock::kSharedInts);
  c.is_last = arena.take<int>(1);
  c.size = arena.take<int>(1);
  c.shared_class = arena.take<int>(1);
  c.log_sum = arena.take<float>(p.members);
  c.top = arena.take<uint64_t>(p.members * p.k);
  return c;
}

UNITE_HOST_DEVICE inline MergeScratch take_merge_scratch(Arena& arena, const StepParams& p, const RowPlan& plan) {
  MergeScratch s;
  s.words = arena.take<uint64_t>(plan.slices_per_row * p.k);
  s.keys = arena.take<uint64_t>(plan.slices_per_row * p.k);
  s.bounds = arena.take<uint64_t>(p.members);
  s.counts = arena.take<int>(p.members);
  return s;
}

UNITE_HOST_DEVICE inline RowScratch take_row_scratch(Arena& arena, const StepParams& p, const RowControl& control,
                                                     uint64_t* spill) {
  RowScratch s;
  s.top = control.top;
  s.size = control.size;
  s.shared_class = control.shared_class;
  s.log_sum = control.log_sum;
  s.entry_class = arena.take<int32_t>(p.members * p.k);
  s.slot_class = arena.take<int32_t>(p.num_slots);
  // Sized for the walk: the slot of `include` adds one entry to a table that is at most half full.
  s.table.capacity = IndexTable::capacity_for(p.members * p.k);
  s.table.keys = arena.take<int32_t>(s.table.capacity);
  s.table.indices = arena.take<int32_t>(s.table.capacity);
  const int fields = p.num_slots * p.members;
  if (spill != nullptr) {
    s.slot_id = reinterpret_cast<int32_t*>(spill);
    s.slot_score = reinterpret_cast<float*>(s.slot_id + fields);
  } else {
    s.slot_id = arena.take<int32_t>(fields);
    s.slot_score = arena.take<float>(fields);
  }
  return s;
}

}  // namespace unite
