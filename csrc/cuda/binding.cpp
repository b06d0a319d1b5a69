// The CUDA implementations of the operators: arguments, workspace, stream, launch.
//
// A call uses the workspace that is passed to it. Eager calls without one share a workspace per device and stream; it
// is zeroed when it grows. A call under graph capture must not use the shared one, because the graph may be replayed on
// any stream at any time. Without a workspace of its own it takes new memory from the graph's pool and records a memset
// before the kernel.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../part_arguments.h"
#include "step_parts.h"

namespace unite {
namespace {

using torch::stable::accelerator::DeviceGuard;

void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail(what, ": ", cudaGetErrorString(error));
}

void check_launch(cudaError_t error) {
  check_cuda(error, "launching the kernel");
}

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) != AOTI_TORCH_SUCCESS)
    fail("no CUDA stream");
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

// launch(memory, bytes, config, stream) is called once, with a workspace for `p`.
using Launch = std::function<cudaError_t(void* memory, size_t bytes, const LaunchConfig& config, cudaStream_t stream)>;

// The lock is held until the launch is enqueued, so that no other thread grows the workspace and frees it before.
cudaError_t launch_with_shared(const Tensor& like, size_t bytes, const LaunchConfig& config, cudaStream_t stream,
                               const Launch& launch) {
  static std::mutex mutex;
  // Never destroyed: at exit the CUDA driver may be gone before it.
  static auto& workspaces = *new std::map<std::pair<int32_t, cudaStream_t>, Tensor>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_pair(like.get_device_index(), stream);
  auto held = workspaces.find(key);
  if (held == workspaces.end() || static_cast<size_t>(held->second.size(0)) < bytes) {
    Tensor grown = device_bytes(bytes, like);
    zero(grown, bytes, stream);
    held = workspaces.insert_or_assign(key, grown).first;  // the old one is freed in stream order
  }
  return launch(held->second.data_ptr(), bytes, config, stream);
}

void launch_with_workspace(const StepParams& p, const Tensor& like, const std::optional<Tensor>& own,
                           const Launch& launch) {
  if (p.batch == 0) return;
  const cudaStream_t stream = current_stream(like);
  const LaunchConfig config = choose_launch(p, sm_count(like.get_device_index()));
  const size_t bytes = fused_step_workspace_bytes(p, config);
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  cudaError_t error;
  if (own.has_value()) {
    check_dense("workspace", *own, ScalarType::Byte, 1, like);
    if (static_cast<size_t>(own->size(0)) < bytes)
      fail("workspace must hold ", bytes, " bytes for these logits, got ", own->size(0),
           ": make it with unite_ext.step_workspace");
    error = launch(own->data_ptr(), bytes, config, stream);
  } else {
    check_cuda(cudaStreamIsCapturing(stream, &capture), "asking for the capture status");
    if (capture == cudaStreamCaptureStatusNone) {
      error = launch_with_shared(like, bytes, config, stream, launch);
    } else {
      const Tensor fresh = device_bytes(bytes, like);
      zero(fresh, bytes, stream);
      error = launch(fresh.data_ptr(), bytes, config, stream);
    }
  }
  check_launch(error);
}

StepOutputs fused_step(const std::vector<Tensor> logits, const Tensor table, const Tensor class_ids,
                       const Tensor eligible, const std::vector<int64_t> eligible_offsets,
                       const std::vector<int64_t> vocab_sizes, int64_t k, int64_t primary,
                       const std::vector<double> weights, const std::string score, const std::string duplicates,
                       const std::string combine, const std::optional<Tensor> include,
                       const std::optional<Tensor> workspace) {
  if (logits.empty()) fail("logits must not be empty");
  const DeviceGuard guard(logits[0].get_device_index());
  StepArguments step(logits, table, class_ids, eligible, eligible_offsets, vocab_sizes, k, primary, weights, score,
                     duplicates, combine, include);
  launch_with_workspace(step.params, logits[0], workspace,
                        [&](void* memory, size_t bytes, const LaunchConfig& config, cudaStream_t stream) {
                          return launch_fused_step(step.params, memory, bytes, config, stream);
                        });
  return step.outputs;
}

TopKeysOutputs top_k_keys(const Tensor logits, const Tensor eligible, int64_t eligible_offset, int64_t vocab_size,
                          int64_t k, const std::string score) {
  const DeviceGuard guard(logits.get_device_index());
  TopKeysArguments call(logits, eligible, eligible_offset, vocab_size, k, score);
  launch_with_workspace(call.part.step, logits, std::nullopt,
                        [&](void* memory, size_t bytes, const LaunchConfig& config, cudaStream_t stream) {
                          return launch_top_k_keys(call.part, memory, bytes, config, stream);
                        });
  return call.outputs;
}

UnionOutputs unite_keys(const Tensor keys, const Tensor table, const Tensor class_ids,
                        const std::vector<int64_t> vocab_sizes, int64_t primary, const std::vector<double> weights,
                        const std::string combine, const std::optional<Tensor> include) {
  const DeviceGuard guard(keys.get_device_index());
  UnionArguments call(keys, table, class_ids, vocab_sizes, primary, weights, combine, include);
  check_launch(launch_unite_keys(call.part, current_stream(keys)));
  return call.outputs;
}

Tensor gather_logits(const Tensor logits, const Tensor ids) {
  const DeviceGuard guard(logits.get_device_index());
  GatherArguments call(logits, ids);
  check_launch(launch_gather_logits(call.part, current_stream(logits)));
  return call.values;
}

Tensor score_slots(const Tensor values, const Tensor slots, const Tensor union_size, const Tensor keys,
                   const Tensor key_slots, const Tensor log_sums, const std::string score, const std::string duplicates,
                   const std::string combine) {
  const DeviceGuard guard(values.get_device_index());
  ScoreArguments call(values, slots, union_size, keys, key_slots, log_sums, score, duplicates, combine);
  check_launch(launch_score_slots(call.part, current_stream(values)));
  return call.scores;
}

StepOutputs combine_slots(const Tensor member_scores, const Tensor slots, const Tensor slot_classes,
                          const Tensor union_size, const Tensor status, int64_t primary,
                          const std::vector<double> weights, const std::string combine) {
  const DeviceGuard guard(member_scores.get_device_index());
  CombineArguments call(member_scores, slots, slot_classes, union_size, status, primary, weights, combine);
  check_launch(launch_combine_slots(call.part, current_stream(member_scores)));
  return call.outputs;
}

Tensor step_workspace(const std::vector<Tensor> logits, const std::vector<int64_t> vocab_sizes, int64_t k,
                      const std::string score) {
  const int64_t members = static_cast<int64_t>(logits.size());
  check_range("the number of logits", members, 1, kMaxMembers);
  check_range("k", k, 1, kMaxTopK);
  check_range("members * k", members * k, 1, kMaxWalk);
  check_length("vocab_sizes", vocab_sizes.size(), logits.size());
  const DeviceGuard guard(logits[0].get_device_index());
  StepParams p{};
  p.batch = static_cast<int32_t>(logits[0].size(0));
  p.members = static_cast<int32_t>(members);
  p.k = static_cast<int32_t>(k);
  p.score = parse_score(score);
  for (int m = 0; m < members; ++m) {
    p.logits[m].vocab_size = static_cast<int32_t>(vocab_sizes[m]);
    p.logits[m].dtype = detail::member_dtype("logits", logits[m]);
  }
  const LaunchConfig config = choose_launch(p, sm_count(logits[0].get_device_index()));
  size_t bytes = 0;
  for (const int include : {0, 1}) {  // the same memory serves steps with and without `include`
    p.num_slots = p.members * p.k + include;
    bytes = std::max(bytes, fused_step_workspace_bytes(p, config));
  }
  const Tensor workspace = device_bytes(bytes, logits[0]);
  zero(workspace, bytes, current_stream(logits[0]));
  return workspace;
}

}  // namespace
}  // namespace unite

STABLE_TORCH_LIBRARY_IMPL(unite_ext, CUDA, m) {
  m.impl("fused_step", TORCH_BOX(&unite::fused_step));
  m.impl("step_workspace", TORCH_BOX(&unite::step_workspace));
  m.impl("top_k_keys", TORCH_BOX(&unite::top_k_keys));
  m.impl("unite_keys", TORCH_BOX(&unite::unite_keys));
  m.impl("gather_logits", TORCH_BOX(&unite::gather_logits));
  m.impl("score_slots", TORCH_BOX(&unite::score_slots));
  m.impl("combine_slots", TORCH_BOX(&unite::combine_slots));
}
