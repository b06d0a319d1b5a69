// The four loops of the CPU kernel that read every logit or every block, compiled for each instruction set.
//
// Each scan_<isa>.cpp compiles scan_kernels_impl.h for its instruction set and returns the loops as function pointers.
// All other code is compiled once.
#pragma once

#include <cstdint>

#include "../core/logits.h"
#include "isa.h"

namespace unite {

// One row of a member's logits. Only ids below the `end` given with it are ever read.
struct RowView {
  const void* data;
  const uint32_t* eligible;  // bit i: id i may be taken
  Dtype dtype;
};

// An eligibility word has 32 ids, so stretches begin at a multiple of 32.
constexpr int32_t kStretchAlign = 32;
constexpr int32_t kMaxBlock = 256;

// Signed image of order_bits(): SSE and AVX compare signed integers only.
inline int32_t signed_order(float sanitized) {
  return static_cast<int32_t>(order_bits(sanitized) ^ 0x80000000u);
}
inline float from_signed_order(int32_t order) {
  return from_order_bits(static_cast<uint32_t>(order) ^ 0x80000000u);
}

struct ScanKernels {
  // maxima[b]: signed_order() of the largest sanitized eligible logit of block b of [begin, end), or of -inf if there
  // is none. `block` is 64, 128 or 256; the last block may be shorter.
  void (*block_maxima)(const RowView& row, int32_t begin, int32_t end, int32_t block, int32_t* maxima);

  // A value that at least k of the n maxima reach, close to the largest such value; INT32_MIN if n < k.
  int32_t (*reached_by)(const int32_t* maxima, int32_t n, int32_t k);

  // Appends to `keys` the key of every eligible logit of [begin, end) that is at least `bound`, in order of ids;
  // at most kMaxBlock elements. `bound` is finite, so NaN and -inf are left out. Returns how many.
  int32_t (*collect)(const RowView& row, int32_t begin, int32_t end, float bound, uint64_t* keys);

  // Over the eligible logits of [begin, end): `largest` becomes their maximum, `sum` that of
  // exp(logit - largest); -inf and 0 if there is none. The result is the same on every instruction set.
  void (*sum_exp)(const RowView& row, int32_t begin, int32_t end, float* largest, double* sum);
};

extern const ScanKernels kScalarKernels;
#if UNITE_X86
extern const ScanKernels kAvx2Kernels;
extern const ScanKernels kAvx512Kernels;
#endif

// Those of active_isa().
const ScanKernels& scan_kernels();

}  // namespace unite
