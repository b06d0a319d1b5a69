// A linear layer for few rows, as passes over a handful of new ids have them.
//
// General matrix products are made for many rows, and take about twice as long for two as for one. Here the time is
// that of reading the weight once, where it lies.
#pragma once

#include <cstdint>

#include "../core/logits.h"
#include "parallel.h"

namespace unite {

// out = rows * transpose(weight) + bias, all of one dtype, float32 or bfloat16, sums in float32.
struct FewRowsLinear {
  Dtype dtype = Dtype::kFloat32;
  const void* rows = nullptr;    // [count, width]
  const void* weight = nullptr;  // [outs, width]
  const void* bias = nullptr;    // [outs], or none
  void* out = nullptr;           // [count, outs]
  int64_t count = 0;
  int64_t width = 0;
  int64_t outs = 0;
};

// A row's result does not depend on the rows beside it, nor on the number of threads. Arguments are not checked here.
void few_rows_linear_cpu(const FewRowsLinear& linear, const Parallel& parallel);

}  // namespace unite
