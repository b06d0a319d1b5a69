// A C interface over the kernel, its launcher and the shim, for ctypes (tests/cuda_on_cpu/emulator.py).
#include "../../csrc/cuda/fused_step.cu"

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
EXPORT void emu_plant(int bug) {
  planted_bug = bug;
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
// A cudaError_t, or -1 with emu_error() when the run itself went wrong.
EXPORT int emu_fused_step(const StepParams* params, void* workspace, size_t bytes, const LaunchConfig* config) {
  try {
    return launch_fused_step(*params, workspace, bytes, *config, nullptr);
  } catch (const emu::Error& error) {
    last_error = error.what();
    return -1;
  }
}
