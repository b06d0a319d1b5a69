// The last CTA of a row: from the slices' sorted keys to every member's exact, ordered top-k.
//
// Slices are sorted, so a cheap exact bound exists here as well: if the q-th largest of the slices' j-th keys is
// b and q * j >= k, at least k keys reach b. Of 160 keys (16 slices, k = 10) about 16 remain to be ordered.
#pragma once

#include <cstdint>

#include "../core/key_order.h"
#include "row_plan.cuh"

namespace unite {

// Other CTAs wrote these words; __ldcg reads them from L2, past this SM's own L1.
__device__ inline void load_record(const CudaBlock& block, const RowPlan& plan, const uint64_t* record,
                                   const MergeScratch& s) {
  for (int i = block.thread_rank(); i < plan.slices_per_row * plan.words_per_slice; i += block.size())
    s.words[i] = __ldcg(reinterpret_cast<const unsigned long long*>(record) + i);
}

// One warp per member, one slice per lane.
__device__ inline void bound_member(const CudaBlock& block, int member, int k, const RowPlan& plan,
                                    const MergeScratch& s) {
  const int slices = plan.slices[member];
  const int needed = (3 * k + 2 * slices - 1) / (2 * slices);  // with half as many again as k, b is not too low
  const int j = needed < k ? needed : k;
  const int q = (k + j - 1) / j;
  const uint64_t* column = s.words + plan.first[member] * plan.words_per_slice + j - 1;
  const uint64_t mine = block.lane() < slices ? column[block.lane() * plan.words_per_slice] : kNoKey;
  int larger = 0;
  for (int i = 0; i < slices; ++i) larger += column[i * plan.words_per_slice] > mine;
  // Keys are unique, kNoKey apart, which is the bound when no lane is the q-th.
  if (mine != kNoKey && larger == q - 1) s.bounds[member] = mine;
}

__device__ inline int member_of_slice(const RowPlan& plan, int members, int slice) {
  int member = 0;
  while (member < members - 1 &&
         static_cast<unsigned>(slice - plan.first[member]) >= static_cast<unsigned>(plan.slices[member]))
    ++member;
  return member;
}

// The log of the sum of exp(logit - the member's largest) over all its slices, by one warp, in a fixed order.
__device__ inline float log_sum_of_slices(const CudaBlock& block, int member, int k, const RowPlan& plan,
                                          const MergeScratch& s) {
  float maximum = negative_infinity(), sum = 0.0f;
  if (block.lane() < plan.slices[member]) {
    const uint64_t word = s.words[(plan.first[member] + block.lane()) * plan.words_per_slice + k];
    maximum = float_from_bits(static_cast<uint32_t>(word >> 32));
    sum = float_from_bits(static_cast<uint32_t>(word));
  }
  const float largest = block.group_max(maximum);
  sum = sum > 0.0f ? sum * expf(maximum - largest) : 0.0f;
  return logf(block.group_sum(sum));
}

// Fills control.top, and control.log_sum for Score::kProbs. Ends with a barrier.
__device__ inline void merge_row(const CudaBlock& block, const StepParams& p, const RowPlan& plan,
                                 const uint64_t* record, const MergeScratch& s, const RowControl& control) {
  const int rank = block.thread_rank();
  load_record(block, plan, record, s);
  for (int i = rank; i < p.members * p.k; i += block.size()) control.top[i] = kNoKey;
  if (rank < p.members) {
    s.bounds[rank] = kNoKey;
    if (!planted(kMergeCountsNotCleared)) s.counts[rank] = 0;
  }
  block.sync();

  for (int m = block.group_rank(); m < p.members; m += block.num_groups()) {
    bound_member(block, m, p.k, plan, s);
    if (p.score == Score::kProbs) {
      const float log_sum = log_sum_of_slices(block, m, p.k, plan, s);
      if (block.lane() == 0) control.log_sum[m] = log_sum;
    }
  }
  block.sync();

  for (int i = rank; i < plan.slices_per_row * plan.words_per_slice; i += block.size()) {
    const int slice = i / plan.words_per_slice;
    if (i - slice * plan.words_per_slice == p.k) continue;  // softmax statistics
    const int member = member_of_slice(plan, p.members, slice);
    const uint64_t key = s.words[i];
    if (key == kNoKey || key < s.bounds[member]) continue;
    s.keys[plan.first[member] * p.k + atomicAdd(s.counts + member, 1)] = key;
  }
  block.sync();

  for (int m = 0; m < p.members; ++m) {
    uint64_t* top = control.top + walk_position(m, p.primary) * p.k;
    order_keys(block, s.keys + plan.first[m] * p.k, s.counts[m], p.k, 2 * kWarp * m,
               [&](int place, uint64_t key) { top[planted(kRankPastTop) ? place + 1 : place] = key; });
  }
  block.sync();
}

}  // namespace unite
