// A C interface over the kernel, its launcher and the emulator, for ctypes (tests/cuda_on_cpu/emulator.py).
#include "../../csrc/cuda/fused_step.cu"
#include "../../csrc/cuda/step_parts.cu"

using namespace unite;

#define EXPORT extern "C" __attribute__((visibility("default")))

static std::string last_error;

EXPORT const char* emu_error() {
  return last_error.c_str();
}
EXPORT size_t emu_params_bytes() {
  return sizeof(StepParams);
}
EXPORT void emu_options(uint64_t seed, int policy, int resident, double preempt, double preempt_access) {
  emu::options.seed = seed;
  emu::options.policy = static_cast<emu::Options::Policy>(policy);
  emu::options.resident = static_cast<unsigned>(resident);
  emu::options.preempt = preempt;
  emu::options.preempt_access = preempt_access;
}
EXPORT void emu_buffer(const void* buffer, size_t bytes, const char* name, int initialised, int writable) {
  emu::global_buffer(buffer, bytes, name, initialised != 0, writable != 0);
}
EXPORT void emu_forget_buffers() {
  emu::forget_buffers();
}
EXPORT void emu_choose_launch(const StepParams* params, int sm_count, LaunchConfig* config) {
  *config = choose_launch(*params, sm_count);
}
EXPORT size_t emu_workspace_bytes(const StepParams* params, const LaunchConfig* config) {
  return fused_step_workspace_bytes(*params, *config);
}

// What a launcher returns: a cudaError_t, or -1 with emu_error() when the run itself went wrong.
template <class Launch>
static int run(Launch launch) {
  try {
    return launch();
  } catch (const emu::Error& error) {
    last_error = error.what();
    return -1;
  }
}
EXPORT int emu_fused_step(const StepParams* params, void* workspace, size_t bytes, const LaunchConfig* config) {
  return run([&] { return launch_fused_step(*params, workspace, bytes, *config, nullptr); });
}
EXPORT int emu_top_k_keys(const TopKeysPart* part, void* workspace, size_t bytes, const LaunchConfig* config) {
  return run([&] { return launch_top_k_keys(*part, workspace, bytes, *config, nullptr); });
}
EXPORT int emu_unite_keys(const UnionPart* part) {
  return run([&] { return launch_unite_keys(*part, nullptr); });
}
EXPORT int emu_gather_logits(const GatherPart* part) {
  return run([&] { return launch_gather_logits(*part, nullptr); });
}
EXPORT int emu_score_slots(const ScorePart* part) {
  return run([&] { return launch_score_slots(*part, nullptr); });
}
EXPORT int emu_combine_slots(const CombinePart* part) {
  return run([&] { return launch_combine_slots(*part, nullptr); });
}
EXPORT size_t emu_part_bytes(int part) {
  const size_t bytes[] = {sizeof(TopKeysPart), sizeof(UnionPart), sizeof(GatherPart), sizeof(ScorePart),
                          sizeof(CombinePart)};
  return bytes[part];
}
