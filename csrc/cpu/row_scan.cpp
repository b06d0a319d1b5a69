// See row_scan.h.
#include "row_scan.h"

#include <algorithm>
#include <cmath>

#include "top_k_scan.h"

namespace unite {

namespace {

// log-sum-exp adds up chunks of this many ids, whatever the slices are; slices end where chunks do.
constexpr int32_t kChunk = 4096;
// A shorter slice costs more to organise than it saves.
constexpr int32_t kMinSlice = 4 * kChunk;
// Tasks per thread. Several balance a thread that starts late, but each has its own top-k to find and sort.
int64_t tasks_per_thread(int32_t k) {
  return k <= 16 ? 4 : k <= 64 ? 2 : 1;
}

int32_t ceil_div(int32_t a, int32_t b) {
  return (a + b - 1) / b;
}

}  // namespace

RowScan::Slices::Slices(const StepParams& p, int num_threads) {
  int64_t row_ids = 0;
  for (int m = 0; m < p.members; ++m) row_ids += p.logits[m].vocab_size;
  // Neither one thread nor many rows gain anything from slices.
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

int RowScan::Slices::member_of(int32_t slice) const {
  int m = 0;
  while (slice >= first[m + 1]) ++m;
  return m;
}

RowScan::RowScan(const StepParams& p, int num_threads, const Finish& finish)
    : p_(p),
      finish_(finish),
      slices_(p, num_threads),
      keys_(new uint64_t[static_cast<size_t>(p.batch) * slices_.per_row * p.k]),
      arrivals_(new std::atomic<int32_t>[p.batch]) {
  for (int32_t row = 0; row < p.batch; ++row) arrivals_[row].store(0, std::memory_order_relaxed);
  if (p.score == Score::kProbs) sums_.resize(static_cast<size_t>(p.batch) * slices_.chunks_per_row);
}

void RowScan::run(const StepParams& p, const Parallel& parallel, const Finish& finish) {
  if (p.batch == 0) return;
  const int num_threads = std::max(1, parallel.num_threads);
  RowScan scan(p, num_threads, finish);
  const int64_t tasks = static_cast<int64_t>(p.batch) * scan.slices_.per_row;
  if (num_threads == 1) {
    for (int64_t task = 0; task < tasks; ++task) scan.run_task(task);
    return;
  }
  // One worker per thread takes tasks in order, so that neighbours in memory are read at about the same time.
  std::atomic<int64_t> next{0};
  parallel.run(std::min<int64_t>(num_threads, tasks), [&](int64_t) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) scan.run_task(task);
  });
}

void RowScan::run_task(int64_t task) {
  const int64_t row = task / slices_.per_row;
  scan_slice(row, static_cast<int32_t>(task % slices_.per_row));
  // The last thread to arrive sees what the others wrote.
  if (arrivals_[row].fetch_add(1, std::memory_order_acq_rel) == slices_.per_row - 1) finish_(*this, row);
}

void RowScan::scan_slice(int64_t row, int32_t slice) {
  thread_local ScanScratch scratch;
  const int member = slices_.member_of(slice);
  const MemberLogits& logits = p_.logits[member];
  const RowView view{row_pointer(logits, row), logits.eligible, logits.dtype};
  const int32_t begin = (slice - slices_.first[member]) * slices_.length[member];
  const int32_t end = std::min(begin + slices_.length[member], logits.vocab_size);
  top_k_scan(view, begin, end, p_.k, scratch, slice_keys(row, slice));

  if (p_.score != Score::kProbs) return;
  const ScanKernels& kernels = scan_kernels();
  ChunkSum* sum = sums_.data() + row * slices_.chunks_per_row + slices_.first_chunk[member] + begin / kChunk;
  for (int32_t at = begin; at < end; at += kChunk, ++sum)
    kernels.sum_exp(view, at, std::min(at + kChunk, end), &sum->largest, &sum->sum);
}

void RowScan::top_k(int64_t row, int member, uint64_t* keys) const {
  std::copy_n(slice_keys(row, slices_.first[member]), p_.k, keys);
  for (int32_t slice = slices_.first[member] + 1; slice < slices_.first[member + 1]; ++slice)
    merge_top_k(keys, slice_keys(row, slice), p_.k);
}

float RowScan::log_sum(int64_t row, int member) const {
  const ChunkSum* chunk = sums_.data() + row * slices_.chunks_per_row + slices_.first_chunk[member];
  const int32_t chunks = ceil_div(p_.logits[member].vocab_size, kChunk);
  float largest = negative_infinity();
  for (int32_t c = 0; c < chunks; ++c) largest = std::max(largest, chunk[c].largest);
  double sum = 0.0;
  for (int32_t c = 0; c < chunks; ++c)
    if (chunk[c].sum > 0.0) sum += chunk[c].sum * std::exp(static_cast<double>(chunk[c].largest) - largest);
  return static_cast<float>(std::log(sum));
}

}  // namespace unite
