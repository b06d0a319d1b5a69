// The parts of the step on a CUDA device, without ATen and c10: they take raw pointers and return an error code.
//
// Every call enqueues one kernel launch on `stream` and returns, without allocating and without waiting.
#pragma once

#include "../core/part_params.h"
#include "fused_step.h"

namespace unite {

// Configuration and workspace are those of a fused step of `part.step`: choose_launch, fused_step_workspace_bytes. Both
// kinds of launches may use one workspace alternately. Here too, many thousand rows need several launches.
cudaError_t launch_top_k_keys(const TopKeysPart& part, void* workspace, size_t workspace_bytes,
                              const LaunchConfig& config, cudaStream_t stream);

cudaError_t launch_unite_keys(const UnionPart& part, cudaStream_t stream);
cudaError_t launch_gather_logits(const GatherPart& part, cudaStream_t stream);
cudaError_t launch_score_slots(const ScorePart& part, cudaStream_t stream);
cudaError_t launch_combine_slots(const CombinePart& part, cudaStream_t stream);

}  // namespace unite
