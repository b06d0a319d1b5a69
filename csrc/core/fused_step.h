// One row of the step after its top-k: union -> fill -> softmax per member -> average -> select.
//
// Written once for the CPU (SerialBlock) and the GPU (CudaBlock). unite_ext/reference.py states the same rules
// in plain PyTorch; the two agree on every id.
#pragma once

#include <cstdint>

#include "block.h"
#include "softmax.h"
#include "step_params.h"
#include "union.h"

namespace unite {

namespace detail {

// The first member, in member order, whose top-k is empty; -1 when none is. Uniform over the block.
UNITE_HOST_DEVICE inline int member_without_logits(const StepParams& p, const RowScratch& s) {
  for (int m = 0; m < p.members; ++m)
    if (s.top[walk_position(m, p.primary) * p.k] == kNoKey) return m;
  return -1;
}

// Rules 1 to 3 of the fill: every field of slot_id becomes a tagged id, every field of slot_score its score.
template <class Block>
UNITE_HOST_DEVICE void fill(const Block& block, const StepParams& p, int64_t row, const RowScratch& s, int slots) {
  for (int i = block.thread_rank(); i < slots * p.members; i += block.size()) {
    const int member = i % p.members;
    const int32_t field = s.slot_id[i];
    float logit = negative_infinity();
    if (holds_rank(field)) {
      const uint64_t key = s.top[walk_position(member, p.primary) * p.k + (field - kRankBase)];
      s.slot_id[i] = key_id(key);
      logit = key_value(key);
    } else if (field != kNoId) {
      logit = load_logit(row_pointer(p.logits[member], row), p.logits[member].dtype, untag(field));
    }
    if (p.score == Score::kProbs && field != kNoId) {
      // The largest logit apart from the log of the sum: together they would round the log away.
      const float largest = key_value(s.top[walk_position(member, p.primary) * p.k]);
      logit = expf((logit - largest) - s.log_sum[member]);
    }
    s.slot_score[i] = logit;
  }
  block.sync();
}

// Duplicates::kDrop: of a member's slots with one id, the one that is not a mere first sub-token keeps it, else
// the first; the others score -inf.
template <class Block>
UNITE_HOST_DEVICE void drop_duplicates(const Block& block, const StepParams& p, const RowScratch& s, int slots) {
  for (int member = 0; member < p.members; ++member) {
    s.table.clear(block);
    block.sync();
    for (int slot = block.thread_rank(); slot < slots; slot += block.size()) {
      const int32_t field = s.slot_id[slot * p.members + member];
      if (field == kNoId) continue;
      const int claim = is_first_sub_token(field) ? slot + kMaxSlots : slot;
      s.table.insert_min(block, untag(field), claim);
    }
    block.sync();
    for (int slot = block.thread_rank(); slot < slots; slot += block.size()) {
      const int32_t field = s.slot_id[slot * p.members + member];
      if (field == kNoId) continue;
      if (s.table.find(untag(field)) % kMaxSlots != slot) s.slot_score[slot * p.members + member] = negative_infinity();
    }
    block.sync();
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

// Weighted average over the members, in member order so that it is the same everywhere.
UNITE_HOST_DEVICE inline float average(const StepParams& p, const float* probs) {
  float sum = 0.0f;
  for (int m = 0; m < p.members; ++m) {
#if defined(__CUDA_ARCH__)
    sum = __fadd_rn(sum, __fmul_rn(p.weights[m], probs[m]));  // never contracted: constructed ties stay ties
#else
    sum += p.weights[m] * probs[m];
#endif
  }
  return sum;
}

}  // namespace detail

// s.top (and s.log_sum for Score::kProbs) must be visible to the whole block.
template <class Block>
UNITE_HOST_DEVICE void fuse_row(Block& block, const StepParams& p, int64_t row, const RowScratch& s) {
  const int missing = detail::member_without_logits(p, s);
  if (missing >= 0) return detail::write_failure(block, p, row, 1 + missing);
  if (!build_union(block, p, row, s)) return detail::write_failure(block, p, row, kBadInclude);
  const int slots = *s.size;

  detail::fill(block, p, row, s, slots);
  if (p.duplicates == Duplicates::kDrop) detail::drop_duplicates(block, p, s, slots);
  for (int m = block.group_rank(); m < p.members; m += block.num_groups())
    softmax(block, s.slot_score + m, slots, p.members);
  block.sync();

  const int64_t base = row * p.num_slots;
  for (int i = block.thread_rank(); i < slots * p.members; i += block.size()) {
    p.union_ids[base * p.members + i] = untag(s.slot_id[i]);
    p.member_probs[base * p.members + i] = s.slot_score[i];
  }
  for (int slot = block.thread_rank(); slot < slots; slot += block.size())
    p.union_probs[base + slot] = detail::average(p, s.slot_score + slot * p.members);
  detail::write_padding(block, p, row, slots);

  // The largest average among the slots the primary can emit; the key's low half prefers lower slots.
  if (block.group_rank() != 0) return;
  uint64_t best = kNoKey;
  for (int slot = block.lane(); slot < slots; slot += block.num_lanes()) {
    const bool emits = s.slot_id[slot * p.members + p.primary] != kNoId || s.slot_class[slot] == kEosClass;
    if (!emits) continue;
    const uint64_t key = make_key(detail::average(p, s.slot_score + slot * p.members), slot);
    best = key > best ? key : best;
  }
  best = block.group_max(best);
  if (block.lane() != 0) return;
  const int winner = key_id(best);
  for (int m = 0; m < p.members; ++m) p.next_ids[row * p.members + m] = untag(s.slot_id[winner * p.members + m]);
  p.union_size[row] = slots;
  p.winner[row] = winner;
  p.status[row] = kOk;
}

}  // namespace unite
