// Reading one slice of one row: 16-byte vectors in the middle, single elements at misaligned ends, and their
// eligibility bits.
//
// If the width is odd, rows start at any address, so the alignment is found per slice. A block or one warp reads it:
// vector i belongs to thread i % size of these, and the edges, at most 7 + 7 elements outside the vectors, to the first
// 16 threads.
#pragma once

#include <cstdint>

#include "../core/step_params.h"
#include "compat.cuh"

namespace unite {

__device__ __forceinline__ uint32_t vector_word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;  // a constant after unrolling
}

// The logits types. kLowBit: the lowest bit of order_bits() that tells two values of the type apart.
struct Float32 {
  static constexpr Dtype kDtype = Dtype::kFloat32;
  static constexpr int kBytes = 4, kLowBit = 0;
  __device__ static float at(const uint4& v, int i) { return float_from_bits(vector_word(v, i)); }
};

struct BFloat16 {
  static constexpr Dtype kDtype = Dtype::kBFloat16;
  static constexpr int kBytes = 2, kLowBit = 16;
  __device__ static float at(const uint4& v, int i) {
    const uint32_t pair = vector_word(v, i / 2);
    return float_from_bits(i % 2 == 0 ? pair << 16 : pair & 0xFFFF0000u);
  }
};

struct Float16 {
  static constexpr Dtype kDtype = Dtype::kFloat16;
  static constexpr int kBytes = 2, kLowBit = 13;
  __device__ static float at(const uint4& v, int i) {
    const uint32_t pair = vector_word(v, i / 2);
    const uint16_t bits = static_cast<uint16_t>(i % 2 == 0 ? pair : pair >> 16);
#if defined(__CUDA_ARCH__)
    return __half2float(__ushort_as_half(bits));  // one instruction; the portable decoder takes ten
#else
    return float16_to_float(bits);
#endif
  }
};

// The ids [begin, end) of one row of one member.
struct Slice {
  const void* row;
  const uint8_t* eligible;  // bit i % 8 of byte i / 8: id i may enter a top-k
  int begin, end;
};

template <class Logit>
struct SliceReader {
  static constexpr int kPerVector = 16 / Logit::kBytes;
  static constexpr uint32_t kAllEligible = (1u << kPerVector) - 1u;

  Slice slice;
  const uint4* vectors;
  int num_vectors;
  int first_id;  // of vectors[0]

  __device__ explicit SliceReader(const Slice& s) : slice(s) {
    const char* start = static_cast<const char*>(s.row) + static_cast<int64_t>(s.begin) * Logit::kBytes;
    const int length = s.end - s.begin;
    const int skip = static_cast<int>((0 - reinterpret_cast<uintptr_t>(start)) % 16) / Logit::kBytes;
    const int head = skip < length ? skip : length;
    vectors = reinterpret_cast<const uint4*>(start + head * Logit::kBytes);
    num_vectors = (length - head) / kPerVector;
    first_id = s.begin + head;
  }

  // Bit e: element e of vector i is eligible.
  __device__ uint32_t eligible_bits(int i) const {
    const int id = first_id + i * kPerVector;
    const uint8_t* bytes = slice.eligible + id / 8;
    uint32_t bits = __ldg(bytes);
    if (id % 8 + kPerVector > 8) bits |= static_cast<uint32_t>(__ldg(bytes + 1)) << 8;  // misaligned rows only
    return bits >> id % 8 & kAllEligible;
  }

  // The id of a thread's edge element, or -1.
  __device__ int edge_id(int rank) const {
    const int id = rank < 8 ? slice.begin + rank : first_id + num_vectors * kPerVector + rank - 8;
    const int end = rank < 8 ? first_id : slice.end;
    return rank < 16 && id < end && (slice.eligible[id / 8] >> id % 8 & 1) ? id : -1;
  }

  // The largest eligible logit that this thread reads, ignoring NaN. Four vectors are in flight before the first use.
  __device__ float thread_maximum() const {
    constexpr int kInFlight = 4;
    const int stride = static_cast<int>(blockDim.x);
    float best = negative_infinity();
    for (int base = static_cast<int>(threadIdx.x); base < num_vectors; base += kInFlight * stride) {
      uint4 vector[kInFlight];
      uint32_t bits[kInFlight];
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        const int i = base + u * stride;
        const bool inside = i < num_vectors;
        vector[u] = inside ? __ldcs(vectors + i) : make_uint4(0, 0, 0, 0);
        bits[u] = inside ? eligible_bits(i) : 0;
      }
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) best = fmaxf(best, maximum(vector[u], bits[u]));
    }
    return best;
  }

  // Calls visit(logit, id) for the eligible elements above -inf of thread `rank` of `size`, in a fixed order.
  template <class Visit>
  __device__ __forceinline__ void for_each(int rank, int size, Visit visit) const {
    for (int i = rank; i < num_vectors; i += size) visit_vector(i, visit);
    const int id = edge_id(rank);
    if (id < 0) return;
    const float logit = load_logit(slice.row, Logit::kDtype, id);
    if (logit > negative_infinity()) visit(logit, id);
  }

  template <class Visit>
  __device__ __forceinline__ void visit_vector(int i, Visit visit) const {
    const uint4 vector = vectors[i];
    const uint32_t bits = eligible_bits(i);
#pragma unroll
    for (int e = 0; e < kPerVector; ++e) {
      const float logit = sanitize(Logit::at(vector, e), largest_finite(Logit::kDtype));
      if ((bits >> e & 1) && logit > negative_infinity()) visit(logit, first_id + i * kPerVector + e);
    }
  }

 private:
  // Nearly every vector is wholly eligible, which takes two instructions per element.
  __device__ static float maximum(const uint4& vector, uint32_t bits) {
    float best = negative_infinity();
    if (bits == kAllEligible) {
#pragma unroll
      for (int e = 0; e < kPerVector; ++e) best = fmaxf(best, Logit::at(vector, e));
    } else {
#pragma unroll
      for (int e = 0; e < kPerVector; ++e)
        best = fmaxf(best, bits >> e & 1 ? Logit::at(vector, e) : negative_infinity());
    }
    return best;
  }
};

}  // namespace unite
