// The fused step: one ordinary launch from logits to next ids.
//
// The story. Every logit has to be read once; the rest of the step is a few hundred numbers per row. At a batch
// of 64 and more the reading is everything (Llama-3 and Qwen2 in bf16: 36 MB, 7.5 us at 4.8 TB/s); at a batch of
// one nothing but latencies is left, each a dependent trip to L2 or a barrier, and every one saved counts.
//
// So the grid is slices x rows. A CTA reads its slice of one row of one member (slice.cuh), reduces it to its
// top-k (top_k.cuh) and publishes k sorted keys. It then takes a ticket at the row's arrival counter. Whoever
// takes the last one knows that all keys of the row are written, merges them (merge.cuh) and runs the shared code
// of core/row_step.h for the row. No CTA ever waits for another, so it does not matter which of them are
// resident together; no second launch, and the counter wraps to zero by itself (atomicInc), so that nothing is
// reset between launches or graph replays.
//
// The choices behind it:
// - Slices are cut so that about two CTAs per SM exist, none shorter than 16 KiB: at a batch of one some 16 per
//   member, from a batch of 128 on one. Fewer leave SMs idle, more only lengthen the merge.
// - Larger vocabularies come first in the grid, so that the last CTAs to start are the short ones.
// - A slice prefetches the hash-map entries of its keys into L2: by the time the last CTA looks them up, it
//   finds them there. Keys that lose the merge cost a few bytes of traffic and no time.
// - The ticket's fences: a release before it (the keys, ordered before it by the barrier, are visible to
//   whoever sees the ticket) and an acquire after it (so that the keys are read after the ticket was).
// - 512 threads at 64 registers: two CTAs, 64 KiB of loads in flight, per SM; on Hopper about 25 KiB are needed
//   to cover the latency of device memory.
// - No opt-in shared memory: everything fits into 48 KiB but for the largest unions, whose slots then stay in the
//   row's record (row_plan.cuh).
#include "../core/row_step.h"
#include "fused_step.h"
#include "merge.cuh"

namespace unite {
namespace {

// Publishes the slice's k best keys in order, kNoKey padded.
__device__ void publish(const CudaBlock& block, const StepParams& p, int member, const SliceScratch& s, int count,
                        uint64_t* out) {
  order_keys(block, s.candidates, count, p.k, 0, [&](int rank, uint64_t key) {
    out[planted(kPublishPastEnd) ? rank + 1 : rank] = key;
    prefetch_to_l2(p.map + map_slot(map_key(member, key_id(key)), p.log2_capacity));
  });
  for (int i = count + block.thread_rank(); i < p.k; i += block.size()) out[i] = kNoKey;
}

template <class Logit>
__device__ void reduce_slice(const CudaBlock& block, const StepParams& p, int member, const Slice& slice,
                             const SliceScratch& s, uint64_t* out) {
  const SliceReader<Logit> reader(slice);
  float maximum;
  const int count = collect_candidates(block, reader, p.k, s, maximum);
  if (p.score == Score::kProbs) {
    const float2 statistics = softmax_statistics(block, reader, maximum, s);
    if (block.thread_rank() == 0)
      out[p.k] = static_cast<uint64_t>(float_bits(statistics.x)) << 32 | float_bits(statistics.y);
  }
  publish(block, p, member, s, count, out);
}

// True in all threads of the CTA that arrives last: everything the others published is then visible.
__device__ bool arrives_last(const CudaBlock& block, unsigned* arrivals, int expected, int* is_last) {
  delay_in_tests();
  if (!planted(kNoBarrierBeforeTicket)) block.sync();
  if (block.thread_rank() == 0) {
    if (planted(kNarrowReleaseFence)) {
      __threadfence_block();
    } else if (!planted(kNoReleaseFence)) {
      __threadfence();
    }
    delay_in_tests();
    const unsigned last = static_cast<unsigned>(expected - 1);
    const unsigned ticket = planted(kTicketNotReset) ? atomicAdd(arrivals, 1u) : atomicInc(arrivals, last);
    *is_last = ticket == last;
    delay_in_tests();
    if (!planted(kNoAcquireFence)) __threadfence();
  }
  if (planted(kEarlyReturn) && block.group_rank() == 1) return false;
  block.sync();
  return *is_last != 0;
}

// grid: (slices of a row, rows). Rows are numbered from first_row on.
__global__ void __launch_bounds__(kMaxThreads, 2)
    fused_step_kernel(const __grid_constant__ StepParams p, const __grid_constant__ RowPlan plan, unsigned* arrivals,
                      uint64_t* records, int64_t first_row) {
  const int64_t row = first_row + blockIdx.y;
  const int slice_index = static_cast<int>(blockIdx.x);
  uint64_t* record = records + static_cast<int64_t>(blockIdx.y) * plan.words_per_row;

  Arena arena{dynamic_shared(), 0};
  const RowControl control = take_control(arena, p);
  const Arena phase = arena;  // the three phases use the rest one after another
  CudaBlock block(control.warp_totals);

  {
    Arena memory = phase;
    const SliceScratch scratch = take_slice_scratch(memory, block.size());
    const int member = member_of_slice(plan, p.members, slice_index);
    const MemberLogits& logits = p.logits[member];
    const int begin = (slice_index - plan.first[member]) * plan.length[member];
    const int rest = logits.vocab_size - begin;
    const Slice slice{row_pointer(logits, row), reinterpret_cast<const uint8_t*>(logits.eligible), begin,
                      begin + (rest < plan.length[member] ? rest : plan.length[member])};
    uint64_t* out = record + slice_index * plan.words_per_slice;
    if (logits.dtype == Dtype::kFloat32) {
      reduce_slice<Float32>(block, p, member, slice, scratch, out);
    } else if (logits.dtype == Dtype::kBFloat16) {
      reduce_slice<BFloat16>(block, p, member, slice, scratch, out);
    } else {
      reduce_slice<Float16>(block, p, member, slice, scratch, out);
    }
  }
  if (!arrives_last(block, arrivals + blockIdx.y, plan.slices_per_row, control.is_last)) return;

  {
    Arena memory = phase;
    const MergeScratch scratch = take_merge_scratch(memory, p, plan);
    merge_row(block, p, plan, record, scratch, control);
  }
  {
    Arena memory = phase;
    uint64_t* spill = plan.spill_word < 0 ? nullptr : record + plan.spill_word;
    fuse_row(block, p, row, take_row_scratch(memory, p, control, spill));
  }
}

bool valid(const StepParams& p, const LaunchConfig& config) {
  if (p.members < 1 || p.members > kMaxMembers || p.k < 1 || p.k > kMaxTopK || p.members * p.k > kMaxWalk) return false;
  if (p.primary < 0 || p.primary >= p.members || p.batch < 0) return false;
  // The slot for `include` may be there without one, as when a workspace is sized for both.
  const int walk = p.members * p.k;
  if (p.num_slots < walk + (p.include != nullptr ? 1 : 0) || p.num_slots > walk + 1) return false;
  if (config.threads < kWarp || config.threads > kMaxThreads || config.threads % kWarp != 0) return false;
  for (int m = 0; m < p.members; ++m)
    if (config.slices[m] < 1 || config.slices[m] > kMaxSlices) return false;
  return true;
}

// Slices start at multiples of 64 elements, so that all of a row's slices have the alignment of the row.
RowPlan make_plan(const StepParams& p, const LaunchConfig& config, size_t& shared_bytes) {
  RowPlan plan{};
  plan.words_per_slice = p.k + (p.score == Score::kProbs ? 1 : 0);
  for (int m = 0; m < p.members; ++m) {
    const int vocab = p.logits[m].vocab_size;
    const int64_t share = (static_cast<int64_t>(vocab) + config.slices[m] - 1) / config.slices[m];
    plan.length[m] = static_cast<int>(share < 1 ? 64 : (share + 63) / 64 * 64);
    plan.slices[m] = vocab < 1 ? 1 : (vocab - 1) / plan.length[m] + 1;
  }
  bool placed[kMaxMembers] = {};
  for (int n = 0; n < p.members; ++n) {
    int next = -1;
    for (int m = 0; m < p.members; ++m)
      if (!placed[m] && (next < 0 || plan.length[m] > plan.length[next])) next = m;
    placed[next] = true;
    plan.first[next] = plan.slices_per_row;
    plan.slices_per_row += plan.slices[next];
  }
  plan.words_per_row = plan.slices_per_row * plan.words_per_slice;

  for (bool spills : {false, true}) {
    Arena arena{nullptr, 0};
    const RowControl control = take_control(arena, p);
    Arena slice = arena, merge = arena, row = arena;
    take_slice_scratch(slice, config.threads);
    take_merge_scratch(merge, p, plan);
    uint64_t in_record = 0;
    take_row_scratch(row, p, control, spills ? &in_record : nullptr);
    shared_bytes = slice.used > merge.used ? slice.used : merge.used;
    shared_bytes = row.used > shared_bytes ? row.used : shared_bytes;
    plan.spill_word = spills ? 0 : -1;  // the merge is done with the keys by the time slots are written
    const int spilled_words = spills ? p.num_slots * p.members : 0;
    plan.words_per_row = spilled_words > plan.words_per_row ? spilled_words : plan.words_per_row;
    if (shared_bytes <= kMaxSharedBytes) break;
  }
  return plan;
}

int rows_per_launch(const StepParams& p, const RowPlan& plan) {
  const int64_t fitting = kMaxRecordBytes / (int64_t{8} * plan.words_per_row);
  const int64_t rows = fitting < kMaxRowsPerLaunch ? fitting : kMaxRowsPerLaunch;
  return static_cast<int>(p.batch < rows ? p.batch : rows);
}

constexpr size_t kCounterBytes = kMaxRowsPerLaunch * sizeof(unsigned);

size_t workspace_bytes(const StepParams& p, const RowPlan& plan) {
  return kCounterBytes + static_cast<size_t>(rows_per_launch(p, plan)) * plan.words_per_row * sizeof(uint64_t);
}

}  // namespace

LaunchConfig choose_launch(const StepParams& p, int sm_count) {
  constexpr int64_t kMinSliceBytes = 16 << 10;
  constexpr int kCtasPerSm = 2;
  LaunchConfig config{};
  config.threads = kMaxThreads;
  double row_bytes = 0;
  for (int m = 0; m < p.members; ++m)
    row_bytes += static_cast<double>(p.logits[m].vocab_size) * (p.logits[m].dtype == Dtype::kFloat32 ? 4 : 2);
  const double ctas_per_row = static_cast<double>(kCtasPerSm) * sm_count / (p.batch < 1 ? 1 : p.batch);
  for (int m = 0; m < p.members; ++m) {
    const double bytes = static_cast<double>(p.logits[m].vocab_size) * (p.logits[m].dtype == Dtype::kFloat32 ? 4 : 2);
    int slices = row_bytes > 0 ? static_cast<int>(ctas_per_row * bytes / row_bytes + 0.5) : 1;
    const int by_size = static_cast<int>(bytes / kMinSliceBytes);
    const int by_merge = kMaxKeysPerRow / (p.members * p.k);
    slices = slices < by_size ? slices : by_size;
    slices = slices < by_merge ? slices : by_merge;
    slices = slices < kMaxSlices ? slices : kMaxSlices;
    config.slices[m] = slices < 1 ? 1 : slices;
  }
  return config;
}

size_t fused_step_workspace_bytes(const StepParams& p, const LaunchConfig& config) {
  if (!valid(p, config)) return 0;
  size_t shared_bytes;
  return workspace_bytes(p, make_plan(p, config, shared_bytes));
}

cudaError_t launch_fused_step(const StepParams& p, void* workspace, size_t bytes, const LaunchConfig& config,
                              cudaStream_t stream) {
  if (!valid(p, config)) return cudaErrorInvalidValue;
  if (p.batch == 0) return cudaSuccess;
  size_t shared_bytes;
  const RowPlan plan = make_plan(p, config, shared_bytes);
  if (shared_bytes > kMaxSharedBytes) return cudaErrorInvalidConfiguration;
  if (workspace == nullptr || reinterpret_cast<uintptr_t>(workspace) % sizeof(uint64_t) != 0 ||
      bytes < workspace_bytes(p, plan))
    return cudaErrorInvalidValue;
  unsigned* arrivals = static_cast<unsigned*>(workspace);
  uint64_t* records = reinterpret_cast<uint64_t*>(static_cast<char*>(workspace) + kCounterBytes);

  const int rows = rows_per_launch(p, plan);
  for (int64_t row = 0; row < p.batch; row += rows) {
    const int64_t left = p.batch - row;
    const dim3 grid(plan.slices_per_row, static_cast<unsigned>(left < rows ? left : rows));
    const cudaError_t error =
        launch_kernel(fused_step_kernel, grid, config.threads, shared_bytes, stream, p, plan, arrivals, records, row);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace unite
