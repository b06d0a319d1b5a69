// The whole step on the CPU: every member's top-k (row_scan.h), then core/row_step.h row by row.
#pragma once

#include "../core/step_params.h"
#include "parallel.h"

namespace unite {

// Fills every output of `p`. Arguments are not checked here. status[] says which rows failed and why.
void fused_step_cpu(const StepParams& p, const Parallel& parallel);

}  // namespace unite
