// One row of the step after its top-k: union -> fill -> softmax per member -> average -> select. For Combine::kProduct
// the last three are: weighted sum of the members' scores -> softmax -> select.
//
// Written once for the CPU (SerialBlock) and the GPU (CudaBlock). fuse_row does all of it; core/row_parts.h uses the
// same functions one by one. unite_ext/reference.py has the same rules in plain PyTorch, and the two agree on every id.
#pragma once

#include <cstdint>

#include "block.h"
#include "logit_sum.h"
#include "softmax.h"
#include "step_params.h"
#include "union.h"

namespace unite {

namespace detail {

// Scores of a product are not below this, so that no sum of weighted scores overflows (weights are at most 1e6).
constexpr float kLowestScore = -1e30f;

// The first member, in member order, whose top-k is empty; -1 if none is. The same in all threads of the block.
UNITE_HOST_DEVICE inline int member_without_logits(const StepParams& p, const RowScratch& s) {
  for (int m = 0; m < p.members; ++m) {
    const uint64_t* top = s.top + walk_position(m, p.primary) * p.k;
    int rank = 0;
    while (rank < p.k && top[rank] == kNoKey) ++rank;  // a whole top-k begins with its best key
    if (rank == p.k) return m;
  }
  return -1;
}

// Builds the row's slots, or returns a status that says why there are none; the same in all threads of the block.
// s.top must be visible to the whole block.
template <class Block>
UNITE_HOST_DEVICE int32_t find_slots(Block& block, const StepParams& p, int64_t row, const RowScratch& s) {
  const int missing = member_without_logits(p, s);
  if (missing >= 0) return 1 + missing;
  return build_union(block, p, row, s) ? kOk : kBadInclude;
}

// The key whose rank a field of slot_id holds.
UNITE_HOST_DEVICE inline uint64_t own_key(const StepParams& p, const RowScratch& s, int member, int32_t field) {
  return s.top[walk_position(member, p.primary) * p.k + (field - kRankBase)];
}

// The logit of a slot whose class is in the member's own top-k, from the rank in its field on: the sum over the class's
// ids there, of which there is nearly always only one. Relative to `largest`.
UNITE_HOST_DEVICE inline float own_logit(const StepParams& p, const RowScratch& s, int member, int slot, int32_t field,
                                         float largest) {
  const int first = walk_position(member, p.primary) * p.k;
  LogitSum sum;
  sum.add(key_value(s.top[first + (field - kRankBase)]));
  if (*s.shared_class < 0)
    for (int rank = field - kRankBase + 1; rank < p.k; ++rank)
      if (entry_slot(s, first + rank) == slot) sum.add(key_value(s.top[first + rank]));
  return sum.minus(largest);
}

// The logit of a slot whose id is not in the member's own top-k.
UNITE_HOST_DEVICE inline float slot_logit(const MemberLogits& logits, int64_t row, int32_t tagged) {
  if (tagged < 0) return negative_infinity();
  return load_logit(row_pointer(logits, row), logits.dtype, untag(tagged));
}

// The input of the softmax over the slots. `logit` and `log_sum` are relative to the member's largest eligible logit: a
// logarithm added to a large logit would lose its digits.
UNITE_HOST_DEVICE inline float slot_score(Score score, float logit, float log_sum) {
  return score == Score::kLogits ? logit : rounded_exp(logit - log_sum);
}

// Rules 1 to 3 of the fill: every field of slot_id becomes a tagged id, every field of slot_score its score.
template <class Block>
UNITE_HOST_DEVICE void fill(const Block& block, const StepParams& p, int64_t row, const RowScratch& s, int slots) {
  for (int i = block.thread_rank(); i < slots * p.members; i += block.size()) {
    const int member = i % p.members;
    const int32_t field = s.slot_id[i];
    const float largest = key_value(s.top[walk_position(member, p.primary) * p.k]);
    float logit;
    if (holds_rank(field)) {
      s.slot_id[i] = key_id(own_key(p, s, member, field));
      logit = own_logit(p, s, member, i / p.members, field, largest);
    } else {
      logit = slot_logit(p.logits[member], row, field) - largest;
    }
    if (p.score == Score::kProbs && field != kNoId) logit = slot_score(p.score, logit, s.log_sum[member]);
    s.slot_score[i] = logit;
  }
  block.sync();
}

// Duplicates::kDrop for one member, whose ids and scores are at [slot * stride]. Of several slots with one id, the one
// where it is not a first sub-token keeps its score, else the first; the others get -inf.
template <class Block>
UNITE_HOST_DEVICE void drop_duplicates(const Block& block, const IndexTable& table, const int32_t* ids, float* scores,
                                       int slots, int stride) {
  table.clear(block);
  block.sync();
  for (int slot = block.thread_rank(); slot < slots; slot += block.size()) {
    const int32_t field = ids[slot * stride];
    if (field < 0) continue;
    const int claim = is_first_sub_token(field) ? slot + kMaxSlots : slot;
    table.insert_min(block, untag(field), claim);
  }
  block.sync();
  for (int slot = block.thread_rank(); slot < slots; slot += block.size()) {
    const int32_t field = ids[slot * stride];
    if (field < 0) continue;
    if (table.find(untag(field)) % kMaxSlots != slot) scores[slot * stride] = negative_infinity();
  }
  block.sync();
}

// What every later part takes of a member, by one lane group: its softmax over the slots; for Combine::kProduct its
// scores, made finite. There a slot without a finite score (the member cannot spell it, or it was dropped) takes the
// member's smallest one: -inf would decide alone, and with a negative weight in the slot's favour.
template <class Block>
UNITE_HOST_DEVICE void finish_scores(const Block& block, Combine combine, float* scores, int slots, int stride) {
  if (combine == Combine::kMean) return softmax(block, scores, slots, stride);
  float smallest = -negative_infinity();
  for (int slot = block.lane(); slot < slots; slot += block.num_lanes()) {
    const float score = scores[slot * stride];
    if (score > negative_infinity()) smallest = fminf(smallest, fmaxf(score, kLowestScore));
  }
  smallest = -block.group_max(-smallest);
  if (smallest == -negative_infinity()) smallest = 0.0f;  // it has no opinion
  for (int slot = block.lane(); slot < slots; slot += block.num_lanes()) {
    const float score = scores[slot * stride];
    scores[slot * stride] = score > negative_infinity() ? fmaxf(score, kLowestScore) : smallest;
  }
}

template <class Block>
UNITE_HOST_DEVICE void write_padding(const Block& block, const StepParams& p, int64_t row, int slots) {
  const int64_t base = row * p.num_slots;
  for (int i = slots * p.members + block.thread_rank(); i < p.num_slots * p.members; i += block.size()) {
    p.union_ids[base * p.members + i] = kNoId;
    p.member_probs[base * p.members + i] = 0.0f;
  }
  for (int i = slots + block.thread_rank(); i < p.num_slots; i += block.size()) p.union_probs[base + i] = 0.0f;
}

template <class Block>
UNITE_HOST_DEVICE void write_failure(const Block& block, const StepParams& p, int64_t row, int32_t status) {
  write_padding(block, p, row, 0);
  for (int m = block.thread_rank(); m < p.members; m += block.size()) p.next_ids[row * p.members + m] = kNoId;
  if (block.thread_rank() == 0) {
    p.union_size[row] = 0;
    p.winner[row] = -1;
    p.status[row] = status;
  }
}

// Weighted sum over the members, in member order, so that it is the same on every device.
UNITE_HOST_DEVICE inline float weighted_sum(const StepParams& p, const float* scores) {
  float sum = 0.0f;
  for (int m = 0; m < p.members; ++m) sum = plain_sum(sum, p.weights[m] * scores[m]);  // constructed ties stay ties
  return sum;
}

// The slot with the largest weighted sum among those that the primary can emit, the lowest of equals; -1 if there is
// none. Computed by the calling lane group.
template <class Block>
UNITE_HOST_DEVICE int choose_slot(const Block& block, const StepParams& p, const SlotRow& row, int slots) {
  uint64_t best = kNoKey;
  for (int slot = block.lane(); slot < slots; slot += block.num_lanes()) {
    const bool emits = row.ids[slot * p.members + p.primary] >= 0 || row.classes[slot] == kEosClass;
    if (!emits) continue;
    const uint64_t key = make_key(weighted_sum(p, row.scores + slot * p.members), slot);
    best = key > best ? key : best;
  }
  return key_id(block.group_max(best));  // kNoKey's id is -1
}

// Writes the softmax of score(slot) over the slots to out[slot * stride], by one lane group.
template <class Block, class Scores>
UNITE_HOST_DEVICE void write_softmax(const Block& block, const Scores& score, float* out, int slots, int stride) {
  for (int slot = block.lane(); slot < slots; slot += block.num_lanes()) out[slot * stride] = score(slot);
  softmax(block, out, slots, stride);  // every lane reads what it has written
}

// The last part of a row: from what finish_scores made for every member to the outputs.
template <class Block>
UNITE_HOST_DEVICE void combine(const Block& block, const StepParams& p, int64_t row, const SlotRow& in, int slots) {
  const int64_t base = row * p.num_slots;
  for (int i = block.thread_rank(); i < slots * p.members; i += block.size())
    p.union_ids[base * p.members + i] = untag(in.ids[i]);
  float* member_probs = p.member_probs + base * p.members;
  float* union_probs = p.union_probs + base;
  if (p.combine == Combine::kMean) {
    for (int i = block.thread_rank(); i < slots * p.members; i += block.size()) member_probs[i] = in.scores[i];
    for (int slot = block.thread_rank(); slot < slots; slot += block.size())
      union_probs[slot] = weighted_sum(p, in.scores + slot * p.members);
  } else {
    for (int m = block.group_rank(); m <= p.members; m += block.num_groups()) {  // the last is all of them together
      if (m < p.members)
        write_softmax(
            block, [&](int slot) { return in.scores[slot * p.members + m]; }, member_probs + m, slots, p.members);
      else
        write_softmax(
            block, [&](int slot) { return weighted_sum(p, in.scores + slot * p.members); }, union_probs, slots, 1);
    }
  }
  write_padding(block, p, row, slots);

  if (block.group_rank() != 0) return;
  const int winner = choose_slot(block, p, in, slots);
  if (block.lane() != 0) return;
  for (int m = 0; m < p.members; ++m)
    p.next_ids[row * p.members + m] = winner < 0 ? kNoId : untag(in.ids[winner * p.members + m]);
  p.union_size[row] = slots;
  p.winner[row] = winner;
  p.status[row] = winner < 0 ? 1 + p.primary : kOk;
}

}  // namespace detail

// s.top (and s.log_sum for Score::kProbs) must be visible to the whole block.
template <class Block>
UNITE_HOST_DEVICE void fuse_row(Block& block, const StepParams& p, int64_t row, const RowScratch& s) {
  const int32_t status = detail::find_slots(block, p, row, s);
  if (status != kOk) return detail::write_failure(block, p, row, status);
  const int slots = *s.size;

  detail::fill(block, p, row, s, slots);
  if (p.duplicates == Duplicates::kDrop)
    for (int m = 0; m < p.members; ++m)
      detail::drop_duplicates(block, s.table, s.slot_id + m, s.slot_score + m, slots, p.members);
  for (int m = block.group_rank(); m < p.members; m += block.num_groups())
    detail::finish_scores(block, p.combine, s.slot_score + m, slots, p.members);
  block.sync();
  detail::combine(block, p, row, {s.slot_id, s.slot_class, s.slot_score}, slots);
}

}  // namespace unite
