// Exponential and logarithm in double, as calls: unfolded into a kernel they would take more registers than it has.
#pragma once

#include <cmath>

#include "macros.h"

namespace unite {

UNITE_NOINLINE UNITE_HOST_DEVICE inline double double_exp(double value) {
  return exp(value);
}
UNITE_NOINLINE UNITE_HOST_DEVICE inline double double_log(double value) {
  return log(value);
}

}  // namespace unite
