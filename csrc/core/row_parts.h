// One row of each part of the step. The parts use the functions of fuse_row, so that together they give the same bits.
//
// The inputs may come from a network, so they are never trusted as addresses: keys of unknown ids count as no key, ids
// beyond a row of logits read as -inf, sizes are clamped.
#pragma once

#include <cstdint>

#include "part_params.h"
#include "row_step.h"

namespace unite {

namespace detail {

// Whether the member's own top-k could have this key.
UNITE_HOST_DEVICE inline bool is_eligible_key(const StepParams& p, int member, uint64_t key) {
  const int32_t id = key_id(key);
  if (id < 0 || id >= p.logits[member].vocab_size) return false;
  if (!(key_value(key) > negative_infinity())) return false;  // NaN neither
  return find(p.map, p.log2_capacity, map_key(member, id)).cls != kNoClass;
}

UNITE_HOST_DEVICE inline int clamp_slots(int32_t size, int32_t num_slots) {
  return size < 0 ? 0 : size < num_slots ? size : num_slots;
}

UNITE_HOST_DEVICE inline float gathered_logit(const MemberLogits& logits, int64_t row, int64_t tagged) {
  const int64_t id = tagged < 0 || tagged >= int64_t{2} * kFirstSubToken ? kNoId : tagged & kIdMask;
  return slot_logit(logits, row, id < logits.vocab_size ? static_cast<int32_t>(id) : kNoId);
}

// The logit of one slot: from the keys of its class, else from the key of its id, else the given one. Relative to
// `largest`.
UNITE_HOST_DEVICE inline float own_or_given(const ScorePart& p, int64_t row, int slot, int32_t tagged, float largest) {
  float logit = p.values.at(row, slot);
  LogitSum sum;
  bool has_key = false;
  for (int rank = 0; rank < p.k; ++rank) {
    const uint64_t key = static_cast<uint64_t>(p.keys.at(row, rank));
    if (p.key_slots.at(row, rank) == slot) sum.add(key_value(key));
    if (has_key || key_id(key) != untag(tagged)) continue;  // the best of several
    logit = key_value(key);
    has_key = true;
  }
  const float most = largest_finite(Dtype::kFloat32);
  return sanitize(sum.empty() ? sanitize(logit, most) - largest : sum.minus(largest), most);
}

}  // namespace detail

// s.slot_id and s.slot_class are the row's stretches of the outputs; s.slot_score and s.log_sum are not used.
template <class Block>
UNITE_HOST_DEVICE void unite_row(Block& block, const UnionPart& u, int64_t row, const RowScratch& s) {
  const StepParams& p = u.step;
  for (int w = block.thread_rank(); w < p.members * p.k; w += block.size()) {
    const int member = walk_member(w / p.k, p.primary);
    const uint64_t key = u.keys[(row * p.members + member) * p.k + w % p.k];
    s.top[w] = detail::is_eligible_key(p, member, key) ? key : kNoKey;
  }
  block.sync();  // s.top is complete

  const int32_t status = detail::find_slots(block, p, row, s);
  const int slots = status == kOk ? *s.size : 0;
  for (int w = block.thread_rank(); w < p.members * p.k; w += block.size()) {
    const int member = walk_member(w / p.k, p.primary);
    u.key_slots[(row * p.members + member) * p.k + w % p.k] = status == kOk ? detail::entry_slot(s, w) : -1;
  }
  for (int i = block.thread_rank(); i < slots * p.members; i += block.size()) {
    const int32_t field = s.slot_id[i];
    if (detail::holds_rank(field)) s.slot_id[i] = key_id(detail::own_key(p, s, i % p.members, field));
  }
  for (int i = slots * p.members + block.thread_rank(); i < p.num_slots * p.members; i += block.size())
    s.slot_id[i] = kNoId;
  for (int i = slots + block.thread_rank(); i < p.num_slots; i += block.size()) s.slot_class[i] = kNoClass;
  if (block.thread_rank() != 0) return;
  p.union_size[row] = slots;
  p.status[row] = status;
}

template <class Block>
UNITE_HOST_DEVICE void gather_row(const Block& block, const GatherPart& p, int64_t row) {
  for (int slot = block.thread_rank(); slot < p.num_slots; slot += block.size()) {
    const int64_t id = p.ids.data != nullptr ? p.ids.at(row, slot) : p.wide_ids.at(row, slot);
    p.values[row * p.num_slots + slot] = detail::gathered_logit(p.logits, row, id);
  }
}

// `ids` has room for num_slots entries, and so has `table` for Duplicates::kDrop.
template <class Block>
UNITE_HOST_DEVICE void score_row(const Block& block, const ScorePart& p, int64_t row, int32_t* ids,
                                 const IndexTable& table) {
  const int slots = detail::clamp_slots(p.union_size[row], p.num_slots);
  float* scores = p.scores + row * p.num_slots;
  const float first = key_value(static_cast<uint64_t>(p.keys.at(row, 0)));
  const float largest = fabsf(first) <= largest_finite(Dtype::kFloat32) ? first : 0.0f;
  for (int slot = block.thread_rank(); slot < p.num_slots; slot += block.size()) {
    const int32_t tagged = slot < slots ? p.slots.at(row, slot) : kNoId;
    ids[slot] = tagged;
    float score = slot < slots ? negative_infinity() : 0.0f;
    if (tagged >= 0)
      score = detail::slot_score(p.score, detail::own_or_given(p, row, slot, tagged, largest), p.log_sums[row]);
    scores[slot] = score;
  }
  block.sync();  // all scores are there
  if (p.duplicates == Duplicates::kDrop) detail::drop_duplicates(block, table, ids, scores, slots, 1);
  if (block.group_rank() == 0) detail::finish_scores(block, p.combine, scores, slots, 1);
}

template <class Block>
UNITE_HOST_DEVICE void combine_row(const Block& block, const CombinePart& c, int64_t row) {
  const StepParams& p = c.step;
  if (c.status[row] != kOk) return detail::write_failure(block, p, row, c.status[row]);
  const int64_t base = row * p.num_slots;
  const SlotRow in{c.slots + base * p.members, c.slot_classes + base, c.member_scores + base * p.members};
  detail::combine(block, p, row, in, detail::clamp_slots(c.union_size[row], p.num_slots));
}

}  // namespace unite
