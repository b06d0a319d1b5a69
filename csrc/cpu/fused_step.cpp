// Slices, arrivals, tails: see fused_step.h.
#include "fused_step.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "../core/fused_step.h"
#include "top_k_scan.h"

namespace unite {

namespace {

// log-sum-exp adds up chunks of this many ids, whatever the slices are; slices end on such borders.
constexpr int32_t kChunk = 4096;
// A shorter slice costs more in bookkeeping than it gains.
constexpr int32_t kMinSlice = 4 * kChunk;
// Tasks per thread: several even out a thread that starts late, but each has its own top-k to find and sort.
int64_t tasks_per_thread(int32_t k) {
  return k <= 16 ? 4 : k <= 64 ? 2 : 1;
}

struct ChunkSum {
  float largest;
  double sum;
};

int32_t ceil_div(int32_t a, int32_t b) {
  return (a + b - 1) / b;
}

// How a row of every member is cut into slices.
struct Slices {
  int32_t per_row = 0;             // over all members
  int32_t chunks_per_row = 0;      // over all members
  int32_t length[kMaxMembers];     // of every slice but the last
  int32_t first[kMaxMembers + 1];  // slice at which a member begins
  int32_t first_chunk[kMaxMembers];

  Slices(const StepParams& p, int num_threads) {
    int64_t row_ids = 0;
    for (int m = 0; m < p.members; ++m) row_ids += p.logits[m].vocab_size;
    // One thread gains nothing from slices, and neither do many rows.
    int32_t target = INT32_MAX - kChunk;
    if (num_threads > 1) {
      const int64_t share = row_ids * p.batch / (num_threads * tasks_per_thread(p.k));
      target = static_cast<int32_t>(std::min<int64_t>(std::max<int64_t>(share, kMinSlice), target));
    }
    for (int m = 0; m < p.members; ++m) {
      const int32_t vocab = p.logits[m].vocab_size;
      const int32_t slices = std::max(1, (vocab + target / 2) / target);
      length[m] = std::max(1, ceil_div(ceil_div(vocab, slices), kChunk)) * kChunk;
      first[m] = per_row;
      first_chunk[m] = chunks_per_row;
      per_row += std::max(1, ceil_div(vocab, length[m]));
      chunks_per_row += ceil_div(vocab, kChunk);
    }
    first[p.members] = per_row;
  }

  int member_of(int32_t slice) const {
    int m = 0;
    while (slice >= first[m + 1]) ++m;
    return m;
  }
};

// What one thread needs, kept from call to call.
struct ThreadScratch {
  ScanScratch scan;
  std::vector<uint64_t> top;
  std::vector<int32_t> words;
  std::vector<float> scores;

  RowScratch row(const StepParams& p) {
    const size_t walk = static_cast<size_t>(p.members) * p.k;
    const size_t slots = p.num_slots;
    const size_t capacity = IndexTable::capacity_for(p.num_slots);
    grow(top, walk);
    grow(words, walk + slots + slots * p.members + 2 * capacity + 1);
    grow(scores, slots * p.members + p.members);

    RowScratch s;
    s.top = top.data();
    int32_t* next = words.data();
    const auto take = [&next](size_t count) {
      int32_t* taken = next;
      next += count;
      return taken;
    };
    s.entry_class = take(walk);
    s.slot_class = take(slots);
    s.slot_id = take(slots * p.members);
    s.table.keys = take(capacity);
    s.table.indices = take(capacity);
    s.table.capacity = static_cast<int32_t>(capacity);
    s.size = take(1);
    s.slot_score = scores.data();
    s.log_sum = scores.data() + slots * p.members;
    return s;
  }

 private:
  template <class T>
  static void grow(std::vector<T>& v, size_t size) {
    if (v.size() < size) v.resize(size);
  }
};

ThreadScratch& thread_scratch() {
  thread_local ThreadScratch scratch;
  return scratch;
}

// One call: what the tasks share.
class Step {
 public:
  Step(const StepParams& p, int num_threads)
      : p_(p),
        slices_(p, num_threads),
        keys_(new uint64_t[static_cast<size_t>(p.batch) * slices_.per_row * p.k]),
        arrivals_(new std::atomic<int32_t>[p.batch]) {
    for (int32_t row = 0; row < p.batch; ++row) arrivals_[row].store(0, std::memory_order_relaxed);
    if (p.score == Score::kProbs) sums_.resize(static_cast<size_t>(p.batch) * slices_.chunks_per_row);
  }

  int64_t tasks() const { return static_cast<int64_t>(p_.batch) * slices_.per_row; }

  void run_task(int64_t task) {
    const int64_t row = task / slices_.per_row;
    scan_slice(row, static_cast<int32_t>(task % slices_.per_row));
    // The last to arrive sees what the others wrote.
    if (arrivals_[row].fetch_add(1, std::memory_order_acq_rel) == slices_.per_row - 1) finish_row(row);
  }

 private:
  uint64_t* slice_keys(int64_t row, int32_t slice) const {
    return keys_.get() + (row * slices_.per_row + slice) * p_.k;
  }

  void scan_slice(int64_t row, int32_t slice) {
    const int member = slices_.member_of(slice);
    const MemberLogits& logits = p_.logits[member];
    const RowView view{row_pointer(logits, row), logits.eligible, logits.dtype};
    const int32_t begin = (slice - slices_.first[member]) * slices_.length[member];
    const int32_t end = std::min(begin + slices_.length[member], logits.vocab_size);
    top_k_scan(view, begin, end, p_.k, thread_scratch().scan, slice_keys(row, slice));

    if (p_.score != Score::kProbs) return;
    const ScanKernels& kernels = scan_kernels();
    ChunkSum* sum = sums_.data() + row * slices_.chunks_per_row + slices_.first_chunk[member] + begin / kChunk;
    for (int32_t at = begin; at < end; at += kChunk, ++sum)
      kernels.sum_exp(view, at, std::min(at + kChunk, end), &sum->largest, &sum->sum);
  }

  float log_sum(int64_t row, int member) const {
    const ChunkSum* chunk = sums_.data() + row * slices_.chunks_per_row + slices_.first_chunk[member];
    const int32_t chunks = ceil_div(p_.logits[member].vocab_size, kChunk);
    float largest = negative_infinity();
    for (int32_t c = 0; c < chunks; ++c) largest = std::max(largest, chunk[c].largest);
    double sum = 0.0;
    for (int32_t c = 0; c < chunks; ++c)
      if (chunk[c].sum > 0.0) sum += chunk[c].sum * std::exp(static_cast<double>(chunk[c].largest) - largest);
    return static_cast<float>(std::log(sum));
  }

  void finish_row(int64_t row) {
    RowScratch s = thread_scratch().row(p_);
    for (int m = 0; m < p_.members; ++m) {
      uint64_t* top = s.top + walk_position(m, p_.primary) * p_.k;
      std::copy_n(slice_keys(row, slices_.first[m]), p_.k, top);
      for (int32_t slice = slices_.first[m] + 1; slice < slices_.first[m + 1]; ++slice)
        merge_top_k(top, slice_keys(row, slice), p_.k);
      if (p_.score == Score::kProbs) s.log_sum[m] = log_sum(row, m);
    }
    SerialBlock block;
    fuse_row(block, p_, row, s);
  }

  const StepParams& p_;
  const Slices slices_;
  const std::unique_ptr<uint64_t[]> keys_;
  const std::unique_ptr<std::atomic<int32_t>[]> arrivals_;
  std::vector<ChunkSum> sums_;
};

}  // namespace

void fused_step_cpu(const StepParams& p, const Parallel& parallel) {
  if (p.batch == 0) return;
  const int num_threads = std::max(1, parallel.num_threads);
  Step step(p, num_threads);
  const int64_t tasks = step.tasks();
  if (num_threads == 1) {
    for (int64_t task = 0; task < tasks; ++task) step.run_task(task);
    return;
  }
  // One long-lived worker per thread, which takes tasks in order: neighbours in memory are read close in time.
  std::atomic<int64_t> next{0};
  parallel.run(std::min<int64_t>(num_threads, tasks), [&](int64_t) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) step.run_task(task);
  });
}

}  // namespace unite
