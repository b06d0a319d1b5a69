// The parts of the step on the CPU, one call each: core/row_parts.h row by row.
#pragma once

#include "../core/part_params.h"
#include "parallel.h"

namespace unite {

// Arguments are not checked here.
void top_k_keys_cpu(const TopKeysPart& part, const Parallel& parallel);
void unite_keys_cpu(const UnionPart& part, const Parallel& parallel);
void gather_logits_cpu(const GatherPart& part, const Parallel& parallel);
void score_slots_cpu(const ScorePart& part, const Parallel& parallel);
void combine_slots_cpu(const CombinePart& part, const Parallel& parallel);

}  // namespace unite
