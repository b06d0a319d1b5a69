// The logit of several ids that stand for one text: the logarithm of the sum of their exponentials.
#pragma once

#include <cmath>

#include "logits.h"

namespace unite {

// Logits are added from the largest down, in a fixed order, so that the sum is the same wherever it is made. The sum of
// a single logit, minus the origin, is their difference to the bit.
struct LogitSum {
  float largest = negative_infinity();
  float total = 0.0f;  // of exp(logit - largest); 0 before the first

  UNITE_HOST_DEVICE void add(float logit) {
    if (total == 0.0f) {
      largest = logit;
      total = 1.0f;
    } else {
      total = plain_sum(total, expf(logit - largest));
    }
  }
  UNITE_HOST_DEVICE bool empty() const { return total == 0.0f; }
  // Relative to `origin`, so that the logarithm is not lost beside a large logit.
  UNITE_HOST_DEVICE float minus(float origin) const { return plain_sum(largest - origin, logf(total)); }
};

}  // namespace unite
