// See top_k_scan.h.
#include "top_k_scan.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "../core/key_order.h"
#include "../core/step_params.h"

namespace unite {

const ScanKernels& scan_kernels() {
#if UNITE_X86
  switch (active_isa()) {
    case Isa::kAvx512:
      return kAvx512Kernels;
    case Isa::kAvx2:
      return kAvx2Kernels;
    case Isa::kScalar:
      break;
  }
#endif
  return kScalarKernels;
}

namespace {

// Smaller blocks have more maxima, larger ones more logits to read again, and with fewer than k there is no bound.
int32_t block_size(int32_t length, int32_t k) {
  int32_t block = kMaxBlock;
  while (block > 64 && length < 4 * k * block) block /= 2;
  return block;
}

// The next float above a finite one, in the order of sanitized logits.
float next_above(float value) {
  return from_order_bits(order_bits(value) + 1);
}

}  // namespace

void top_k_scan(const RowView& row, int32_t begin, int32_t end, int32_t k, ScanScratch& scratch, uint64_t* keys) {
  const ScanKernels& kernels = scan_kernels();
  const int32_t block = block_size(end - begin, k);
  const int32_t blocks = (end - begin + block - 1) / block;
  const size_t capacity = static_cast<size_t>(2 * k + 2 * kMaxBlock);
  if (scratch.maxima.size() < static_cast<size_t>(blocks)) scratch.maxima.resize(blocks);
  if (scratch.candidates.size() < capacity) scratch.candidates.resize(capacity);
  int32_t* maxima = scratch.maxima.data();
  uint64_t* candidates = scratch.candidates.data();

  kernels.block_maxima(row, begin, end, block, maxima);

  const float largest = largest_finite(row.dtype);
  const int32_t lowest = signed_order(-largest);  // keeps -inf out
  int32_t least = std::max(kernels.reached_by(maxima, blocks, k), lowest);
  float bound = from_signed_order(least);
  size_t held = 0;
  for (int32_t b = 0; b < blocks; ++b) {
    if (maxima[b] < least) continue;
    const int32_t at = begin + b * block;
    held += kernels.collect(row, at, std::min(at + block, end), bound, candidates + held);
    if (held + kMaxBlock <= capacity) continue;
    // Later ids lose ties, so only logits above the k-th value can still enter.
    std::nth_element(candidates, candidates + (k - 1), candidates + held, std::greater<uint64_t>());
    held = k;
    bound = next_above(key_value(candidates[k - 1]));
    if (bound > largest) break;
    least = signed_order(bound);
  }

  const size_t taken = std::min(held, static_cast<size_t>(k));
  if (held > taken) std::nth_element(candidates, candidates + taken, candidates + held, std::greater<uint64_t>());
  std::sort(candidates, candidates + taken, std::greater<uint64_t>());
  std::copy(candidates, candidates + taken, keys);
  std::fill(keys + taken, keys + k, kNoKey);
}

void merge_top_k(uint64_t* keys, const uint64_t* others, int32_t k) {
  uint64_t merged[kMaxTopK];
  int32_t a = 0, b = 0;
  for (int32_t i = 0; i < k; ++i) merged[i] = keys[a] >= others[b] ? keys[a++] : others[b++];
  std::copy(merged, merged + k, keys);
}

}  // namespace unite
