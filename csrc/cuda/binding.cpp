// The CUDA implementations of the operators: arguments, workspace, stream, launch.
//
// A call uses the workspace it is given. Eager calls without one share a workspace per device and stream, which grows
// and is zeroed when it does. A call under graph capture must not touch that one, since the graph may be replayed on
// any stream at any time: without a workspace of its own it takes fresh memory from the graph's pool and records a
// memset before the kernel.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../step_arguments.h"
#include "fused_step.h"

namespace unite {
namespace {

void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail(what, ": ", cudaGetErrorString(error));
}

cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream(device, &stream) != AOTI_TORCH_SUCCESS) fail("no CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

int sm_count(int32_t device) {
  static std::mutex mutex;
  static std::map<int32_t, int> counts;
  const std::lock_guard<std::mutex> lock(mutex);
  int& count = counts[device];
  if (count == 0)
    check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "asking for the number of SMs");
  return count;
}

// Uninitialised bytes on the device of `like`, from torch's allocator.
Tensor device_bytes(size_t bytes, const Tensor& like) {
  return detail::empty({static_cast<int64_t>(bytes)}, aoti_torch_dtype_uint8(), like);
}

void zero(const Tensor& memory, size_t bytes, cudaStream_t stream) {
  check_cuda(cudaMemsetAsync(memory.data_ptr(), 0, bytes, stream), "zeroing the workspace");
}

void launch(const StepParams& p, const Tensor& workspace, size_t bytes, const LaunchConfig& config,
            cudaStream_t stream) {
  check_cuda(launch_fused_step(p, workspace.data_ptr(), bytes, config, stream), "launching the kernel");
}

void launch_with_own(const StepParams& p, const Tensor& workspace, const Tensor& first, size_t bytes,
                     const LaunchConfig& config, cudaStream_t stream) {
  check_dense("workspace", workspace, ScalarType::Byte, 1, first);
  if (static_cast<size_t>(workspace.size(0)) < bytes)
    fail("workspace must hold ", bytes, " bytes for these logits, got ", workspace.size(0),
         ": make it with unite_ext.step_workspace");
  launch(p, workspace, bytes, config, stream);
}

// The lock is held until the launch is enqueued: another thread that makes the workspace grow must not free it between.
void launch_with_shared(const StepParams& p, const Tensor& first, size_t bytes, const LaunchConfig& config,
                        int32_t device, cudaStream_t stream) {
  static std::mutex mutex;
  // Never destroyed: at exit the CUDA driver may be gone before it.
  static auto& workspaces = *new std::map<std::pair<int32_t, cudaStream_t>, Tensor>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_pair(device, stream);
  auto held = workspaces.find(key);
  if (held == workspaces.end() || static_cast<size_t>(held->second.size(0)) < bytes) {
    Tensor grown = device_bytes(bytes, first);
    zero(grown, bytes, stream);
    held = workspaces.insert_or_assign(key, grown).first;  // the old one is freed in stream order
  }
  launch(p, held->second, bytes, config, stream);
}

StepOutputs fused_step(const std::vector<Tensor> logits, const Tensor table, const Tensor class_ids,
                       const Tensor eligible, const std::vector<int64_t> eligible_offsets,
                       const std::vector<int64_t> vocab_sizes, int64_t k, int64_t primary,
                       const std::vector<double> weights, const std::string score, const std::string duplicates,
                       const std::optional<Tensor> include, const std::optional<Tensor> workspace) {
  if (logits.empty()) fail("logits must not be empty");
  const Tensor first = logits[0];
  const int32_t device = first.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  StepArguments step(logits, table, class_ids, eligible, eligible_offsets, vocab_sizes, k, primary, weights, score,
                     duplicates, include);
  const StepParams& p = step.params;
  if (p.batch == 0) return step.outputs;

  const cudaStream_t stream = current_stream(device);
  const LaunchConfig config = choose_launch(p, sm_count(device));
  const size_t bytes = fused_step_workspace_bytes(p, config);
  if (workspace.has_value()) {
    launch_with_own(p, *workspace, first, bytes, config, stream);
    return step.outputs;
  }
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream, &capture), "asking for the capture status");
  if (capture == cudaStreamCaptureStatusNone) {
    launch_with_shared(p, first, bytes, config, device, stream);
  } else {
    const Tensor fresh = device_bytes(bytes, first);
    zero(fresh, bytes, stream);
    launch(p, fresh, bytes, config, stream);
  }
  return step.outputs;
}

Tensor step_workspace(const std::vector<Tensor> logits, const std::vector<int64_t> vocab_sizes, int64_t k,
                      const std::string score) {
  const int64_t members = static_cast<int64_t>(logits.size());
  check_range("the number of logits", members, 1, kMaxMembers);
  check_range("k", k, 1, kMaxTopK);
  check_range("members * k", members * k, 1, kMaxWalk);
  check_length("vocab_sizes", vocab_sizes.size(), logits.size());
  const int32_t device = logits[0].get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  StepParams p{};
  p.batch = static_cast<int32_t>(logits[0].size(0));
  p.members = static_cast<int32_t>(members);
  p.k = static_cast<int32_t>(k);
  p.score = parse_score(score);
  for (int m = 0; m < members; ++m) {
    p.logits[m].vocab_size = static_cast<int32_t>(vocab_sizes[m]);
    p.logits[m].dtype = detail::member_dtype("logits", logits[m]);
  }
  const LaunchConfig config = choose_launch(p, sm_count(device));
  size_t bytes = 0;
  for (const int include : {0, 1}) {  // the same memory serves steps with and without `include`
    p.num_slots = p.members * p.k + include;
    bytes = std::max(bytes, fused_step_workspace_bytes(p, config));
  }
  const Tensor workspace = device_bytes(bytes, logits[0]);
  zero(workspace, bytes, current_stream(device));
  return workspace;
}

}  // namespace
}  // namespace unite

STABLE_TORCH_LIBRARY_IMPL(unite_ext, CUDA, m) {
  m.impl("fused_step", TORCH_BOX(&unite::fused_step));
  m.impl("step_workspace", TORCH_BOX(&unite::step_workspace));
}
