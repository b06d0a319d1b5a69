// Logits for tests: conversions written independently of the core, rows that end where their memory ends, and inputs on
// which careless top-k code fails.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/core/logits.h"

namespace unite_test {

using unite::Dtype;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16};

inline const char* dtype_name(Dtype dtype) {
  return dtype == Dtype::kFloat32 ? "float32" : dtype == Dtype::kBFloat16 ? "bfloat16" : "float16";
}

inline int dtype_size(Dtype dtype) {
  return dtype == Dtype::kFloat32 ? 4 : 2;
}

// The value of an IEEE pattern by its definition.
inline double ieee_value(uint32_t bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = bits >> (exponent_bits + fraction_bits) & 1u ? -1.0 : 1.0;
  const int exponent = static_cast<int>(bits >> fraction_bits & ((1u << exponent_bits) - 1u));
  const double fraction = bits & ((1u << fraction_bits) - 1u);
  const double unit = std::ldexp(1.0, -fraction_bits);
  if (exponent == (1 << exponent_bits) - 1) return fraction != 0 ? std::nan("") : sign * kInfinity;
  if (exponent == 0) return sign * std::ldexp(fraction * unit, 1 - bias);
  return sign * std::ldexp(1.0 + fraction * unit, exponent - bias);
}

inline double pattern_value(Dtype dtype, uint32_t bits) {
  if (dtype == Dtype::kFloat32) return ieee_value(bits, 8, 23);
  return dtype == Dtype::kBFloat16 ? ieee_value(bits, 8, 7) : ieee_value(bits, 5, 10);
}

// The pattern of a value, rounded towards zero where it does not fit; the sign of zero and NaN is kept.
inline uint32_t value_pattern(Dtype dtype, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (dtype == Dtype::kFloat32) return bits;
  if (dtype == Dtype::kBFloat16) return std::isnan(value) ? (bits >> 16) | 0x40u : bits >> 16;
  const uint32_t sign = bits >> 16 & 0x8000u;
  if (std::isnan(value)) return sign | 0x7E00u;
  if (std::isinf(value)) return sign | 0x7C00u;
  const double magnitude = std::fabs(static_cast<double>(value));
  if (magnitude >= 65504.0) return sign | 0x7BFFu;
  if (magnitude < std::ldexp(1.0, -14)) return sign | static_cast<uint32_t>(std::ldexp(magnitude, 24));
  const int exponent = std::ilogb(magnitude);
  const uint32_t fraction = static_cast<uint32_t>((std::ldexp(magnitude, -exponent) - 1.0) * 1024.0);
  return sign | static_cast<uint32_t>(exponent + 15) << 10 | fraction;
}

// Rows of one dtype. Data begins `shift` elements into its allocation and ends with it, so that a sanitizer sees
// every read past it.
class Rows {
 public:
  Rows(Dtype dtype, int64_t rows, int64_t width, int64_t stride = 0, int shift = 0)
      : dtype_(dtype),
        stride_(stride == 0 ? width : stride),
        bytes_((shift + (rows - 1) * stride_ + width) * dtype_size(dtype)),
        shift_(shift) {
    bytes_.shrink_to_fit();
  }

  Dtype dtype() const { return dtype_; }
  int64_t stride() const { return stride_; }
  const void* data() const { return bytes_.data() + shift_ * dtype_size(dtype_); }

  void set(int64_t row, int64_t id, float value) {
    const uint32_t bits = value_pattern(dtype_, value);
    std::memcpy(at(row, id), &bits, dtype_size(dtype_));  // little-endian
  }
  void set_row(int64_t row, const std::vector<float>& values) {
    for (size_t id = 0; id < values.size(); ++id) set(row, static_cast<int64_t>(id), values[id]);
  }

  // Sanitized: NaN is -inf, +inf the largest finite value, -0 is 0.
  double value(int64_t row, int64_t id) const {
    uint32_t bits = 0;
    std::memcpy(&bits, const_cast<Rows*>(this)->at(row, id), dtype_size(dtype_));
    const double value = pattern_value(dtype_, bits);
    if (std::isnan(value)) return -kInfinity;
    const uint32_t largest = dtype_ == Dtype::kFloat32 ? 0x7F7FFFFFu : dtype_ == Dtype::kBFloat16 ? 0x7F7Fu : 0x7BFFu;
    if (value == kInfinity) return pattern_value(dtype_, largest);
    return value == 0.0 ? 0.0 : value;
  }

 private:
  char* at(int64_t row, int64_t id) { return bytes_.data() + (shift_ + row * stride_ + id) * dtype_size(dtype_); }

  Dtype dtype_;
  int64_t stride_;
  std::vector<char> bytes_;
  int shift_;
};

inline std::vector<std::string> pattern_names() {
  return {"gaussian", "ties", "all_equal", "ascending",    "descending", "mostly_minus_inf", "specials",
          "zeros",    "nan",  "clustered", "all_plus_inf", "neighbours", "nearly_largest"};
}

inline std::vector<float> pattern(const std::string& name, int width, std::mt19937& random) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::normal_distribution<float> gaussian(0.0f, 3.0f);
  std::vector<float> values(width);
  for (int i = 0; i < width; ++i) {
    const uint32_t dice = random();
    const float g = gaussian(random);
    float& x = values[i];
    if (name == "gaussian") x = g;
    if (name == "ties") x = static_cast<float>(dice % 5);
    if (name == "all_equal") x = -1.5f;
    if (name == "ascending") x = static_cast<float>(i) * 0.01f - 3.0f;
    if (name == "descending") x = 3.0f - static_cast<float>(i) * 0.01f;
    if (name == "mostly_minus_inf") x = dice % 1000 == 0 ? g : -inf;
    if (name == "specials") {
      const float menu[] = {inf, -inf, nan, -nan, 0.0f, -0.0f, 3.4e38f, -3.4e38f, 1e-40f, -1e-40f, g, g};
      x = menu[dice % 12];
    }
    if (name == "zeros") x = dice % 2 ? 0.0f : -0.0f;
    if (name == "nan") x = dice % 3 == 0 ? g : dice % 3 == 1 ? nan : -nan;
    if (name == "clustered") x = i > width * 3 / 4 && i < width * 3 / 4 + 300 ? g + 50.0f : g;
    if (name == "all_plus_inf") x = inf;
    if (name == "neighbours") x = unite::float_from_bits(0x3F800000u + static_cast<uint32_t>(i));  // ascending
    if (name == "nearly_largest") x = i < width - 3 ? 3.40282326e38f : inf;  // one step below the largest, and it
  }
  return values;
}

}  // namespace unite_test
