// The whole step on the CPU: every member's top-k, then core/fused_step.h row by row.
//
// Work is cut into tasks of one slice of one row of one member. Whoever finishes the last slice of a row also
// does that row's tail, so a call forks and joins once and nobody waits. Slices and their sums have fixed borders and
// are merged in a fixed order: results do not depend on the number of threads.
#pragma once

#include <cstdint>
#include <functional>

#include "../core/step_params.h"

namespace unite {

// How the host runs things side by side. `run` calls task(i) once for every i in [0, tasks), in any order, on
// any threads, and returns when all are done; exceptions of a task come out of it.
struct Parallel {
  using Task = std::function<void(int64_t)>;

  int num_threads = 1;
  std::function<void(int64_t tasks, const Task& task)> run;

  static Parallel serial() {
    return {1, [](int64_t tasks, const Task& task) {
              for (int64_t i = 0; i < tasks; ++i) task(i);
            }};
  }
};

// Fills every output of `p`. Arguments are not checked here; status[] tells which rows failed and why.
void fused_step_cpu(const StepParams& p, const Parallel& parallel);

}  // namespace unite
