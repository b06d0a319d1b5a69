// From every member's top-k to the slots of the union, each with one tagged id per member.
//
// The walk is the concatenation of the members' top-k lists, the primary's first. An entry whose class has not occurred
// earlier in the walk opens a slot, if its member proposes; slots are in the order of the entries that opened them.
#pragma once

#include <cstdint>

#include "block.h"
#include "hash_map.h"
#include "index_table.h"
#include "key_order.h"
#include "step_params.h"

namespace unite {

// Working memory of one row. `top` is filled before the union is built; building it writes the rest.
struct RowScratch {
  uint64_t* top;         // [members, k] keys in walk order, each list by rank, kNoKey padded
  int32_t* entry_class;  // [members * k], kNoClass for padding
  int32_t* slot_class;   // [num_slots]
  int32_t* slot_id;      // [num_slots, members] tagged ids
  float* slot_score;     // [num_slots, members]
  IndexTable table;      // capacity for num_slots entries
  float* log_sum;  // [members] log of the sum of exp(logit - first key's) over eligible ids; for Score::kProbs only
  int32_t* size;   // [1] number of slots
  int32_t* shared_class;  // [1] below 0 if some member's top-k has several ids of one class
};

// A row's slots, after every member has scored them.
struct SlotRow {
  const int32_t* ids;      // [slots, members] tagged ids
  const int32_t* classes;  // [slots]
  const float* scores;     // [slots, members] each member's softmax over the slots; for kProduct the scores themselves
};

namespace detail {

// While entries of a member's own top-k compete for a slot, slot_id holds kRankBase + rank, which is below every id;
// the smallest wins.
constexpr int32_t kRankBase = INT32_MIN;
UNITE_HOST_DEVICE inline bool holds_rank(int32_t field) {
  return field < kNoId;
}

UNITE_HOST_DEVICE inline void open_slot(const StepParams& p, const RowScratch& s, int slot, int owner,
                                        const MapEntry& entry) {
  s.slot_class[slot] = entry.cls;
  int32_t* ids = s.slot_id + slot * p.members;
  if (p.members <= kMaxInlineMembers) {
    // The owner's field is overwritten with its rank later, because its entry opened the slot.
    // No indexing by a variable, for which a GPU would move the entry to local memory.
    for (int m = 0; m < p.members; ++m)
      ids[m] = m == owner ? kNoId : other_index(owner, m) == 0 ? entry.other[0] : entry.other[1];
  } else {
    const int32_t* row = p.class_ids + static_cast<int64_t>(entry.cls) * p.members;
    for (int m = 0; m < p.members; ++m) ids[m] = row[m];
  }
}

// The slot of an entry of the walk, -1 if it has none. s.table must still lead from classes to openers.
UNITE_HOST_DEVICE inline int entry_slot(const RowScratch& s, int w) {
  int32_t field = s.entry_class[w];
  if (field == kNoClass) return -1;
  if (field > kNoClass) {
    const int32_t opener = s.table.find(field);
    if (opener == IndexTable::kAbsent) return -1;
    field = s.entry_class[opener];
  }
  return -2 - field;
}

// Appends a slot for `include` unless the walk has opened it. False if the id is not eligible.
UNITE_HOST_DEVICE inline bool append_include(const StepParams& p, const RowScratch& s, int64_t include) {
  if (include < 0) return include == -1;
  if (include >= p.logits[p.primary].vocab_size) return false;
  const MapEntry entry = find(p.map, p.log2_capacity, map_key(p.primary, static_cast<int32_t>(include)));
  if (entry.cls == kNoClass) return false;
  if (s.table.find(entry.cls) != IndexTable::kAbsent) return true;
  const int slot = (*s.size)++;
  s.slot_class[slot] = entry.cls;
  const int32_t* row = p.class_ids + static_cast<int64_t>(entry.cls) * p.members;
  for (int m = 0; m < p.members; ++m) s.slot_id[slot * p.members + m] = row[m];
  return true;
}

// Whether some member scores without proposing: then its own top-k may hold the class of an appended slot.
UNITE_HOST_DEVICE inline bool has_silent_member(const StepParams& p) {
  for (int m = 0; m < p.members; ++m) {
    if (!proposes(p, m)) return true;
  }
  return false;
}

// Rule 1 for the slot that `include` has appended. One thread does it, after all others are done with the entries.
UNITE_HOST_DEVICE inline void fill_include(const StepParams& p, const RowScratch& s, int64_t include) {
  if (include < 0) return;
  const int32_t cls = find(p.map, p.log2_capacity, map_key(p.primary, static_cast<int32_t>(include))).cls;
  if (s.table.find(cls) != IndexTable::kAbsent) return;
  const int slot = *s.size - 1;
  for (int w = 0; w < p.members * p.k; ++w) {
    if (s.entry_class[w] != cls) continue;
    int32_t& field = s.slot_id[slot * p.members + walk_member(w / p.k, p.primary)];
    if (holds_rank(field)) {
      *s.shared_class = -1;  // entries of a member come by rank
    } else {
      field = kRankBase + w % p.k;
    }
    s.entry_class[w] = -2 - slot;
  }
}

}  // namespace detail

// Builds slots, slot ids and, if a member's own top-k has the class, its score from the key. Ends with a sync. Returns
// false in every thread if the row's `include` is not an eligible id.
template <class Block>
UNITE_HOST_DEVICE bool build_union(Block& block, const StepParams& p, int64_t row, const RowScratch& s) {
  const int walk = p.members * p.k;
  s.table.clear(block);
  block.sync();

  for (int w = block.thread_rank(); w < walk; w += block.size()) {
    int32_t cls = kNoClass;
    if (s.top[w] != kNoKey) {
      const int member = walk_member(w / p.k, p.primary);
      cls = find(p.map, p.log2_capacity, map_key(member, key_id(s.top[w]))).cls;
      if (cls != kNoClass && proposes(p, member)) s.table.insert_min(block, cls, w);
    }
    s.entry_class[w] = cls;
  }
  block.sync();

  // Number the slots in walk order; the table then leads from a class to its slot.
  int slots = 0;
  for (int base = 0; base < walk; base += block.size()) {
    const int w = base + block.thread_rank();
    const int32_t cls = w < walk ? s.entry_class[w] : kNoClass;
    const bool opens = cls != kNoClass && s.table.find(cls) == w;
    int total;
    const int slot = slots + block.exclusive_sum(opens ? 1 : 0, total);
    slots += total;
    if (opens) {
      const int member = walk_member(w / p.k, p.primary);
      const MapEntry entry = find(p.map, p.log2_capacity, map_key(member, key_id(s.top[w])));
      detail::open_slot(p, s, slot, member, entry);
      s.entry_class[w] = -2 - slot;  // an entry that opens a slot holds its number, below kNoClass
    }
  }
  if (block.thread_rank() == 0) {
    *s.size = slots;
    *s.shared_class = 0;
  }
  block.sync();

  // Rule 1 of the fill: a class in a member's own top-k takes its highest-ranked id there.
  for (int w = block.thread_rank(); w < walk; w += block.size()) {
    const int slot = detail::entry_slot(s, w);
    if (slot < 0) continue;
    const int member = walk_member(w / p.k, p.primary);
    const int32_t before = block.fetch_min(s.slot_id + slot * p.members + member, detail::kRankBase + w % p.k);
    if (detail::holds_rank(before)) block.fetch_min(s.shared_class, -1);
  }
  if (p.include != nullptr && block.thread_rank() == 0 && !detail::append_include(p, s, p.include[row])) *s.size = -1;
  block.sync();
  if (p.include != nullptr && *s.size >= 0 && detail::has_silent_member(p)) {
    if (block.thread_rank() == 0) detail::fill_include(p, s, p.include[row]);
    block.sync();
  }
  return *s.size >= 0;
}

}  // namespace unite
