// The fused step on a CUDA device, without ATen and c10: it takes raw pointers and returns an error code.
//
//   LaunchConfig config = choose_launch(params, sm_count);
//   size_t bytes = fused_step_workspace_bytes(params, config);   // of a buffer zeroed once, before its first use
//   cudaError_t error = launch_fused_step(params, workspace, bytes, config, stream);
//
// A launch leaves the workspace ready for the next one, whatever its shapes, so it is never reset. Two launches that
// may run at the same time (two streams, two captured graphs) need a workspace each.
#pragma once

#include <cstddef>

#ifndef CUDA_EMU
#include <cuda_runtime_api.h>
#endif

#include "../core/step_params.h"

namespace unite {

constexpr int kMaxThreads = 512;
constexpr int kMaxSlices = 32;  // per row and member

struct LaunchConfig {
  int threads;              // per CTA: a multiple of 32
  int slices[kMaxMembers];  // how many CTAs share one row of each member
};

LaunchConfig choose_launch(const StepParams& params, int sm_count);

// Grows with batch, members, k and slices up to about 64 MiB. The buffer may be larger; it is aligned to 8 bytes.
size_t fused_step_workspace_bytes(const StepParams& params, const LaunchConfig& config);

// Enqueues the step on `stream` and returns, without allocating and without waiting. There is one kernel launch for all
// rows and members; only batches of many thousand rows need several, one after another.
cudaError_t launch_fused_step(const StepParams& params, void* workspace, size_t workspace_bytes,
                              const LaunchConfig& config, cudaStream_t stream);

}  // namespace unite
