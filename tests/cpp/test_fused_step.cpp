// The whole step against the naive one, and its independence of threads and instruction sets.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "../../csrc/cpu/isa.h"
#include "check.h"
#include "naive_step.h"
#include "random_case.h"

using namespace unite;
using namespace unite_test;

namespace {

// Selection is compared exactly unless the two largest probabilities are within 1e-6.
void check_winner(const Case& c, const Outputs& out, int row, const NaiveRow& expected) {
  double best = -1, second = -1;
  int winner = -1;
  for (size_t slot = 0; slot < expected.probs.size(); ++slot) {
    if (!expected.emits[slot]) continue;
    const double p = expected.probs[slot];
    if (p > best) {
      second = best;
      best = p;
      winner = static_cast<int>(slot);
    } else {
      second = std::max(second, p);
    }
  }
  const int seen = out.winner[row];
  CHECK(seen >= 0 && seen < static_cast<int>(expected.probs.size()) && expected.emits[seen], c.what, " winner ", seen);
  if (best - second > 1e-6)
    CHECK(seen == winner, c.what, ": winner ", seen, ", expected ", winner);
  else
    CHECK(expected.probs[seen] >= best - 1e-6, c.what, ": winner ", seen, " is not among the largest");
  for (int m = 0; m < c.world.members; ++m)
    CHECK(out.next_ids[row * c.world.members + m] == expected.ids[seen][m], c.what, ": next id of member ", m);
}

void check_row(const Case& c, const Outputs& out, int row) {
  const NaiveRow expected = NaiveStep(c.world, c.logits, c.options).row(row);
  const int members = c.world.members;
  const int slots = members * c.options.k + (c.options.include.empty() ? 0 : 1);
  const int size = static_cast<int>(expected.ids.size());
  CHECK(out.status[row] == expected.status, c.what, ": status ", out.status[row], ", expected ", expected.status);
  CHECK(out.union_size[row] == size, c.what, ": size ", out.union_size[row], ", expected ", size);
  for (int slot = 0; slot < slots; ++slot) {
    for (int m = 0; m < members; ++m) {
      const int64_t id = out.union_ids[(static_cast<int64_t>(row) * slots + slot) * members + m];
      const float prob = out.member_probs[(static_cast<int64_t>(row) * slots + slot) * members + m];
      CHECK(id == (slot < size ? expected.ids[slot][m] : -1), c.what, ": slot ", slot, " member ", m, " has id ", id);
      const double want = slot < size ? expected.member_probs[slot][m] : 0.0;
      CHECK(std::fabs(prob - want) < 2e-6, c.what, ": slot ", slot, " member ", m, " has ", prob, ", expected ", want);
    }
    const float prob = out.union_probs[static_cast<int64_t>(row) * slots + slot];
    CHECK(std::fabs(prob - (slot < size ? expected.probs[slot] : 0.0)) < 2e-6, c.what, ": slot ", slot, " has ", prob);
  }
  if (expected.status == 0) return check_winner(c, out, row, expected);
  CHECK(out.winner[row] == -1, c.what, ": a failed row has winner ", out.winner[row]);
  for (int m = 0; m < members; ++m) CHECK(out.next_ids[row * members + m] == -1, c.what, ": a failed row has ids");
}

}  // namespace

TEST(step_is_the_naive_step) {
#ifdef __SANITIZE_ADDRESS__
  const int rounds = 3;  // every pattern and number of members at both widths: what memory is touched
#else
  const int rounds = 12;
#endif
  std::mt19937 random(11);
  int failed_rows = 0, rows = 0;
  for (int round = 0; round < rounds; ++round)
    for (int members : {1, 2, 3, 4, 8})
      for (const std::string& name : pattern_names()) {
        const Case c = random_case(random, members, round % 3 == 0 ? 1500 : 150, name);
        const Outputs out = run_step(c.world, c.logits, c.batch, c.options);
        for (int row = 0; row < c.batch; ++row) {
          check_row(c, out, row);
          failed_rows += out.status[row] != 0;
          ++rows;
        }
      }
  CHECK(failed_rows > 0 && failed_rows < rows / 2, failed_rows, " of ", rows, " rows failed: the cases are off");
}

TEST(step_does_not_depend_on_threads_or_instruction_set) {
  std::mt19937 random(12);
  for (Score score : {Score::kLogits, Score::kProbs})
    for (int batch : {1, 3, 9}) {
      Case c;
      c.world = random_world(random, {90001, 70007, 333}, 100000);
      c.batch = batch;
      c.logits = random_logits(random, c.world, batch, batch == 3 ? "ties" : "gaussian");
      c.options.k = 40;
      c.options.score = score;
      c.what = "threads";
      const Outputs expected = run_step(c.world, c.logits, batch, c.options);
      check_row(c, expected, batch - 1);
      for (int count : {1, 2, 3, 8, 64})
        CHECK(run_step(c.world, c.logits, batch, c.options, threads(count)) == expected, count, " threads differ");
      // A host may promise threads and then run everything on one.
      Parallel promised = Parallel::serial();
      promised.num_threads = 16;
      CHECK(run_step(c.world, c.logits, batch, c.options, promised) == expected, "promised threads");
      for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
        if (!set_isa(isa)) continue;
        const bool same = run_step(c.world, c.logits, batch, c.options) == expected;
        set_isa(best_isa());
        CHECK(same, isa_name(isa), " differs from ", isa_name(best_isa()));
      }
    }
}

TEST(rows_are_independent) {
  std::mt19937 random(13);
  const Case c = [&] {
    Case built = random_case(random, 2, 900, "gaussian");
    built.batch = 4;
    built.logits = random_logits(random, built.world, built.batch, "gaussian");
    built.options = Options{};
    built.options.k = 10;
    return built;
  }();
  const Outputs together = run_step(c.world, c.logits, c.batch, c.options, threads(2));
  std::vector<Rows> changed = c.logits;
  for (int m = 0; m < 2; ++m)
    for (size_t id = 0; id < c.world.class_of[m].size(); ++id) changed[m].set(1, static_cast<int64_t>(id), -kInfinity);
  const Outputs apart = run_step(c.world, changed, c.batch, c.options, threads(2));
  CHECK(apart.status[1] == 1, "row 1 lost its logits");
  for (int row : {0, 2, 3})
    for (int i = 0; i < 40; ++i)
      CHECK(apart.union_ids[row * 40 + i] == together.union_ids[row * 40 + i] &&
                apart.member_probs[row * 40 + i] == together.member_probs[row * 40 + i],
            "row ", row, " changed with row 1");
}

TEST(exceptions_of_the_host_come_through) {
  std::mt19937 random(14);
  const Case c = random_case(random, 2, 100, "gaussian");
  Parallel broken{2, [](int64_t, const Parallel::Task&) { throw std::runtime_error("no threads"); }};
  bool thrown = false;
  try {
    run_step(c.world, c.logits, c.batch, c.options, broken);
  } catch (const std::runtime_error&) {
    thrown = true;
  }
  CHECK(thrown);
  run_step(c.world, c.logits, c.batch, c.options);  // and leave nothing behind
}
