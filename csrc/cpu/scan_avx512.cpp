// ScanKernels for AVX-512 (F, BW, VL, DQ).
#include "scan_kernels.h"

#if UNITE_X86
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own intrinsics trip over this warning: https://gcc.gnu.org/PR105593.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <cstring>

#include "../core/key_order.h"

// From here to the end of the file; every header that other files also see is above.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,prefer-vector-width=512")
#endif

namespace unite {
namespace {

struct Vec {
  static constexpr int32_t kLanes = 16;
  __m512 lanes;

  static Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
  template <Dtype D>
  static Vec load(const char* p) {
    if (D == Dtype::kFloat32) return {_mm512_loadu_ps(p)};
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if (D == Dtype::kFloat16) return {_mm512_cvtph_ps(bits)};
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  template <Dtype D>
  static void load_two(const char* p, Vec& a, Vec& b) {
    if (D == Dtype::kBFloat16) {
      const __m512i bits = _mm512_loadu_si512(p);
      a = {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))};
      b = {_mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))))};
    } else {
      a = load<D>(p);
      b = load<D>(p + kLanes * (D == Dtype::kFloat32 ? 4 : 2));
    }
  }
  // MAXPS returns its second operand when one is NaN.
  static Vec max(const Vec& x, const Vec& acc) { return {_mm512_max_ps(x.lanes, acc.lanes)}; }
  static Vec min(const Vec& a, const Vec& b) { return {_mm512_min_ps(a.lanes, b.lanes)}; }
  static Vec select(uint32_t bits, const Vec& x) {
    return {_mm512_mask_mov_ps(_mm512_set1_ps(negative_infinity()), static_cast<__mmask16>(bits), x.lanes)};
  }
  static uint32_t at_least(const Vec& x, const Vec& bound) {
    return _mm512_cmp_ps_mask(x.lanes, bound.lanes, _CMP_GE_OQ);
  }
  void store(float* p) const { _mm512_storeu_ps(p, lanes); }
  float reduce_max() const { return _mm512_reduce_max_ps(lanes); }
};

}  // namespace
}  // namespace unite

#include "scan_kernels_impl.h"

namespace unite {
const ScanKernels kAvx512Kernels = kKernels;
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // UNITE_X86
