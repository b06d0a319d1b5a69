// The stable softmax of one member over the slots of the union, by one lane group.
#pragma once

#include <cmath>
#include <cstdint>

#include "block.h"
#include "logits.h"

namespace unite {

// Replaces values[i * stride], i < count, by their softmax in float32. A value of -inf gets probability 0; at
// least one value is above -inf. All lanes of the calling group take part.
template <class Block>
UNITE_HOST_DEVICE void softmax(const Block& block, float* values, int count, int stride) {
  float largest = negative_infinity();
  for (int i = block.lane(); i < count; i += block.num_lanes()) largest = fmaxf(largest, values[i * stride]);
  largest = block.group_max(largest);

  float sum = 0.0f;
  for (int i = block.lane(); i < count; i += block.num_lanes()) {
    const float e = expf(values[i * stride] - largest);
    values[i * stride] = e;
    sum = plain_sum(sum, e);
  }
  sum = block.group_sum(sum);
  for (int i = block.lane(); i < count; i += block.num_lanes()) values[i * stride] /= sum;
}

}  // namespace unite
