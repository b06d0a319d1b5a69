// The launcher with a plain array indexed by id in place of the hash map, its natural rival, and an empty kernel.
//
// Every member has a stretch of 2^18 entries, of which only those of its ids are ever touched. The first look always
// decides, so that core/hash_map.h's probing does not run. benchmarks/bench_step_cuda.py fills the array.
#define UNITE_MAP_SLOT(key, log2_capacity) \
  (static_cast<void>(log2_capacity), static_cast<uint32_t>((key) >> kIdBits << 18 | ((key) & kIdMask)))
#include "../../tests/gpu/driver.cu"

static __global__ void empty_kernel() {}

extern "C" int gpu_empty_launch(void* stream) {
  empty_kernel<<<1, 32, 0, static_cast<cudaStream_t>(stream)>>>();
  return cudaGetLastError();
}
