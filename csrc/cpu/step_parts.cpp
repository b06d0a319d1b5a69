// See step_parts.h.
#include "step_parts.h"

#include "../core/row_parts.h"
#include "row_memory.h"
#include "row_scan.h"

namespace unite {

namespace {

RowMemory& row_memory() {
  thread_local RowMemory memory;
  return memory;
}

// Waking threads costs more than a row or two; `fields` is the number of values of a row.
void for_each_row(int64_t rows, int64_t fields, const Parallel& parallel, const Parallel::Task& task) {
  constexpr int64_t kWorthThreads = 8192;
  if (parallel.num_threads > 1 && rows * fields >= kWorthThreads) return parallel.run(rows, task);
  for (int64_t row = 0; row < rows; ++row) task(row);
}

}  // namespace

void top_k_keys_cpu(const TopKeysPart& part, const Parallel& parallel) {
  RowScan::run(part.step, parallel, [&part](const RowScan& scan, int64_t row) {
    scan.top_k(row, 0, part.keys + row * part.step.k);
    part.log_sums[row] = part.step.score == Score::kProbs ? scan.log_sum(row, 0) : 0.0f;
  });
}

void unite_keys_cpu(const UnionPart& part, const Parallel& parallel) {
  const StepParams& p = part.step;
  for_each_row(p.batch, int64_t{p.members} * p.k, parallel, [&](int64_t row) {
    RowScratch s = row_memory().take(p);
    s.slot_id = part.slots + row * p.num_slots * p.members;
    s.slot_class = part.slot_classes + row * p.num_slots;
    SerialBlock block;
    unite_row(block, part, row, s);
  });
}

void gather_logits_cpu(const GatherPart& part, const Parallel& parallel) {
  for_each_row(part.batch, part.num_slots, parallel, [&](int64_t row) { gather_row(SerialBlock(), part, row); });
}

void score_slots_cpu(const ScorePart& part, const Parallel& parallel) {
  for_each_row(part.batch, part.num_slots, parallel, [&](int64_t row) {
    RowMemory& memory = row_memory();
    score_row(SerialBlock(), part, row, memory.ids(part.num_slots), memory.table(part.num_slots));
  });
}

void combine_slots_cpu(const CombinePart& part, const Parallel& parallel) {
  for_each_row(part.step.batch, int64_t{part.step.num_slots} * part.step.members, parallel,
               [&](int64_t row) { combine_row(SerialBlock(), part, row); });
}

}  // namespace unite
