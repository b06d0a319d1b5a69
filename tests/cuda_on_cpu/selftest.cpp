// Tests of the emulator and the race checker: correct kernels that must pass, and wrong ones that must not.
#include <cstdio>

#include "cuda_emu.h"

namespace {

constexpr unsigned kFull = 0xFFFFFFFFu;

// ---- right
__global__ void warp_operations(const int* in, int* out) {  // out[operation][lane]
  const int lane = static_cast<int>(threadIdx.x), value = in[lane];
  out[0 * 32 + lane] = __shfl_sync(kFull, value, 5);
  out[1 * 32 + lane] = __shfl_up_sync(kFull, value, 3);
  out[2 * 32 + lane] = __shfl_xor_sync(kFull, value, 5);
  out[3 * 32 + lane] = static_cast<int>(__shfl_xor_sync(kFull, 1.5 * value, 1) * 2);  // eight bytes
  // Two halves of the warp, each on its own.
  if (lane < 12) {
    out[4 * 32 + lane] = __shfl_xor_sync(0x00000FFFu, value, 1);
  } else {
    out[4 * 32 + lane] = __shfl_sync(0xFFFFF000u, value, 20);
  }
}
__global__ void block_count(int* out) {
  const int odd = __syncthreads_count(threadIdx.x % 2);
  const int low = __syncthreads_count(threadIdx.x < 5);
  out[threadIdx.x] = 100 * odd + low;
}
__global__ void atomics(int* out, unsigned* ticket) {
  atomicAdd(out, 2);
  atomicMin(out + 1, 70 - static_cast<int>(threadIdx.x));
  atomicCAS(out + 2, -1, static_cast<int>(threadIdx.x));
  atomicInc(ticket, gridDim.x * blockDim.x - 1);
}
int* shared_ints(int count) {
  int* array = reinterpret_cast<int*>(emu::dynamic_shared());
  emu::shared_array(array, count * sizeof(int));
  return array;
}
__global__ void with_syncwarp(int* out) {
  int* s = shared_ints(32);
  s[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncwarp();
  out[threadIdx.x] = s[31 - threadIdx.x];
}
__global__ void bytes_of_one_word(unsigned char* out) {
  out[threadIdx.x] = 1;
}
// The last block adds up what all published; bug 1: no release fence, 2: no acquire fence, 3: fence too narrow.
__global__ void ticket(int* published, unsigned* arrivals, int* out, int bug) {
  if (threadIdx.x != 0) return;
  published[blockIdx.x] = 1;
  if (bug == 3) {
    __threadfence_block();
  } else if (bug != 1) {
    __threadfence();
  }
  if (atomicInc(arrivals, gridDim.x - 1) != gridDim.x - 1) return;
  if (bug != 2) __threadfence();
  *out = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) *out += __ldcg(published + b);
}

// ---- wrong
__global__ void early_exit(int* out) {
  if (threadIdx.x >= 33) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void divergent_barrier(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}
__global__ void mismatched_masks(int* out) {
  if (threadIdx.x < 16) {
    __syncwarp(0x0010FFFFu);
  } else {
    __syncwarp(kFull);
  }
  out[threadIdx.x] = 1;
}
__global__ void absent_lane(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xFFFFu, 1, 20);
}
__global__ void too_large_array(int* out) {
  out[threadIdx.x] = shared_ints(1000)[threadIdx.x];
}
#ifdef EMU_CHECKED
__global__ void without_syncwarp(int* out) {  // relies on lanes running in lockstep
  int* s = shared_ints(32);
  s[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = s[31 - threadIdx.x];
}
__global__ void shared_overrun(int* out) {
  int* s = shared_ints(32);
  s[threadIdx.x + 1] = 1;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
}
__global__ void shared_unwritten(int* out) {
  out[threadIdx.x] = shared_ints(32)[threadIdx.x];
}
__global__ void shared_reused(int* out) {  // the second array starts over, in the same memory
  shared_ints(32)[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = shared_ints(16)[threadIdx.x / 2];
}
__global__ void atomic_and_store(int* out) {
  if (threadIdx.x == 0) {
    out[0] = 5;
  } else {
    atomicAdd(out, 1);
  }
}
__global__ void two_blocks_store(int* out) {
  out[0] = static_cast<int>(blockIdx.x);
}
__global__ void write_input(const int* in) {
  const_cast<int*>(in)[threadIdx.x] = 0;
}
#endif

int failures = 0;
void expect(bool ok, const char* what, const std::string& detail = "") {
  std::printf("%-40s %s %s\n", what, ok ? "ok" : "FAILED", ok ? "" : detail.c_str());
  failures += !ok;
}

template <class... Params, class... Args>
std::string run(void (*kernel)(Params...), unsigned blocks, unsigned threads, Args... args) {
  try {
    emu::launch_kernel(dim3(blocks), dim3(threads), 256, kernel, args...);
  } catch (const emu::Error& error) {
    return error.what();
  }
  return "";
}
void passes(const std::string& error, bool right, const char* what) {
  expect(error.empty() && right, what, error);
}
void reports(const std::string& error, const char* word, const char* what) {
  expect(error.find(word) != std::string::npos, what, "reported: " + error);
}

}  // namespace

int main() {
  int in[32], out[5 * 32];
  unsigned char bytes[64];  // half of it announced
  unsigned arrivals = 0;
  for (int l = 0; l < 32; ++l) in[l] = (l * 37 + 11) % 64;
  for (const auto policy : {emu::Options::kInOrder, emu::Options::kReverse, emu::Options::kRandom}) {
    emu::options.policy = policy;
    emu::options.resident = 4;
    emu::forget_buffers();
    emu::global_buffer(in, sizeof in, "in", true, false);
    emu::global_buffer(out, sizeof out, "out", true, true);
    emu::global_buffer(bytes, 32, "bytes", true, true);
    emu::global_buffer(&arrivals, sizeof arrivals, "arrivals", true, true);

    std::string error = run(warp_operations, 1, 32, in, out);
    bool right = true;
    for (int l = 0; l < 32; ++l) {
      right &= out[l] == in[5] && out[32 + l] == in[l < 3 ? l : l - 3] && out[64 + l] == in[l ^ 5];
      right &= out[96 + l] == 3 * in[l ^ 1] && out[128 + l] == (l < 12 ? in[l ^ 1] : in[20]);
    }
    passes(error, right, "warp operations");
    error = run(block_count, 1, 64, out);
    passes(error, out[0] == 3205 && out[63] == 3205, "__syncthreads_count");
    out[0] = 0, out[1] = 1000, out[2] = -1, arrivals = 0;
    error = run(atomics, 2, 64, out, &arrivals);
    passes(error, out[0] == 256 && out[1] == 7 && out[2] >= 0 && arrivals == 0, "atomics");
    error = run(with_syncwarp, 1, 32, out);
    passes(error, out[3] == 28, "__syncwarp");
    passes(run(bytes_of_one_word, 1, 32, bytes), true, "bytes of one word");
    error = run(ticket, 6, 32, out + 1, &arrivals, out, 0);
    passes(error, out[0] == 6 && arrivals == 0, "ticket");

    reports(run(early_exit, 1, 64, out), "returned", "thread returns before a barrier");
    reports(run(divergent_barrier, 1, 64, out), "divergent", "barriers of two branches");
    reports(run(mismatched_masks, 1, 32, out), "deadlock", "__syncwarp masks differ");
    reports(run(absent_lane, 1, 32, out), "takes no part", "shuffle from an absent lane");
    reports(run(too_large_array, 1, 32, out), "past what the launch gave", "array larger than shared memory");
#ifdef EMU_CHECKED
    reports(run(without_syncwarp, 1, 32, out), "RACE", "missing __syncwarp");
    reports(run(shared_overrun, 1, 32, out), "out-of-bounds", "shared array overrun");
    reports(run(shared_unwritten, 1, 32, out), "UNINITIALISED", "shared array read before written");
    reports(run(shared_reused, 1, 32, out), "UNINITIALISED", "shared memory of an earlier phase read");
    reports(run(atomic_and_store, 1, 32, out), "RACE", "atomic against plain store");
    reports(run(two_blocks_store, 3, 1, out), "RACE", "two blocks store to one word");
    reports(run(write_input, 1, 32, in), "read-only", "store to an input");
    reports(run(bytes_of_one_word, 1, 64, bytes), "out-of-bounds", "global buffer overrun");
    arrivals = 0;
    reports(run(ticket, 6, 32, out + 1, &arrivals, out, 1), "RACE", "ticket without release fence");
    arrivals = 0;
    reports(run(ticket, 6, 32, out + 1, &arrivals, out, 2), "RACE", "ticket without acquire fence");
    arrivals = 0;
    reports(run(ticket, 6, 32, out + 1, &arrivals, out, 3), "RACE", "ticket with a fence of the block only");
    arrivals = 0;
#endif
  }
  return failures != 0;
}
