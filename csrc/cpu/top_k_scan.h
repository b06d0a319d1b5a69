// The exact, ordered top-k of one stretch of one row of logits.
//
// The maximum of every block of up to 256 logits is found as fast as the logits can be read. A value that k of these
// maxima reach is a lower bound of the k-th largest logit, so only the blocks that reach it are read again. Their
// logits above the bound go into a buffer, which is cut to the best k whenever it is full. Ids come in ascending order,
// so from then on only strictly larger logits can enter. The cost of any input is a small multiple of its length.
#pragma once

#include <cstdint>
#include <vector>

#include "scan_kernels.h"

namespace unite {

// Working memory, one per thread, kept from call to call.
struct ScanScratch {
  std::vector<int32_t> maxima;
  std::vector<uint64_t> candidates;
};

// Writes to keys[0, k) the keys (core/key_order.h) of the k best eligible logits of [begin, end), best first, kNoKey
// if there are fewer. `begin` is a multiple of kStretchAlign; 1 <= k <= kMaxTopK.
void top_k_scan(const RowView& row, int32_t begin, int32_t end, int32_t k, ScanScratch& scratch, uint64_t* keys);

// Merges two such lists of length k into the first.
void merge_top_k(uint64_t* keys, const uint64_t* others, int32_t k);

}  // namespace unite
