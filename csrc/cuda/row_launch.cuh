// Plans, workspaces and launches, on the host, of kernels that begin with every member's top-k.
#pragma once

#include <cstddef>
#include <cstdint>

#include "row_plan.cuh"

namespace unite {

inline bool valid(const StepParams& p, const LaunchConfig& config) {
  if (p.members < 1 || p.members > kMaxMembers || p.k < 1 || p.k > kMaxTopK || p.members * p.k > kMaxWalk) return false;
  if (p.primary < 0 || p.primary >= p.members || p.batch < 0) return false;
  // There may be a slot for `include` without one, as when a workspace is sized for both.
  const int walk = p.members * p.k;
  if (p.num_slots < walk + (p.include != nullptr ? 1 : 0) || p.num_slots > walk + 1) return false;
  if (config.threads < kWarp || config.threads > kMaxThreads || config.threads % kWarp != 0) return false;
  for (int m = 0; m < p.members; ++m)
    if (config.slices[m] < 1 || config.slices[m] > kMaxSlices) return false;
  return true;
}

// Slices start at multiples of 64 elements, so that all of a row's slices have the alignment of the row; for
// Score::kProbs also where a chunk starts.
inline RowPlan make_plan(const StepParams& p, const LaunchConfig& config, size_t& shared_bytes) {
  RowPlan plan{};
  const int unit = p.score == Score::kProbs ? kSumChunk : 64;
  for (int m = 0; m < p.members; ++m) {
    const int vocab = p.logits[m].vocab_size;
    const int64_t share = (static_cast<int64_t>(vocab) + config.slices[m] - 1) / config.slices[m];
    plan.length[m] = static_cast<int>(share < 1 ? unit : (share + unit - 1) / unit * unit);
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
  plan.words_per_row = plan.slices_per_row * p.k;
  for (int m = 0; m < p.members && p.score == Score::kProbs; ++m) {
    plan.sums_word[m] = plan.words_per_row;
    plan.words_per_row += (p.logits[m].vocab_size + kSumChunk - 1) / kSumChunk;
  }

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

inline int rows_per_launch(const StepParams& p, const RowPlan& plan) {
  const int64_t fitting = kMaxRecordBytes / (int64_t{8} * plan.words_per_row);
  const int64_t rows = fitting < kMaxRowsPerLaunch ? fitting : kMaxRowsPerLaunch;
  return static_cast<int>(p.batch < rows ? p.batch : rows);
}

constexpr size_t kCounterBytes = kMaxRowsPerLaunch * sizeof(unsigned);

inline size_t workspace_bytes(const StepParams& p, const RowPlan& plan) {
  return kCounterBytes + static_cast<size_t>(rows_per_launch(p, plan)) * plan.words_per_row * sizeof(uint64_t);
}

// Launches kernel(params, plan, arrivals, records, first row) for all rows of `p`, which `params` is or holds.
template <class Params>
cudaError_t launch_rows(void (*kernel)(Params, RowPlan, unsigned*, uint64_t*, int64_t), const StepParams& p,
                        const Params& params, void* workspace, size_t bytes, const LaunchConfig& config,
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
        launch_kernel(kernel, grid, config.threads, shared_bytes, stream, params, plan, arrivals, records, row);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace unite
