// Every member's top-k of every row, and for Score::kProbs the log of its sum.
//
// A task is one slice of one row of one member. The thread that finishes the last slice of a row also does the rest of
// that row, so a call forks and joins once and no thread waits. Slices and their sums have fixed ends and are merged in
// a fixed order, so results do not depend on the number of threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "../core/step_params.h"
#include "parallel.h"

namespace unite {

class RowScan {
 public:
  using Finish = std::function<void(const RowScan& scan, int64_t row)>;

  // Calls finish(scan, row) once per row of `p`, on any thread, when the row's top-k is complete.
  static void run(const StepParams& p, const Parallel& parallel, const Finish& finish);

  // The member's k best keys of the row, best first, kNoKey padded.
  void top_k(int64_t row, int member, uint64_t* keys) const;
  // See RowScratch::log_sum.
  float log_sum(int64_t row, int member) const;

 private:
  // The slices of a row of every member.
  struct Slices {
    int32_t per_row = 0;             // over all members
    int32_t chunks_per_row = 0;      // over all members
    int32_t length[kMaxMembers];     // of every slice but the last
    int32_t first[kMaxMembers + 1];  // slice at which a member begins
    int32_t first_chunk[kMaxMembers];

    Slices(const StepParams& p, int num_threads);
    int member_of(int32_t slice) const;
  };
  struct ChunkSum {
    float largest;
    double sum;
  };

  RowScan(const StepParams& p, int num_threads, const Finish& finish);

  void run_task(int64_t task);
  void scan_slice(int64_t row, int32_t slice);
  uint64_t* slice_keys(int64_t row, int32_t slice) const {
    return keys_.get() + (row * slices_.per_row + slice) * p_.k;
  }

  const StepParams& p_;
  const Finish& finish_;
  const Slices slices_;
  const std::unique_ptr<uint64_t[]> keys_;
  const std::unique_ptr<std::atomic<int32_t>[]> arrivals_;
  std::vector<ChunkSum> sums_;
};

}  // namespace unite
