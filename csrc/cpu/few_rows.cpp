// See few_rows.h.
#include "few_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "isa.h"

#if UNITE_X86
#include <immintrin.h>
#endif

namespace unite {
namespace {

// A group of the weight's rows stays in a core's cache while every block of input rows passes over it. It is a
// multiple of every tile's height below, so that a tile is cut short at the end of the weight only.
constexpr int64_t kGroupNumbers = 32768;
constexpr int64_t kTileMultiple = 12;

template <class T>
float widen(T x);
template <>
inline float widen(float x) {
  return x;
}
template <>
inline float widen(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}

inline void narrow(float x, float* out) {
  *out = x;
}
inline void narrow(float x, uint16_t* out) {  // to bfloat16: the nearest, of two the even one
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  *out = std::isnan(x) ? 0x7FC0 : static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

template <class T>
void multiply_plain(const FewRowsLinear& linear, int64_t begin, int64_t end) {
  const T* rows = static_cast<const T*>(linear.rows);
  const T* weight = static_cast<const T*>(linear.weight);
  for (int64_t r = 0; r < linear.count; ++r)
    for (int64_t o = begin; o < end; ++o) {
      float sum = 0.0f;
      for (int64_t i = 0; i < linear.width; ++i)
        sum += widen(weight[o * linear.width + i]) * widen(rows[r * linear.width + i]);
      if (linear.bias) sum += widen(static_cast<const T*>(linear.bias)[o]);
      narrow(sum, static_cast<T*>(linear.out) + r * linear.outs + o);
    }
}

}  // namespace
}  // namespace unite

#if UNITE_X86
// From here to the pop; every function that runs on other processors as well is above.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

namespace unite {
namespace {

inline __m256 load8(const float* p) {
  return _mm256_loadu_ps(p);
}
inline __m256 load8(const uint16_t* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

inline float sum8(__m256 x) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps(sum, sum, 1)));
}

// Kc input rows by Kh rows of the weight: as many sums as there are registers for.
template <int Kc, int Kh, class T>
inline void tile(const T* rows, const T* weight, const T* bias, T* out, int64_t width, int64_t outs) {
  __m256 sums[Kc][Kh];
  for (int r = 0; r < Kc; ++r)
    for (int o = 0; o < Kh; ++o) sums[r][o] = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 8 <= width; i += 8) {
    __m256 w[Kh];
    for (int o = 0; o < Kh; ++o) w[o] = load8(weight + o * width + i);
    for (int r = 0; r < Kc; ++r) {
      const __m256 x = load8(rows + r * width + i);
      for (int o = 0; o < Kh; ++o) sums[r][o] = _mm256_fmadd_ps(w[o], x, sums[r][o]);
    }
  }
  for (int r = 0; r < Kc; ++r)
    for (int o = 0; o < Kh; ++o) {
      float sum = sum8(sums[r][o]);
      for (int64_t j = i; j < width; ++j) sum += widen(weight[o * width + j]) * widen(rows[r * width + j]);
      if (bias) sum += widen(bias[o]);
      narrow(sum, out + r * outs + o);
    }
}

template <int Kc, int Kh, class T>
void sweep(const FewRowsLinear& linear, int64_t row, int64_t begin, int64_t end) {
  const T* rows = static_cast<const T*>(linear.rows) + row * linear.width;
  const T* weight = static_cast<const T*>(linear.weight);
  const T* bias = static_cast<const T*>(linear.bias);
  T* out = static_cast<T*>(linear.out) + row * linear.outs;
  const int64_t width = linear.width, outs = linear.outs;
  int64_t o = begin;
  for (; o + Kh <= end; o += Kh)
    tile<Kc, Kh>(rows, weight + o * width, bias ? bias + o : nullptr, out + o, width, outs);
  for (; o < end; ++o) tile<Kc, 1>(rows, weight + o * width, bias ? bias + o : nullptr, out + o, width, outs);
}

template <class T>
void multiply_avx2(const FewRowsLinear& linear, int64_t begin, int64_t end) {
  for (int64_t row = 0; row < linear.count;) {
    const int64_t left = linear.count - row;
    if (left == 1) {
      sweep<1, 4, T>(linear, row, begin, end), row += 1;
    } else if (left == 2) {
      sweep<2, 4, T>(linear, row, begin, end), row += 2;
    } else if (left == 3 || left == 5 || left == 6) {
      sweep<3, 4, T>(linear, row, begin, end), row += 3;
    } else {
      sweep<4, 3, T>(linear, row, begin, end), row += 4;
    }
  }
}

}  // namespace
}  // namespace unite

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // UNITE_X86

namespace unite {
namespace {

template <class T>
void multiply(const FewRowsLinear& linear, int64_t begin, int64_t end) {
#if UNITE_X86
  if (active_isa() != Isa::kScalar) return multiply_avx2<T>(linear, begin, end);
#endif
  multiply_plain<T>(linear, begin, end);
}

}  // namespace

void few_rows_linear_cpu(const FewRowsLinear& linear, const Parallel& parallel) {
  if (linear.count == 0) return;
  const int64_t most = kGroupNumbers / std::max<int64_t>(1, linear.width) / kTileMultiple;
  const int64_t group = std::max<int64_t>(1, most) * kTileMultiple;
  parallel.run((linear.outs + group - 1) / group, [&](int64_t task) {
    const int64_t begin = task * group, end = std::min(begin + group, linear.outs);
    if (linear.dtype == Dtype::kBFloat16)
      multiply<uint16_t>(linear, begin, end);
    else
      multiply<float>(linear, begin, end);
  });
}

}  // namespace unite
