// Running tasks in parallel with the host's threads.
#pragma once

#include <cstdint>
#include <functional>

namespace unite {

// `run` calls task(i) once for every i in [0, tasks), in any order, on any threads, and returns when all are done. It
// throws the exceptions of tasks.
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

}  // namespace unite
