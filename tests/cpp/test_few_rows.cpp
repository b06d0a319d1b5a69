// A linear layer for few rows against sums in double precision.
#include <cmath>
#include <random>
#include <vector>

#include "../../csrc/cpu/few_rows.h"
#include "../../csrc/cpu/isa.h"
#include "check.h"

using namespace unite;

namespace {

// Memory ends with the numbers, so that sanitizers see a read beyond them.
std::vector<float> drawn(std::mt19937& random, int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<size_t>(count));
  for (float& x : numbers) x = normal(random);
  return numbers;
}

Parallel backwards() {
  return {2, [](int64_t tasks, const Parallel::Task& task) {
            for (int64_t i = tasks; i-- > 0;) task(i);
          }};
}

}  // namespace

TEST(few_rows_are_multiplied) {
  std::mt19937 random(1);
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2}) {
    if (!set_isa(isa)) continue;
    for (int64_t count : {0, 1, 2, 3, 4, 5, 6, 7, 8, 13})
      for (int64_t width : {1, 7, 8, 9, 40, 3000})
        for (int64_t outs : {1, 3, 4, 11, 12, 13, 50}) {
          const auto rows = drawn(random, count * width), weight = drawn(random, outs * width);
          const auto bias = drawn(random, outs);
          std::vector<float> out(static_cast<size_t>(count * outs), NAN);
          FewRowsLinear linear;
          linear.rows = rows.data(), linear.weight = weight.data(), linear.out = out.data();
          linear.count = count, linear.width = width, linear.outs = outs;
          const bool has_bias = (count + outs) % 2;
          if (has_bias) linear.bias = bias.data();
          few_rows_linear_cpu(linear, backwards());
          for (int64_t r = 0; r < count; ++r)
            for (int64_t o = 0; o < outs; ++o) {
              double sum = has_bias ? bias[o] : 0.0, size = 1.0;
              for (int64_t i = 0; i < width; ++i) {
                const double product = static_cast<double>(rows[r * width + i]) * weight[o * width + i];
                sum += product, size += std::abs(product);
              }
              CHECK(std::abs(out[r * outs + o] - sum) <= 1e-6 * size, isa_name(isa), " ", count, " x ", width, " x ",
                    outs, ": ", out[r * outs + o], ", expected ", sum);
            }
        }
  }
  set_isa(best_isa());
}
