// The parts of the step, one kernel each: core/row_parts.h with a CTA per row.
//
// Only top_k_keys reads whole rows of logits; it is the fused kernel up to its merge. The others use a few hundred
// numbers per row, so their time is that of a launch, and they are written simply.
#include "../core/row_parts.h"
#include "row_launch.cuh"
#include "row_top_k.cuh"
#include "step_parts.h"

namespace unite {
namespace {

constexpr int kPartThreads = 128;

// grid: (slices of a row, rows), as in the fused kernel.
__global__ void __launch_bounds__(kMaxThreads, 2)
    top_k_keys_kernel(const __grid_constant__ TopKeysPart part, const __grid_constant__ RowPlan plan,
                      unsigned* arrivals, uint64_t* records, int64_t first_row) {
  const StepParams& p = part.step;
  const int64_t row = first_row + blockIdx.y;
  uint64_t* record = records + static_cast<int64_t>(blockIdx.y) * plan.words_per_row;
  Arena arena{dynamic_shared(), 0};
  const RowControl control = take_control(arena, p);
  const CudaBlock block(control.warp_totals);

  if (!find_top_k(block, p, plan, row, arrivals + blockIdx.y, record, control, arena)) return;
  for (int i = block.thread_rank(); i < p.k; i += block.size()) part.keys[row * p.k + i] = control.top[i];
  if (block.thread_rank() == 0) part.log_sums[row] = p.score == Score::kProbs ? control.log_sum[0] : 0.0f;
}

// The row's slots are built in the outputs.
UNITE_HOST_DEVICE inline RowScratch take_union_scratch(Arena& arena, const UnionPart& part, int64_t row) {
  const StepParams& p = part.step;
  const int walk = p.members * p.k;
  RowScratch s{};
  s.top = arena.take<uint64_t>(walk);
  s.entry_class = arena.take<int32_t>(walk);
  s.table.capacity = IndexTable::capacity_for(walk);
  s.table.keys = arena.take<int32_t>(s.table.capacity);
  s.table.indices = arena.take<int32_t>(s.table.capacity);
  s.size = arena.take<int32_t>(1);
  s.shared_class = arena.take<int32_t>(1);
  s.slot_id = part.slots + row * p.num_slots * p.members;
  s.slot_class = part.slot_classes + row * p.num_slots;
  return s;
}

__global__ void __launch_bounds__(kPartThreads) unite_keys_kernel(const __grid_constant__ UnionPart part) {
  Arena arena{dynamic_shared(), 0};
  CudaBlock block(arena.take<int>(CudaBlock::kSharedInts));
  unite_row(block, part, blockIdx.x, take_union_scratch(arena, part, blockIdx.x));
}

__global__ void __launch_bounds__(kPartThreads) gather_logits_kernel(const __grid_constant__ GatherPart part) {
  gather_row(CudaBlock(nullptr), part, blockIdx.x);
}

struct ScoreScratch {
  int32_t* ids;
  IndexTable table;
};

UNITE_HOST_DEVICE inline ScoreScratch take_score_scratch(Arena& arena, const ScorePart& part) {
  ScoreScratch s;
  s.ids = arena.take<int32_t>(part.num_slots);
  s.table.capacity = part.duplicates == Duplicates::kDrop ? IndexTable::capacity_for(part.num_slots) : 0;
  s.table.keys = arena.take<int32_t>(s.table.capacity);
  s.table.indices = arena.take<int32_t>(s.table.capacity);
  return s;
}

__global__ void __launch_bounds__(kPartThreads) score_slots_kernel(const __grid_constant__ ScorePart part) {
  Arena arena{dynamic_shared(), 0};
  const ScoreScratch s = take_score_scratch(arena, part);
  score_row(CudaBlock(nullptr), part, blockIdx.x, s.ids, s.table);
}

__global__ void __launch_bounds__(kPartThreads) combine_slots_kernel(const __grid_constant__ CombinePart part) {
  combine_row(CudaBlock(nullptr), part, blockIdx.x);
}

template <class Part>
cudaError_t launch_each_row(void (*kernel)(Part), const Part& part, int32_t rows, size_t shared_bytes,
                            cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  return launch_kernel(kernel, dim3(static_cast<unsigned>(rows)), kPartThreads, shared_bytes, stream, part);
}

bool in_range(int32_t value, int32_t low, int32_t high) {
  return value >= low && value <= high;
}

}  // namespace

cudaError_t launch_top_k_keys(const TopKeysPart& part, void* workspace, size_t bytes, const LaunchConfig& config,
                              cudaStream_t stream) {
  if (part.step.members != 1) return cudaErrorInvalidValue;
  return launch_rows(top_k_keys_kernel, part.step, part, workspace, bytes, config, stream);
}

cudaError_t launch_unite_keys(const UnionPart& part, cudaStream_t stream) {
  const StepParams& p = part.step;
  const int32_t walk = p.members * p.k;
  if (!in_range(p.members, 1, kMaxMembers) || !in_range(p.k, 1, kMaxTopK) || walk > kMaxWalk || p.batch < 0 ||
      !in_range(p.primary, 0, p.members - 1) || p.num_slots != walk + (p.include != nullptr ? 1 : 0))
    return cudaErrorInvalidValue;
  Arena arena{nullptr, 0};
  arena.take<int>(CudaBlock::kSharedInts);
  take_union_scratch(arena, part, 0);
  return launch_each_row(unite_keys_kernel, part, p.batch, arena.used, stream);
}

cudaError_t launch_gather_logits(const GatherPart& part, cudaStream_t stream) {
  if (part.batch < 0 || !in_range(part.num_slots, 1, kMaxSlots)) return cudaErrorInvalidValue;
  return launch_each_row(gather_logits_kernel, part, part.batch, 0, stream);
}

cudaError_t launch_score_slots(const ScorePart& part, cudaStream_t stream) {
  if (part.batch < 0 || !in_range(part.num_slots, 1, kMaxSlots) || !in_range(part.k, 1, kMaxTopK))
    return cudaErrorInvalidValue;
  Arena arena{nullptr, 0};
  take_score_scratch(arena, part);
  return launch_each_row(score_slots_kernel, part, part.batch, arena.used, stream);
}

cudaError_t launch_combine_slots(const CombinePart& part, cudaStream_t stream) {
  const StepParams& p = part.step;
  if (p.batch < 0 || !in_range(p.members, 1, kMaxMembers) || !in_range(p.num_slots, 1, kMaxSlots) ||
      !in_range(p.primary, 0, p.members - 1))
    return cudaErrorInvalidValue;
  return launch_each_row(combine_slots_kernel, part, p.batch, 0, stream);
}

}  // namespace unite
