// The stable softmax of one member over the slots of the union, by one lane group.
//
// Exponentials and their sum are made in double and rounded once. So neither the order of a sum nor whose exp() it is
// shows in the result: the bits are those of unite_ext/reference.py on every device, but for rare roundings of halves.
#pragma once

#include <cmath>
#include <cstdint>

#include "block.h"
#include "double_math.h"
#include "logits.h"

namespace unite {

// exp(value), rounded once.
UNITE_HOST_DEVICE inline float rounded_exp(float value) {
  return static_cast<float>(double_exp(static_cast<double>(value)));
}

// Replaces values[i * stride], i < count, by their softmax in float32. A value of -inf gets probability 0; at
// least one value is above -inf. All lanes of the calling group take part.
template <class Block>
UNITE_HOST_DEVICE void softmax(const Block& block, float* values, int count, int stride) {
  float largest = negative_infinity();
  for (int i = block.lane(); i < count; i += block.num_lanes()) largest = fmaxf(largest, values[i * stride]);
  largest = block.group_max(largest);

  double sum = 0.0;
  for (int i = block.lane(); i < count; i += block.num_lanes()) {
    const float e = rounded_exp(values[i * stride] - largest);
    values[i * stride] = e;
    sum += static_cast<double>(e);
  }
  const float total = static_cast<float>(block.group_sum(sum));
  for (int i = block.lane(); i < count; i += block.num_lanes()) values[i * stride] /= total;
}

}  // namespace unite
