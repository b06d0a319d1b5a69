// Every member's top-k of one row, by as many CTAs as the row has slices. fused_step.cu explains it.
#pragma once

#include <cstdint>

#include "merge.cuh"

namespace unite {

// Publishes the slice's k best keys in order, kNoKey padded.
__device__ inline void publish(const CudaBlock& block, const StepParams& p, int member, const SliceScratch& s,
                               int count, uint64_t* out) {
  order_keys(block, s.candidates, count, p.k, 0, [&](int rank, uint64_t key) {
    out[rank] = key;
    if (p.map != nullptr) prefetch_to_l2(p.map + map_slot(map_key(member, key_id(key)), p.log2_capacity));
  });
  for (int i = count + block.thread_rank(); i < p.k; i += block.size()) out[i] = kNoKey;
}

template <class Logit>
__device__ void reduce_slice(const CudaBlock& block, const StepParams& p, int member, const Slice& slice,
                             const SliceScratch& s, uint64_t* keys, uint64_t* sums) {
  const SliceReader<Logit> reader(slice);
  const int count = collect_candidates(block, reader, p.k, s);
  if (p.score == Score::kProbs) sum_chunks<Logit>(block, slice, sums);
  publish(block, p, member, s, count, keys);
}

// True in all threads of the CTA that arrives last, to which everything the others published is visible.
__device__ inline bool arrives_last(const CudaBlock& block, unsigned* arrivals, int expected, int* is_last) {
  block.sync();  // this slice is published
  if (block.thread_rank() == 0) {
    __threadfence();  // release
    const unsigned last = static_cast<unsigned>(expected - 1);
    *is_last = atomicInc(arrivals, last) == last;
    __threadfence();  // acquire
  }
  block.sync();  // the ticket is known
  return *is_last != 0;
}

// Reads the slice of this CTA, which is number blockIdx.x in its row. True in the row's last CTA, where `control` then
// holds every member's top-k. `memory` is shared memory that the phases use one after another.
__device__ __forceinline__ bool find_top_k(const CudaBlock& block, const StepParams& p, const RowPlan& plan,
                                           int64_t row, unsigned* arrivals, uint64_t* record, const RowControl& control,
                                           const Arena& memory) {
  {
    Arena phase = memory;
    const SliceScratch scratch = take_slice_scratch(phase, block.size());
    const int slice_index = static_cast<int>(blockIdx.x);
    const int member = member_of_slice(plan, p.members, slice_index);
    const MemberLogits& logits = p.logits[member];
    const int begin = (slice_index - plan.first[member]) * plan.length[member];
    const int rest = logits.vocab_size - begin;
    const Slice slice{row_pointer(logits, row), reinterpret_cast<const uint8_t*>(logits.eligible), begin,
                      begin + (rest < plan.length[member] ? rest : plan.length[member])};
    uint64_t* keys = record + slice_index * p.k;
    uint64_t* sums = record + plan.sums_word[member] + begin / kSumChunk;
    if (logits.dtype == Dtype::kFloat32) {
      reduce_slice<Float32>(block, p, member, slice, scratch, keys, sums);
    } else if (logits.dtype == Dtype::kBFloat16) {
      reduce_slice<BFloat16>(block, p, member, slice, scratch, keys, sums);
    } else {
      reduce_slice<Float16>(block, p, member, slice, scratch, keys, sums);
    }
  }
  if (!arrives_last(block, arrivals, plan.slices_per_row, control.is_last)) return false;

  Arena phase = memory;
  merge_row(block, p, plan, record, take_merge_scratch(phase, p, plan), control);
  return true;
}

}  // namespace unite
