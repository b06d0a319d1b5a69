// Calls fused_step_cpu on plain vectors, and holds its outputs.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

#include "../../csrc/cpu/fused_step.h"
#include "logits_data.h"
#include "world.h"

namespace unite_test {

struct Options {
  int k = 2;
  int primary = 0;
  unite::Score score = unite::Score::kLogits;
  unite::Duplicates duplicates = unite::Duplicates::kRepeat;
  unite::Combine combine = unite::Combine::kMean;
  std::vector<float> weights;    // empty: uniform
  std::vector<int64_t> include;  // empty: no row has one
};

struct Outputs {
  std::vector<int64_t> next_ids, union_ids;
  std::vector<float> union_probs, member_probs;
  std::vector<int32_t> union_size, winner, status;

  bool operator==(const Outputs& o) const {
    return next_ids == o.next_ids && union_ids == o.union_ids && union_probs == o.union_probs &&
           member_probs == o.member_probs && union_size == o.union_size && winner == o.winner && status == o.status;
  }
};

// Runs tasks on this many new threads, in any order.
inline unite::Parallel threads(int count) {
  return {count, [count](int64_t tasks, const unite::Parallel::Task& task) {
            std::atomic<int64_t> next{0};
            std::vector<std::thread> pool;
            for (int t = 0; t < count; ++t)
              pool.emplace_back([&] {
                for (int64_t i; (i = next.fetch_add(1)) < tasks;) task(i);
              });
            for (std::thread& thread : pool) thread.join();
          }};
}

inline void describe(unite::StepParams& p, const World& world, const std::vector<Rows>& logits, int batch,
                     const Options& options) {
  world.describe(p);
  p.batch = batch;
  p.k = options.k;
  p.primary = options.primary;
  p.num_slots = world.members * options.k + (options.include.empty() ? 0 : 1);
  p.score = options.score;
  p.duplicates = options.duplicates;
  p.combine = options.combine;
  for (int m = 0; m < world.members; ++m) {
    p.weights[m] = options.weights.empty() ? 1.0f / static_cast<float>(world.members) : options.weights[m];
    p.logits[m].data = logits[m].data();
    p.logits[m].row_stride = logits[m].stride();
    p.logits[m].dtype = logits[m].dtype();
  }
  p.include = options.include.empty() ? nullptr : options.include.data();
}

// Outputs for `p`, filled with values that no correct step leaves there.
inline Outputs attach_outputs(unite::StepParams& p) {
  const size_t rows = p.batch, slots = rows * p.num_slots, fields = slots * p.members;
  Outputs out{std::vector<int64_t>(rows * p.members, -77),
              std::vector<int64_t>(fields, -77),
              std::vector<float>(slots, -77.0f),
              std::vector<float>(fields, -77.0f),
              std::vector<int32_t>(rows, -77),
              std::vector<int32_t>(rows, -77),
              std::vector<int32_t>(rows, -77)};
  p.next_ids = out.next_ids.data();
  p.union_ids = out.union_ids.data();
  p.union_probs = out.union_probs.data();
  p.member_probs = out.member_probs.data();
  p.union_size = out.union_size.data();
  p.winner = out.winner.data();
  p.status = out.status.data();
  return out;
}

inline Outputs run_step(const World& world, const std::vector<Rows>& logits, int batch, const Options& options,
                        const unite::Parallel& parallel = unite::Parallel::serial()) {
  unite::StepParams p{};
  describe(p, world, logits, batch, options);
  Outputs out = attach_outputs(p);
  fused_step_cpu(p, parallel);
  return out;
}

}  // namespace unite_test
