// See fused_step.h.
#include "fused_step.h"

#include "../core/row_step.h"
#include "row_memory.h"
#include "row_scan.h"

namespace unite {

void fused_step_cpu(const StepParams& p, const Parallel& parallel) {
  RowScan::run(p, parallel, [&p](const RowScan& scan, int64_t row) {
    thread_local RowMemory memory;
    RowScratch s = memory.take(p);
    for (int m = 0; m < p.members; ++m) {
      scan.top_k(row, m, s.top + walk_position(m, p.primary) * p.k);
      if (p.score == Score::kProbs) s.log_sum[m] = scan.log_sum(row, m);
    }
    SerialBlock block;
    fuse_row(block, p, row, s);
  });
}

}  // namespace unite
