// The step in parts against the fused one, bit for bit, and with keys that no member would send.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "../../csrc/core/key_order.h"
#include "../../csrc/cpu/step_parts.h"
#include "check.h"
#include "random_case.h"

using namespace unite;
using namespace unite_test;

namespace {

template <class T>
Matrix<T> dense(const std::vector<T>& values, int columns) {
  return {values.data(), columns, 1};
}

Outputs run_parts(const World& world, const std::vector<Rows>& logits, int batch, const Options& options,
                  const Parallel& parallel) {
  StepParams step{};
  describe(step, world, logits, batch, options);
  const int members = world.members, k = options.k, slots = step.num_slots;
  std::vector<std::vector<uint64_t>> own(members, std::vector<uint64_t>(batch * k, 77));
  std::vector<std::vector<float>> log_sums(members, std::vector<float>(batch, -77.0f));
  std::vector<uint64_t> keys(static_cast<size_t>(batch) * members * k);
  for (int m = 0; m < members; ++m) {
    TopKeysPart top{};
    top.step.batch = batch;
    top.step.members = 1;
    top.step.k = top.step.num_slots = k;
    top.step.score = options.score;
    top.step.logits[0] = step.logits[m];
    top.keys = own[m].data();
    top.log_sums = log_sums[m].data();
    top_k_keys_cpu(top, parallel);
    for (int row = 0; row < batch; ++row)
      std::memcpy(&keys[(static_cast<size_t>(row) * members + m) * k], &own[m][row * k], k * sizeof(uint64_t));
  }

  std::vector<int32_t> ids(static_cast<size_t>(batch) * slots * members, 77), classes(batch * slots, 77);
  std::vector<int32_t> size(batch, 77), status(batch, 77), key_slots(keys.size(), 77);
  UnionPart all{step, keys.data(), ids.data(), classes.data(), key_slots.data()};
  all.step.union_size = size.data();
  all.step.status = status.data();
  unite_keys_cpu(all, parallel);

  std::vector<float> probs(ids.size());
  for (int m = 0; m < members; ++m) {
    const Matrix<int32_t> column{ids.data() + m, slots * members, members};
    std::vector<float> values(batch * slots, -77.0f), scored(batch * slots, -77.0f);
    gather_logits_cpu({step.logits[m], batch, slots, column, {}, values.data()}, parallel);
    const std::vector<int64_t> mine(own[m].begin(), own[m].end());
    score_slots_cpu({batch,
                     slots,
                     k,
                     options.score,
                     options.duplicates,
                     options.combine,
                     dense(values, slots),
                     column,
                     size.data(),
                     dense(mine, k),
                     {key_slots.data() + m * k, members * k, 1},
                     log_sums[m].data(),
                     scored.data()},
                    parallel);
    for (int i = 0; i < batch * slots; ++i) probs[static_cast<size_t>(i) * members + m] = scored[i];
  }

  CombinePart end{step, probs.data(), ids.data(), classes.data(), size.data(), status.data()};
  Outputs out = attach_outputs(end.step);
  combine_slots_cpu(end, parallel);
  return out;
}

}  // namespace

TEST(parts_are_the_fused_step) {
  std::mt19937 random(21);
  int failed = 0, rows = 0;
  for (int round = 0; round < 8; ++round)
    for (int members : {1, 2, 3, 4, 8})
      for (const std::string& name : pattern_names()) {
        const Combine combine = round % 2 == 0 ? Combine::kMean : Combine::kProduct;
        const Case c = random_case(random, members, round % 3 == 0 ? 9000 : 150, name, combine);
        const Outputs expected = run_step(c.world, c.logits, c.batch, c.options, threads(2));
        CHECK(run_parts(c.world, c.logits, c.batch, c.options, Parallel::serial()) == expected, c.what);
        CHECK(run_parts(c.world, c.logits, c.batch, c.options, threads(3)) == expected, c.what, ", three threads");
        for (int32_t status : expected.status) failed += status != kOk;
        rows += c.batch;
      }
  CHECK(failed > 0 && failed < rows / 2, failed, " of ", rows, " rows failed: the cases are off");
}

TEST(an_own_proposal_counts_with_its_key) {
  // The member's top-k is id 4 at 2.5; its slots are 4, 7 and 4 once more as a first sub-token.
  const std::vector<int64_t> keys = {static_cast<int64_t>(make_key(2.5f, 4))};
  const std::vector<int32_t> slots = {4, 7, 4 | kFirstSubToken}, size = {3};
  const std::vector<float> values = {std::nanf(""), 1.0f, -50.0f}, log_sums = {0};
  const std::vector<int32_t> key_slots = {0};
  std::vector<float> probs(3);
  for (Duplicates duplicates : {Duplicates::kRepeat, Duplicates::kDrop}) {
    score_slots_cpu({1, 3, 1, Score::kLogits, duplicates, Combine::kMean, dense(values, 3), dense(slots, 3),
                     size.data(), dense(keys, 1), dense(key_slots, 1), log_sums.data(), probs.data()},
                    Parallel::serial());
    const float third = duplicates == Duplicates::kDrop ? 0.0f : probs[0];
    CHECK(probs[2] == third && probs[0] > probs[1] && probs[1] > 0, probs[0], " ", probs[1], " ", probs[2]);
  }
}

TEST(what_came_over_a_network_is_not_trusted_with_memory) {
  std::mt19937 random(22);
  const int batch = 4, k = 12, members = 2, slots = members * k;
  const World world = random_world(random, {90, 70}, 100);
  const std::vector<Rows> logits = {Rows(Dtype::kBFloat16, batch, 90), Rows(Dtype::kFloat32, batch, 70)};
  Options options;
  options.k = k;
  StepParams step{};
  describe(step, world, logits, batch, options);
  const auto anything = [&random]() -> uint64_t {
    const uint64_t bits = static_cast<uint64_t>(random()) << 32 | random();
    return random() % 2 ? bits : make_key(float_from_bits(random()), static_cast<int32_t>(random() % 200) - 50);
  };
  for (int round = 0; round < 500; ++round) {
    std::vector<uint64_t> keys(batch * members * k);
    for (uint64_t& key : keys) key = anything();
    std::vector<int32_t> ids(batch * slots * members), classes(batch * slots), size(batch), status(batch);
    std::vector<int32_t> key_slots(keys.size());
    UnionPart all{step, keys.data(), ids.data(), classes.data(), key_slots.data()};
    all.step.union_size = size.data();
    all.step.status = status.data();
    unite_keys_cpu(all, Parallel::serial());
    for (int row = 0; row < batch; ++row) {
      CHECK(size[row] >= 0 && size[row] <= slots && (size[row] == 0) == (status[row] != kOk), "size ", size[row]);
      for (int i = 0; i < size[row] * members; ++i) {
        const int32_t id = untag(ids[row * slots * members + i]);
        CHECK(id >= -1 && id < step.logits[i % members].vocab_size, "id ", id);
      }
      for (int i = 0; i < members * k; ++i) {
        const int32_t slot = key_slots[row * members * k + i];
        CHECK(slot >= -1 && slot < std::max(size[row], 0), "slot ", slot);
      }
    }

    for (int32_t& id : ids) id = static_cast<int32_t>(random());
    for (int32_t& slot : key_slots) slot = static_cast<int32_t>(random()) % 40;
    for (int32_t& s : size) s = static_cast<int32_t>(random()) % 40;
    for (int32_t& cls : classes) cls = static_cast<int32_t>(random()) % 4;
    for (int32_t& s : status) s = static_cast<int32_t>(random()) % 2;
    std::vector<float> values(batch * slots), log_sums(batch), probs(batch * slots), all_probs(batch * slots * members);
    const Matrix<int32_t> column{ids.data(), slots * members, members};
    gather_logits_cpu({step.logits[0], batch, slots, column, {}, values.data()}, Parallel::serial());
    const std::vector<int64_t> mine(keys.begin(), keys.begin() + batch * k);
    score_slots_cpu({batch,
                     slots,
                     k,
                     Score::kProbs,
                     Duplicates::kDrop,
                     round % 2 == 0 ? Combine::kMean : Combine::kProduct,
                     dense(values, slots),
                     column,
                     size.data(),
                     dense(mine, k),
                     {key_slots.data(), k, 1},
                     log_sums.data(),
                     probs.data()},
                    Parallel::serial());
    step.combine = round % 2 == 0 ? Combine::kMean : Combine::kProduct;
    CombinePart end{step, all_probs.data(), ids.data(), classes.data(), size.data(), status.data()};
    const Outputs out = attach_outputs(end.step);
    combine_slots_cpu(end, Parallel::serial());
    for (int row = 0; row < batch; ++row)
      CHECK(out.winner[row] >= -1 && out.winner[row] < slots && (out.winner[row] < 0) == (out.status[row] != kOk));
  }
}
