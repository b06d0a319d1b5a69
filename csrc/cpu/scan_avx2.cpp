// ScanKernels for AVX2 with F16C.
#include "scan_kernels.h"

#if UNITE_X86
#include <immintrin.h>

#include <cstring>

#include "../core/key_order.h"

// From here to the end of the file; every header that other files also see is above.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

namespace unite {
namespace {

struct Vec {
  static constexpr int32_t kLanes = 8;
  __m256 lanes;

  static Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
  template <Dtype D>
  static Vec load(const char* p) {
    if (D == Dtype::kFloat32) return {_mm256_loadu_ps(reinterpret_cast<const float*>(p))};
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    if (D == Dtype::kFloat16) return {_mm256_cvtph_ps(bits)};
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
  }
  template <Dtype D>
  static void load_two(const char* p, Vec& a, Vec& b) {
    if (D == Dtype::kBFloat16) {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
      a = {_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16))};
      b = {_mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0xFFFF0000u))))};
    } else {
      a = load<D>(p);
      b = load<D>(p + kLanes * (D == Dtype::kFloat32 ? 4 : 2));
    }
  }
  // MAXPS returns its second operand when one is NaN.
  static Vec max(const Vec& x, const Vec& acc) { return {_mm256_max_ps(x.lanes, acc.lanes)}; }
  static Vec min(const Vec& a, const Vec& b) { return {_mm256_min_ps(a.lanes, b.lanes)}; }
  static Vec select(uint32_t bits, const Vec& x) {
    const __m256i lane_bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i chosen =
        _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane_bit), lane_bit);
    return {_mm256_blendv_ps(_mm256_set1_ps(negative_infinity()), x.lanes, _mm256_castsi256_ps(chosen))};
  }
  static uint32_t at_least(const Vec& x, const Vec& bound) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x.lanes, bound.lanes, _CMP_GE_OQ)));
  }
  void store(float* p) const { _mm256_storeu_ps(p, lanes); }
  float reduce_max() const {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    m = _mm_max_ss(m, _mm_shuffle_ps(m, m, 1));
    return _mm_cvtss_f32(m);
  }
};

}  // namespace
}  // namespace unite

#include "scan_kernels_impl.h"

namespace unite {
const ScanKernels kAvx2Kernels = kKernels;
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // UNITE_X86
