// A C interface over the launcher on the device, for ctypes: reaches what the operator does not expose, such as the
// launch's shape. tests/gpu/conftest.py also builds it over kernels with random delays around the ticket.
#include "../../csrc/cuda/fused_step.cu"

using namespace unite;

extern "C" size_t gpu_workspace_bytes(const StepParams* params, const LaunchConfig* config) {
  return fused_step_workspace_bytes(*params, *config);
}
extern "C" void gpu_choose_launch(const StepParams* params, int sm_count, LaunchConfig* config) {
  *config = choose_launch(*params, sm_count);
}
extern "C" int gpu_fused_step(const StepParams* params, void* workspace, size_t bytes, const LaunchConfig* config,
                              void* stream) {
  return launch_fused_step(*params, workspace, bytes, *config, static_cast<cudaStream_t>(stream));
}
extern "C" int gpu_last_error() {
  return cudaGetLastError();
}
