// Reads one logit in its dtype, makes it finite or -inf, and maps it to an integer of the same order.
#pragma once

#include <cstdint>
#include <cstring>

#include "macros.h"

namespace unite {

enum class Dtype : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

UNITE_HOST_DEVICE inline uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

UNITE_HOST_DEVICE inline float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

UNITE_HOST_DEVICE inline float negative_infinity() {
  return float_from_bits(0xFF800000u);
}

// a + b, never contracted with a product into a fused multiply-add, so that the bits are the same wherever it is
// inlined.
UNITE_HOST_DEVICE inline float plain_sum(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

UNITE_HOST_DEVICE inline float bfloat16_to_float(uint16_t bits) {
  return float_from_bits(static_cast<uint32_t>(bits) << 16);
}

UNITE_HOST_DEVICE inline float float16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7FFFu;
  if (magnitude >= 0x7C00u) return float_from_bits(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  if (magnitude >= 0x0400u) return float_from_bits(sign | ((magnitude << 13) + 0x38000000u));
  // Subnormal: the fraction counts units of 2^-24.
  return float_from_bits(sign | float_bits(static_cast<float>(magnitude) * 5.9604644775390625e-8f));
}

UNITE_HOST_DEVICE inline float largest_finite(Dtype dtype) {
  if (dtype == Dtype::kFloat32) return float_from_bits(0x7F7FFFFFu);
  if (dtype == Dtype::kBFloat16) return float_from_bits(0x7F7F0000u);
  return 65504.0f;
}

// NaN counts as -inf, +inf as the largest finite value of the dtype, -0 as 0.
UNITE_HOST_DEVICE inline float sanitize(float value, float largest) {
  if (!(value >= -largest)) return negative_infinity();  // NaN and -inf
  if (value > largest) return largest;
  return value == 0.0f ? 0.0f : value;
}

UNITE_HOST_DEVICE inline float load_logit(const void* row, Dtype dtype, int64_t id) {
  float value;
  if (dtype == Dtype::kFloat32) {
    value = static_cast<const float*>(row)[id];
  } else {
    const uint16_t bits = static_cast<const uint16_t*>(row)[id];
    value = dtype == Dtype::kBFloat16 ? bfloat16_to_float(bits) : float16_to_float(bits);
  }
  return sanitize(value, largest_finite(dtype));
}

// Order-preserving map from sanitized floats to unsigned integers. The smallest image is that of -inf, above 0.
UNITE_HOST_DEVICE inline uint32_t order_bits(float value) {
  const uint32_t bits = float_bits(value);
  return bits ^ ((bits >> 31) ? 0xFFFFFFFFu : 0x80000000u);
}

UNITE_HOST_DEVICE inline float from_order_bits(uint32_t order) {
  return float_from_bits(order ^ ((order >> 31) ? 0x80000000u : 0xFFFFFFFFu));
}

}  // namespace unite
