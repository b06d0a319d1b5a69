// The exact, ordered top-k of one slice by one CTA.
//
// 1. Maxima. Each thread keeps only the maximum of what it reads. If k different threads (or groups of threads) have a
//    maximum of at least b, there are k different elements of at least b. So the k-th largest maximum is an exact lower
//    bound of the k-th value.
// 2. Rescan. Only threads whose maximum reaches the bound have candidates, and the whole block shares their vectors. On
//    Gaussian logits 12 candidates remain for k = 10 and about 70 for k = 64.
// 3. Too many candidates (all equal, long sorted runs, k above the number of threads): the whole block reads the slice
//    again and narrows the bound by eight bits of the 64-bit key at a time until the candidates fit.
// 4. Order. Keys are unique, so a candidate's rank is the number of larger ones.
#pragma once

#include <cstdint>

#include "../core/key_order.h"
#include "cuda_block.cuh"
#include "slice.cuh"

namespace unite {

constexpr int kMaxCandidates = 1024;
constexpr int kWarpBoundK = 16;                  // up to this k, 32 groups of threads give a tight enough bound
constexpr int kBins = 256;                       // one digit of a key
constexpr int kSumChunk = 1024;                  // ids that one warp sums up at a time, for Score::kProbs
constexpr uint32_t kLowestFinite = 0x00800000u;  // order_bits() of anything above -inf is at least this

struct SliceScratch {
  uint64_t* candidates;  // [kMaxCandidates]
  uint32_t* maxima;      // [threads]
  int* owners;           // [threads]
  int* histogram;        // [kBins]
  uint32_t* bound;       // [1]
  int* num_owners;       // [1]
  int* num_candidates;   // [1]
  int* digit;            // [3]: the digit, how many keys lie above it, how many share it
};

UNITE_HOST_DEVICE inline SliceScratch take_slice_scratch(Arena& arena, int threads) {
  SliceScratch s;
  s.candidates = arena.take<uint64_t>(kMaxCandidates);
  s.maxima = arena.take<uint32_t>(threads);
  s.owners = arena.take<int>(threads);
  s.histogram = arena.take<int>(kBins);
  s.bound = arena.take<uint32_t>(1);
  s.num_owners = arena.take<int>(1);
  s.num_candidates = arena.take<int>(1);
  s.digit = arena.take<int>(3);
  return s;
}

__device__ __forceinline__ void push_candidate(const SliceScratch& s, uint64_t key) {
  const int at = atomicAdd(s.num_candidates, 1);
  if (at < kMaxCandidates) s.candidates[at] = key;
}

// The k-th largest maximum over 32 groups, k <= kWarpBoundK. A group is one lane of every warp. Neighbouring vectors
// are in different groups, so that runs of large values do not loosen the bound.
__device__ inline uint32_t bound_from_warp(const CudaBlock& block, uint32_t mine, int k, const SliceScratch& s) {
  s.maxima[block.thread_rank()] = mine;
  block.sync();
  if (block.group_rank() == 0) {
    uint32_t group = 0;
    for (int i = block.lane(); i < block.size(); i += kWarp) group = s.maxima[i] > group ? s.maxima[i] : group;
    int rank = 0;
#pragma unroll
    for (int i = 0; i < kWarp; ++i) {
      const uint32_t other = __shfl_sync(kFullWarp, group, i);
      rank += other > group || (other == group && i < block.lane());
    }
    if (rank == k - 1) *s.bound = group;
  }
  block.sync();
  return *s.bound;
}

// The k-th largest maximum over all threads, found bit by bit; 0 if there are fewer than k threads.
__device__ inline uint32_t bound_from_block(uint32_t mine, int k, int low_bit) {
  uint32_t bound = 0;
#pragma unroll 1
  for (int bit = 31; bit >= low_bit; --bit) {
    const uint32_t trial = bound | 1u << bit;
    if (__syncthreads_count(mine >= trial) >= k) bound = trial;
  }
  return bound;
}

// The digit at which the count from the top reaches `wanted`, by one warp. At least `wanted` keys are counted.
__device__ inline void find_digit(const CudaBlock& block, int wanted, const SliceScratch& s) {
  constexpr int kPerLane = kBins / kWarp;
  const int top = kBins - 1 - block.lane() * kPerLane;
  int sum = 0;
  for (int i = 0; i < kPerLane; ++i) sum += s.histogram[top - i];
  int above = sum;
  for (int step = 1; step < kWarp; step *= 2) {
    const int lower_lanes = __shfl_up_sync(kFullWarp, above, step);
    if (block.lane() >= step) above += lower_lanes;
  }
  above -= sum;
  if (above >= wanted || above + sum < wanted) return;
  int bin = top;
  while (above + s.histogram[bin] < wanted) above += s.histogram[bin--];
  s.digit[0] = bin;
  s.digit[1] = above;
  s.digit[2] = s.histogram[bin];
}

// Candidates for any input: radix selection on the 64-bit keys, stopped as soon as few enough remain. Digits in
// which the keys of the slice cannot differ are skipped.
template <class Logit>
__device__ int collect_by_radix(const CudaBlock& block, const SliceReader<Logit>& reader, int k,
                                const SliceScratch& s) {
  const int enough = 2 * k + kBins;
  const uint32_t last_id = static_cast<uint32_t>(reader.slice.end - 1);
  uint64_t prefix = 0, known = 0;  // the bits found so far, and a mask of these bits
  int wanted = k;
#pragma unroll 1
  for (int shift = 64 - 8; shift >= 0; shift -= 8) {
    const bool varies = shift >= 32 ? shift - 32 + 8 > Logit::kLowBit : last_id >> shift != 0;
    if (!varies) continue;
    for (int i = block.thread_rank(); i < kBins; i += block.size()) s.histogram[i] = 0;
    block.sync();
    // Adversarial inputs have long runs in one bin, so runs are counted before shared memory is updated.
    int run_bin = 0, run = 0;
    reader.for_each(block.thread_rank(), block.size(), [&](float logit, int id) {
      const uint64_t key = make_key(logit, id);
      if ((key & known) != prefix) return;
      const int bin = static_cast<int>(key >> shift & (kBins - 1));
      if (bin != run_bin && run > 0) {
        atomicAdd(s.histogram + run_bin, run);
        run = 0;
      }
      run_bin = bin;
      ++run;
    });
    if (run > 0) atomicAdd(s.histogram + run_bin, run);
    block.sync();
    if (block.group_rank() == 0) find_digit(block, wanted, s);
    if (block.thread_rank() == 0) *s.num_candidates = 0;
    block.sync();
    prefix |= static_cast<uint64_t>(s.digit[0]) << shift;
    known |= static_cast<uint64_t>(kBins - 1) << shift;
    wanted -= s.digit[1];
    if (k - wanted + s.digit[2] <= enough) break;
  }
  reader.for_each(block.thread_rank(), block.size(), [&](float logit, int id) {
    const uint64_t key = make_key(logit, id);
    if ((key & known) >= prefix) push_candidate(s, key);
  });
  block.sync();
  return *s.num_candidates;
}

// Leaves every key of the slice's top-k, and few others, in s.candidates; returns how many. These are fewer than k only
// if the slice has fewer eligible logits above -inf.
template <class Logit>
__device__ int collect_candidates(const CudaBlock& block, const SliceReader<Logit>& reader, int k,
                                  const SliceScratch& s) {
  const int edge_id = reader.edge_id(block.thread_rank());
  const float edge = edge_id >= 0 ? load_logit(reader.slice.row, Logit::kDtype, edge_id) : negative_infinity();
  const float maximum = sanitize(reader.thread_maximum(), largest_finite(Logit::kDtype));
  const uint32_t vector_order = order_bits(maximum);
  const uint32_t mine = order_bits(fmaxf(maximum, edge));

  if (block.thread_rank() == 0) {  // seen by all after the barriers below
    *s.num_owners = 0;
    *s.num_candidates = 0;
  }
  uint32_t bound = k <= kWarpBoundK ? bound_from_warp(block, mine, k, s) : bound_from_block(mine, k, Logit::kLowBit);
  bound = bound > kLowestFinite ? bound : kLowestFinite;

  if (order_bits(edge) >= bound) push_candidate(s, make_key(edge, edge_id));
  if (vector_order >= bound) s.owners[atomicAdd(s.num_owners, 1)] = block.thread_rank();
  block.sync();

  const int per_owner = (reader.num_vectors + block.size() - 1) / block.size();
  const int items = *s.num_owners * per_owner;
  for (int item = block.thread_rank(); item < items; item += block.size()) {
    const int i = s.owners[item / per_owner] + item % per_owner * block.size();
    if (i >= reader.num_vectors) continue;
    reader.visit_vector(i, [&](float logit, int id) {
      if (order_bits(logit) >= bound) push_candidate(s, make_key(logit, id));
    });
  }
  block.sync();  // all candidates are in
  const int found = *s.num_candidates;
  if (found <= kMaxCandidates) return found;
  return collect_by_radix(block, reader, k, s);
}

// For Score::kProbs: of every chunk of kSumChunk ids of the slice, the largest logit and the sum of
// exp(logit - largest) as one word; (-inf, 0) where none is eligible. One warp takes a chunk, so that its sum does not
// depend on how the row is cut into slices or on the number of threads.
template <class Logit>
__device__ void sum_chunks(const CudaBlock& block, const Slice& slice, uint64_t* out) {
  const int chunks = (slice.end - slice.begin + kSumChunk - 1) / kSumChunk;
#pragma unroll 1
  for (int chunk = block.group_rank(); chunk < chunks; chunk += block.num_groups()) {
    const int begin = slice.begin + chunk * kSumChunk;
    const int end = begin + kSumChunk < slice.end ? begin + kSumChunk : slice.end;
    const SliceReader<Logit> reader({slice.row, slice.eligible, begin, end});
    float largest = negative_infinity(), sum = 0.0f;
    reader.for_each(block.lane(), kWarp, [&](float logit, int) {
      if (logit > largest) {
        sum *= expf(largest - logit);
        largest = logit;
      }
      sum = plain_sum(sum, expf(logit - largest));
    });
    const float of_all = block.group_max(largest);
    sum = block.group_sum(sum > 0.0f ? sum * expf(largest - of_all) : 0.0f);
    if (block.lane() == 0) out[chunk] = static_cast<uint64_t>(float_bits(of_all)) << 32 | float_bits(sum);
  }
}

// Calls put(rank, key) for the k largest of `count` unique keys, starting at the thread `rotation`. Members that are
// ordered one after another start at different warps, so that they run in parallel.
template <class Put>
__device__ __forceinline__ void order_keys(const CudaBlock& block, const uint64_t* keys, int count, int k, int rotation,
                                           Put put) {
  for (int i = (block.thread_rank() + rotation) % block.size(); i < count; i += block.size()) {
    const uint64_t key = keys[i];
    int rank = 0;
#pragma unroll 4
    for (int j = 0; j < count; ++j) rank += keys[j] > key;
    if (rank < k) put(rank, key);
  }
}

}  // namespace unite
