// The logit of several ids that stand for one text: the logarithm of the sum of their exponentials.
#pragma once

#include <cmath>

#include "double_math.h"
#include "logits.h"

namespace unite {

// Logits are added from the largest down, in a fixed order, so that the sum is the same wherever it is made. The sum of
// a single logit, minus the origin, is their difference to the bit. It is made in double and rounded once, at its end.
struct LogitSum {
  float largest = negative_infinity();
  double total = 0.0;  // of exp(logit - largest); 0 before the first

  UNITE_HOST_DEVICE void add(float logit) {
    if (empty()) {
      largest = logit;
      total = 1.0;
    } else {
      total += double_exp(static_cast<double>(logit) - static_cast<double>(largest));
    }
  }
  UNITE_HOST_DEVICE bool empty() const { return total == 0.0; }
  // Relative to `origin`, so that the logarithm is not lost beside a large logit.
  UNITE_HOST_DEVICE float minus(float origin) const {
    return static_cast<float>(static_cast<double>(largest) - static_cast<double>(origin) + double_log(total));
  }
};

}  // namespace unite
