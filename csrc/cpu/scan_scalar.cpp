// ScanKernels without intrinsics, for processors without a wider instruction set. Four lanes are one register of every
// baseline (SSE2, NEON). The compiler vectorises everything but max(), because it cannot prove that there is no NaN, so
// max() uses GCC's and Clang's vector type.
#include <cstring>

#include "../core/key_order.h"
#include "scan_kernels.h"

namespace unite {
namespace {

struct Vec {
  static constexpr int32_t kLanes = 4;
  float lane[kLanes];

  static Vec broadcast(float x) {
    Vec v;
    for (int i = 0; i < kLanes; ++i) v.lane[i] = x;
    return v;
  }
  template <Dtype D>
  static Vec load(const char* p) {
    Vec v;
    if (D == Dtype::kFloat32) {
      memcpy(v.lane, p, sizeof v.lane);
    } else {
      uint16_t bits[kLanes];
      memcpy(bits, p, sizeof bits);
      for (int i = 0; i < kLanes; ++i)
        v.lane[i] = D == Dtype::kBFloat16 ? bfloat16_to_float(bits[i]) : float16_to_float(bits[i]);
    }
    return v;
  }
  template <Dtype D>
  static void load_two(const char* p, Vec& a, Vec& b) {
    if (D == Dtype::kBFloat16) {
      uint32_t pairs[kLanes];
      memcpy(pairs, p, sizeof pairs);
      for (int i = 0; i < kLanes; ++i) a.lane[i] = float_from_bits(pairs[i] << 16);
      for (int i = 0; i < kLanes; ++i) b.lane[i] = float_from_bits(pairs[i] & 0xFFFF0000u);
    } else {
      a = load<D>(p);
      b = load<D>(p + kLanes * (D == Dtype::kFloat32 ? 4 : 2));
    }
  }
  static Vec max(const Vec& x, const Vec& acc) {
    Vec v;
#if defined(__GNUC__)
    typedef float Four __attribute__((vector_size(4 * kLanes)));
    Four a, b;
    memcpy(&a, x.lane, sizeof a);
    memcpy(&b, acc.lane, sizeof b);
    a = a > b ? a : b;
    memcpy(v.lane, &a, sizeof a);
#else
    for (int i = 0; i < kLanes; ++i) v.lane[i] = x.lane[i] > acc.lane[i] ? x.lane[i] : acc.lane[i];
#endif
    return v;
  }
  static Vec min(const Vec& a, const Vec& b) {
    Vec v;
    for (int i = 0; i < kLanes; ++i) v.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
    return v;
  }
  static Vec select(uint32_t bits, const Vec& x) {
    Vec v;
    for (int i = 0; i < kLanes; ++i) v.lane[i] = (bits >> i & 1u) ? x.lane[i] : negative_infinity();
    return v;
  }
  static uint32_t at_least(const Vec& x, const Vec& bound) {
    uint32_t bits = 0;
    for (int i = 0; i < kLanes; ++i) bits |= (x.lane[i] >= bound.lane[i] ? 1u : 0u) << i;
    return bits;
  }
  void store(float* p) const { memcpy(p, lane, sizeof lane); }
  float reduce_max() const {
    float largest = lane[0];
    for (int i = 1; i < kLanes; ++i) largest = lane[i] > largest ? lane[i] : largest;
    return largest;
  }
};

}  // namespace
}  // namespace unite

#include "scan_kernels_impl.h"

namespace unite {
const ScanKernels kScalarKernels = kKernels;
}
