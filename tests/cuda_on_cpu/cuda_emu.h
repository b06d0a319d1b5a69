// Compiles CUDA kernels with g++ and runs them on the CPU, for tests.
//
// There is one fiber per CUDA thread and one OS thread in all. A run depends only on the inputs and on emu::options, so
// every failure repeats. Errors that on a GPU hang or go unnoticed by chance are reported with thread and line:
// divergent barriers, shuffles from absent lanes, deadlock; with race_checker.cpp also races, missing fences,
// uninitialised reads and accesses out of bounds.
//
// Needs no CUDA installation. It has only what the project's kernels use; add what a new one needs. It does not measure
// speed, and it runs g++'s code, not nvcc's.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = void*;

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emu {

struct Options {
  enum Policy { kInOrder, kReverse, kRandom };
  uint64_t seed = 0;
  Policy policy = kInOrder;   // which ready thread, and which block, runs next
  unsigned resident = 1;      // blocks interleaved at a time; 1: each runs to completion
  double preempt = 0;         // chance of a switch at an atomic or a fence
  double preempt_access = 0;  // the same at any memory access; needs the race checker
};
inline Options options;

struct Error : std::runtime_error {
  using runtime_error::runtime_error;
};

// Runs `body` once per thread of the grid. Throws Error on what went wrong.
void launch(dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> body);

template <class... Params, class... Args>
void launch_kernel(dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(Params...), Args... args) {
  static std::tuple<Params...> arguments;  // static: the checker leaves the module's own data alone
  arguments = std::tuple<Params...>(args...);
  launch(grid, block, shared_bytes, [kernel] { std::apply(kernel, arguments); });
}

// This block's dynamic shared memory; it starts poisoned.
char* dynamic_shared();
// Announces one array in it. Access outside announced arrays is an error, and a new array starts uninitialised.
void shared_array(void* array, size_t bytes);

// With at least one buffer announced, access outside them is an error (race checker only).
void global_buffer(const void* buffer, size_t bytes, const std::string& name, bool initialised, bool writable);
void forget_buffers();

// Meets the live lanes of the mask at a warp-wide operation; values[l] is what lane l brought.
struct Lanes {
  uint32_t arrived;
  uint64_t values[32];
};
Lanes collective(const char* name, uint32_t mask, uint64_t value, int line);
int block_barrier(int predicate, int line);
void fence(bool device_scope);
void before_atomic(const void* address, size_t bytes, void* pc);
int lane();
[[noreturn]] void fail(const char* format, ...);

template <class T>
T shuffle(const char* name, uint32_t mask, T value, int source, int line) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  const Lanes lanes = collective(name, mask, bits, line);
  if (!(lanes.arrived >> source & 1)) fail("%s (line %d): lane %d is read but takes no part", name, line, source);
  memcpy(&value, &lanes.values[source], sizeof value);
  return value;
}

}  // namespace emu

// ---- barriers, fences, warp operations
#define EMU_LINE int line = __builtin_LINE()

inline void __syncthreads(EMU_LINE) {
  emu::block_barrier(0, line);
}
inline int __syncthreads_count(int predicate, EMU_LINE) {
  return emu::block_barrier(predicate, line);
}
inline void __syncwarp(unsigned mask = ~0u, EMU_LINE) {
  emu::collective("__syncwarp", mask, 0, line);
}
inline void __threadfence() {
  emu::fence(true);
}
inline void __threadfence_block() {
  emu::fence(false);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, EMU_LINE) {
  return emu::shuffle("__shfl_sync", mask, value, source & 31, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, EMU_LINE) {
  const int lane = emu::lane(), source = lane - static_cast<int>(delta);
  return emu::shuffle("__shfl_up_sync", mask, value, source < 0 ? lane : source, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, EMU_LINE) {
  return emu::shuffle("__shfl_xor_sync", mask, value, emu::lane() ^ bits, line);
}
#undef EMU_LINE

// ---- atomics: plain read-modify-writes, since one OS thread runs all; before_atomic() may switch fibers
#define EMU_ATOMIC(name, result)                                                                     \
  template <class T>                                                                                 \
  __attribute__((no_sanitize("thread"), noinline)) T name(T* address, std::common_type_t<T> value) { \
    emu::before_atomic(address, sizeof(T), __builtin_return_address(0));                             \
    const T old = *address;                                                                          \
    *address = result;                                                                               \
    return old;                                                                                      \
  }
EMU_ATOMIC(atomicAdd, old + value)
EMU_ATOMIC(atomicMin, value < old ? value : old)
EMU_ATOMIC(atomicInc, old >= value ? T(0) : T(old + 1))
#undef EMU_ATOMIC
template <class T>
__attribute__((no_sanitize("thread"), noinline)) T atomicCAS(T* address, std::common_type_t<T> expected,
                                                             std::common_type_t<T> desired) {
  emu::before_atomic(address, sizeof(T), __builtin_return_address(0));
  const T old = *address;
  if (old == expected) *address = desired;
  return old;
}

// ---- loads with cache hints: plain loads, seen by the race checker
template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
