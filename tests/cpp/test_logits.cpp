// One logit: conversion, sanitizing, order.
#include <algorithm>
#include <cmath>
#include <vector>

#include "../../csrc/core/key_order.h"
#include "check.h"
#include "logits_data.h"

using namespace unite;
using namespace unite_test;

namespace {

double converted(Dtype dtype, uint16_t bits) {
  return dtype == Dtype::kBFloat16 ? bfloat16_to_float(bits) : float16_to_float(bits);
}

}  // namespace

TEST(every_16_bit_pattern_converts) {
  for (Dtype dtype : {Dtype::kBFloat16, Dtype::kFloat16})
    for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
      const double expected = pattern_value(dtype, bits);
      const double seen = converted(dtype, static_cast<uint16_t>(bits));
      if (std::isnan(expected))
        CHECK(std::isnan(seen), dtype_name(dtype), " pattern ", bits);
      else
        CHECK(seen == expected && std::signbit(seen) == std::signbit(expected), dtype_name(dtype), " pattern ", bits,
              " became ", seen, ", expected ", expected);
    }
}

TEST(test_patterns_round_trip) {
  for (Dtype dtype : {Dtype::kBFloat16, Dtype::kFloat16})
    for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
      const float value = static_cast<float>(pattern_value(dtype, bits));
      if (!std::isnan(value)) CHECK(value_pattern(dtype, value) == bits, dtype_name(dtype), " pattern ", bits);
    }
}

TEST(load_logit_is_clean) {
  for (Dtype dtype : kDtypes) {
    std::mt19937 random(1);
    Rows rows(dtype, 1, 2000);
    rows.set_row(0, pattern("specials", 2000, random));
    for (int id = 0; id < 2000; ++id) {
      const float seen = load_logit(rows.data(), dtype, id);
      CHECK(seen == rows.value(0, id), dtype_name(dtype), " id ", id, " is ", seen, ", expected ", rows.value(0, id));
      CHECK(seen != 0.0f || !std::signbit(seen), "-0 at id ", id);
    }
  }
}

TEST(order_bits_keep_the_order) {
  for (Dtype dtype : {Dtype::kBFloat16, Dtype::kFloat16}) {
    std::vector<float> values;
    for (uint32_t bits = 0; bits < 0x10000u; ++bits)
      values.push_back(
          sanitize(static_cast<float>(converted(dtype, static_cast<uint16_t>(bits))), largest_finite(dtype)));
    std::sort(values.begin(), values.end());
    for (size_t i = 1; i < values.size(); ++i) {
      const uint32_t below = order_bits(values[i - 1]), here = order_bits(values[i]);
      CHECK(values[i - 1] == values[i] ? below == here : below < here, values[i - 1], " and ", values[i]);
      CHECK(from_order_bits(here) == values[i], values[i]);
    }
  }
  CHECK(order_bits(negative_infinity()) > 0, "-inf must stay above kNoKey");
  CHECK(order_bits(sanitize(-0.0f, 1.0f)) == order_bits(0.0f));
}

TEST(keys_order_by_value_then_id) {
  const float values[] = {negative_infinity(), -2.0f, 0.0f, 1e-45f, 2.0f, largest_finite(Dtype::kFloat32)};
  const int32_t ids[] = {0, 1, 77, 200000, (1 << 28) - 1};
  for (float a : values)
    for (float b : values)
      for (int32_t i : ids)
        for (int32_t j : ids) {
          const bool better = a > b || (a == b && i < j);
          CHECK((make_key(a, i) > make_key(b, j)) == better, a, " at ", i, " against ", b, " at ", j);
          CHECK(key_id(make_key(a, i)) == i && key_value(make_key(a, i)) == a);
          CHECK(make_key(a, i) > kNoKey);
        }
}
