// The work of a row's last CTA: from the slices' sorted keys to every member's exact, ordered top-k.
//
// Because slices are sorted, there is a cheap exact bound here too: if the q-th largest of the slices' j-th keys is b
// and q * j >= k, at least k keys reach b. Of 160 keys (16 slices, k = 10) about 16 remain to be ordered.
#pragma once

#include <cstdint>

#include "../core/key_order.h"
#include "row_plan.cuh"

namespace unite {

// Other CTAs wrote these words; __ldcg reads them from L2, past this SM's own L1.
__device__ __forceinline__ uint64_t load_word(const uint64_t* word) {
  return __ldcg(reinterpret_cast<const unsigned long long*>(word));
}

// One warp per member, one slice per lane.
__device__ inline void bound_member(const CudaBlock& block, int member, int k, const RowPlan& plan,
                                    const MergeScratch& s) {
  const int slices = plan.slices[member];
  const int needed = (3 * k + 2 * slices - 1) / (2 * slices);  // with half as many again as k, b is not too low
  const int j = needed < k ? needed : k;
  const int q = (k + j - 1) / j;
  const uint64_t* column = s.words + plan.first[member] * k + j - 1;
  const uint64_t mine = block.lane() < slices ? column[block.lane() * k] : kNoKey;
  int larger = 0;
  for (int i = 0; i < slices; ++i) larger += column[i * k] > mine;
  // Keys are unique except kNoKey, which is the bound if no lane is the q-th.
  if (mine != kNoKey && larger == q - 1) s.bounds[member] = mine;
}

__device__ inline int member_of_slice(const RowPlan& plan, int members, int slice) {
  int member = 0;
  while (member < members - 1 &&
         static_cast<unsigned>(slice - plan.first[member]) >= static_cast<unsigned>(plan.slices[member]))
    ++member;
  return member;
}

// The log of the sum of exp(logit - the member's largest) over all its chunks, by one warp, in a fixed order.
__device__ inline float log_sum_of_chunks(const CudaBlock& block, const uint64_t* sums, int vocab_size) {
  const int chunks = (vocab_size + kSumChunk - 1) / kSumChunk;
  float largest = negative_infinity();
  for (int i = block.lane(); i < chunks; i += kWarp)
    largest = fmaxf(largest, float_from_bits(static_cast<uint32_t>(load_word(sums + i) >> 32)));
  largest = block.group_max(largest);
  float total = 0.0f;
  for (int i = block.lane(); i < chunks; i += kWarp) {
    const uint64_t word = load_word(sums + i);
    const float of_chunk = float_from_bits(static_cast<uint32_t>(word >> 32));
    const float sum = float_from_bits(static_cast<uint32_t>(word));
    if (sum > 0.0f) total = plain_sum(total, sum * expf(of_chunk - largest));
  }
  return logf(block.group_sum(total));
}

// Fills control.top, and control.log_sum for Score::kProbs. Ends with a barrier.
__device__ inline void merge_row(const CudaBlock& block, const StepParams& p, const RowPlan& plan,
                                 const uint64_t* record, const MergeScratch& s, const RowControl& control) {
  const int rank = block.thread_rank();
  for (int i = rank; i < plan.slices_per_row * p.k; i += block.size()) s.words[i] = load_word(record + i);
  for (int i = rank; i < p.members * p.k; i += block.size()) control.top[i] = kNoKey;
  if (rank < p.members) {
    s.bounds[rank] = kNoKey;
    s.counts[rank] = 0;
  }
  block.sync();

  for (int m = block.group_rank(); m < p.members; m += block.num_groups()) {
    bound_member(block, m, p.k, plan, s);
    if (p.score == Score::kProbs) {
      const float log_sum = log_sum_of_chunks(block, record + plan.sums_word[m], p.logits[m].vocab_size);
      if (block.lane() == 0) control.log_sum[m] = log_sum;
    }
  }
  block.sync();

  for (int i = rank; i < plan.slices_per_row * p.k; i += block.size()) {
    const int member = member_of_slice(plan, p.members, i / p.k);
    const uint64_t key = s.words[i];
    if (key == kNoKey || key < s.bounds[member]) continue;
    s.keys[plan.first[member] * p.k + atomicAdd(s.counts + member, 1)] = key;
  }
  block.sync();

  for (int m = 0; m < p.members; ++m) {
    uint64_t* top = control.top + walk_position(m, p.primary) * p.k;
    order_keys(block, s.keys + plan.first[m] * p.k, s.counts[m], p.k, 2 * kWarp * m,
               [&](int place, uint64_t key) { top[place] = key; });
  }
  block.sync();
}

}  // namespace unite
