// The fused step: one ordinary launch from logits to next ids.
//
// The story. Every logit has to be read once; the rest of the step is a few hundred numbers per row. At a batch of 64
// and more the time is that of reading (Llama-3 and Qwen2 in bf16: 36 MB, 7.5 us at 4.8 TB/s). At a batch of one it is
// that of latencies, each a dependent access to L2 or a barrier, so every one that is saved counts.
//
// Therefore the grid is slices x rows. A CTA reads its slice of one row of one member (slice.cuh), reduces it to its
// top-k (top_k.cuh) and publishes k sorted keys. It then takes a ticket at the row's arrival counter. The CTA with the
// last ticket knows that all keys of the row are written. It merges them (merge.cuh; row_top_k.cuh has everything up to
// here) and runs the shared code of core/row_step.h for the row. No CTA ever waits for another, so it does not matter
// which of them are resident at the same time. There is no second launch. The counter wraps to zero by itself
// (atomicInc), so nothing is reset between launches or graph replays.
//
// The choices:
// - There are about two slices per SM, none shorter than 16 KiB: some 16 per member at a batch of one, and one from a
//   batch of 128 on. Fewer leave SMs idle, more only make the merge longer.
// - Larger vocabularies come first in the grid, so that the last CTAs to start have the shortest slices.
// - A slice prefetches the hash-map entries of its keys into L2, where the last CTA finds them. Keys that lose the
//   merge cost a few bytes of traffic and no time.
// - The ticket's fences: a release before it (the keys, ordered before it by the barrier, are visible to the CTA that
//   sees the ticket) and an acquire after it (so that the keys are read after the ticket).
// - 512 threads at 64 registers: two CTAs, 64 KiB of loads in flight, per SM; on Hopper about 25 KiB are needed
//   to cover the latency of device memory.
// - For Score::kProbs a member's probabilities are summed in chunks with fixed ends, whatever the slices are, so that
//   the step in parts (step_parts.cu) gives the same bits.
// - No opt-in shared memory: everything fits into 48 KiB except the largest unions, whose slots then stay in the
//   row's record (row_plan.cuh).
#include "../core/row_step.h"
#include "fused_step.h"
#include "row_launch.cuh"
#include "row_top_k.cuh"

namespace unite {
namespace {

// grid: (slices of a row, rows). Rows are numbered from first_row on.
__global__ void __launch_bounds__(kMaxThreads, 2)
    fused_step_kernel(const __grid_constant__ StepParams p, const __grid_constant__ RowPlan plan, unsigned* arrivals,
                      uint64_t* records, int64_t first_row) {
  const int64_t row = first_row + blockIdx.y;
  uint64_t* record = records + static_cast<int64_t>(blockIdx.y) * plan.words_per_row;
  Arena arena{dynamic_shared(), 0};
  const RowControl control = take_control(arena, p);
  CudaBlock block(control.warp_totals);

  if (!find_top_k(block, p, plan, row, arrivals + blockIdx.y, record, control, arena)) return;
  uint64_t* spill = plan.spill_word < 0 ? nullptr : record + plan.spill_word;
  fuse_row(block, p, row, take_row_scratch(arena, p, control, spill));
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
  return launch_rows(fused_step_kernel, p, p, workspace, bytes, config, stream);
}

}  // namespace unite
