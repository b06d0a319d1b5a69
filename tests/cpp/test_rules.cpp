// Every rule of a row on tables small enough to check by hand: union, fill, duplicates, include, selection, status.
#include <cmath>
#include <vector>

#include "check.h"
#include "run_step.h"

using namespace unite;
using namespace unite_test;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int32_t kSub = kFirstSubToken;
using Table = std::vector<std::vector<float>>;

Outputs run(const World& world, const Table& logits, const Options& options) {
  std::vector<Rows> rows;
  for (const std::vector<float>& values : logits) {
    rows.emplace_back(Dtype::kFloat32, 1, static_cast<int64_t>(values.size()));
    rows.back().set_row(0, values);
  }
  return run_step(world, rows, 1, options);
}

// Classes: 0 EOS, 1 "James", 2 "Jam", 3 "J", 4 "Tom". Member 1 has no "James": its first sub-token is "J".
World james() {
  World w;
  w.class_of = {{0, 1, 2, 3, 4}, {0, 3, 2, 4}};
  w.tagged = {{0, 0}, {1, 1 | kSub}, {2, 2}, {3, 1}, {4, 3}};
  w.build();
  return w;
}
const Table kJamesLogits = {{-1, 3, 2, -2, 0}, {0, 4, 3, 2}};

void check_probs(const Outputs& out, int members, int member, const std::vector<double>& scores) {
  double sum = 0;
  for (double score : scores) sum += std::exp(score);
  for (size_t slot = 0; slot < scores.size(); ++slot) {
    const float seen = out.member_probs[slot * members + member];
    CHECK(std::fabs(seen - std::exp(scores[slot]) / sum) < 1e-6, "member ", member, " slot ", slot, " has ", seen);
  }
}

void check_ids(const Outputs& out, const std::vector<int64_t>& expected) {
  CHECK(out.union_ids.size() == expected.size(), out.union_ids.size(), " fields");
  for (size_t i = 0; i < expected.size(); ++i)
    CHECK(out.union_ids[i] == expected[i], "field ", i, " is ", out.union_ids[i], ", expected ", expected[i]);
}

}  // namespace

TEST(union_fill_and_average) {
  const Outputs out = run(james(), kJamesLogits, {});
  // James and Jam by the primary, then J by member 1; Jam is shared.
  check_ids(out, {1, 1, 2, 2, 3, 1, -1, -1});
  CHECK(out.union_size[0] == 3 && out.status[0] == kOk, "size ", out.union_size[0]);
  check_probs(out, 2, 0, {3, 2, -2});
  check_probs(out, 2, 1, {4, 3, 4});  // two slots with one id keep its logit
  for (int slot = 0; slot < 3; ++slot) {
    const double mean = (out.member_probs[slot * 2] + out.member_probs[slot * 2 + 1]) / 2.0;
    CHECK(std::fabs(out.union_probs[slot] - mean) < 1e-6, "slot ", slot);
  }
  CHECK(out.union_probs[3] == 0.0f && out.member_probs[6] == 0.0f && out.member_probs[7] == 0.0f, "padding");
  CHECK(out.winner[0] == 0 && out.next_ids[0] == 1 && out.next_ids[1] == 1, "winner ", out.winner[0]);
}

TEST(the_walk_starts_at_the_primary) {
  Options options;
  options.primary = 1;
  const Outputs out = run(james(), kJamesLogits, options);
  check_ids(out, {3, 1, 2, 2, 1, 1, -1, -1});
}

TEST(dropped_duplicates_leave_the_id_to_its_own_class) {
  Options options;
  options.duplicates = Duplicates::kDrop;
  const Outputs out = run(james(), kJamesLogits, options);
  check_ids(out, {1, 1, 2, 2, 3, 1, -1, -1});
  check_probs(out, 2, 1, {-kInf, 3, 4});
}

TEST(dropped_duplicates_leave_the_id_to_the_first_sub_token) {
  World w;  // 1 "Jim" and 2 "Jam" both start with member 1's "J"; its top-k holds only EOS
  w.class_of = {{0, 1, 2}, {0, 3}};
  w.tagged = {{0, 0}, {1, 1 | kSub}, {2, 1 | kSub}, {kNoId, 1}};
  w.build();
  Options options;
  options.duplicates = Duplicates::kDrop;
  const Outputs out = run(w, {{-5, 1, 2}, {3, -kInf}}, options);
  check_ids(out, {2, 1, 1, 1, 0, 0, -1, -1});
  check_probs(out, 2, 1, {-kInf, -kInf, 3});
  const Outputs finite =
      run(w, {{-5, 1, 2}, {3, 0.5}}, {1, 0, Score::kLogits, Duplicates::kDrop, Combine::kMean, {}, {}});
  check_ids(finite, {2, 1, 0, 0});
  check_probs(finite, 2, 1, {0.5, 3});
}

TEST(an_own_id_beats_the_representative) {
  World w;  // member 0 has class 1 twice: id 1 (representative) and id 3
  w.class_of = {{0, 1, 2, 1}, {0, 1, 2}};
  w.tagged = {{0, 0}, {1, 1}, {2, 2}};
  w.build();
  // Only id 3 is in its top-k.
  check_ids(run(w, {{0, -9, 4, 5}, {0, 1, 2}}, {}), {3, 1, 2, 2, -1, -1, -1, -1});
  // Both are: one slot, the highest-ranked id, the sum over both.
  const Outputs both = run(w, {{0, 4, 1, 5}, {0, 1, 2}}, {});
  check_ids(both, {3, 1, 2, 2, -1, -1, -1, -1});
  check_probs(both, 2, 0, {std::log(std::exp(5.0) + std::exp(4.0)), 1});
  // Neither is: the representative.
  check_ids(run(w, {{7, 1, 6, 2}, {0, 3, 2}}, {}), {0, 0, 2, 2, 1, 1, -1, -1});
}

TEST(eos_is_one_class) {
  World w;  // member 0 ends with 0 or 3; member 1 has no EOS
  w.class_of = {{0, 1, 2, 0}, {1, 2}};
  w.tagged = {{0, kNoId}, {1, 0}, {2, 1}};
  w.build();
  const Outputs out = run(w, {{4, 1, 2, 5}, {0, 1}}, {});
  check_ids(out, {3, -1, 2, 1, 1, 0, -1, -1});
  check_probs(out, 2, 1, {-kInf, 1, 0});
  // The primary lacks EOS, and EOS wins all the same.
  Options options;
  options.primary = 1;
  const Outputs wins = run(w, {{4, -20, -20, 9}, {0, 0}}, options);
  CHECK(wins.next_ids[0] == 3 && wins.next_ids[1] == -1, "next ", wins.next_ids[0], " ", wins.next_ids[1]);
}

TEST(a_slot_the_primary_cannot_emit_never_wins) {
  World w;  // the primary cannot spell class 2
  w.class_of = {{0, 1}, {0, 1, 2}};
  w.tagged = {{0, 0}, {1, 1}, {kNoId, 2}};
  w.build();
  Options options;
  options.k = 1;
  options.weights = {0.1f, 0.9f};
  const Outputs out = run(w, {{0, 1}, {0, 0, 9}}, options);
  check_ids(out, {1, 1, -1, 2});
  CHECK(out.union_probs[1] > out.union_probs[0] && out.winner[0] == 0, "winner ", out.winner[0]);
}

TEST(equal_probabilities_go_to_the_lower_slot) {
  World w;
  w.class_of = {{0, 1, 2}, {0, 1, 2}};
  w.tagged = {{0, 0}, {1, 1}, {2, 2}};
  w.build();
  const Outputs out = run(w, {{-kInf, 1.25f, 0.5f}, {-kInf, 0.5f, 1.25f}}, {});
  CHECK(out.union_probs[0] == out.union_probs[1] && out.winner[0] == 0, "winner ", out.winner[0]);
  Options other;
  other.primary = 1;
  CHECK(run(w, {{-kInf, 1.25f, 0.5f}, {-kInf, 0.5f, 1.25f}}, other).next_ids[0] == 2);
  // Equal logits within a member: lower id first.
  check_ids(run(w, {{1, 1, 1}, {1, 1, 1}}, {}), {0, 0, 1, 1, -1, -1, -1, -1});
}

TEST(include) {
  Options options;
  options.k = 1;
  const auto with = [&](int64_t id) {
    options.include = {id};
    return run(james(), kJamesLogits, options);
  };
  check_ids(with(-1), {1, 1, 3, 1, -1, -1});  // none
  check_ids(with(1), {1, 1, 3, 1, -1, -1});   // opened by the primary
  check_ids(with(3), {1, 1, 3, 1, -1, -1});   // opened by the other member
  const Outputs tom = with(4);
  check_ids(tom, {1, 1, 3, 1, 4, 3});  // appended
  check_probs(tom, 2, 0, {3, -2, 0});
  check_probs(tom, 2, 1, {4, 4, 2});
  for (int64_t bad : {int64_t{5}, int64_t{-2}, int64_t{1} << 40}) {
    const Outputs refused = with(bad);
    CHECK(refused.status[0] == kBadInclude && refused.winner[0] == -1 && refused.next_ids[0] == -1, "include ", bad);
  }
  World w = james();
  w.class_of[0][4] = -1;  // "Tom" becomes a special token
  World masked;
  masked.class_of = w.class_of;
  masked.tagged = w.tagged;
  masked.build();
  options.include = {4};
  CHECK(run(masked, kJamesLogits, options).status[0] == kBadInclude, "an ineligible include");
}

TEST(an_appended_slot_takes_a_silent_members_own_ids_by_rank) {
  // Member 1 only scores. Its two best ids are both of class 2, which nobody proposes; 2 is the class's own id there.
  World w;
  w.class_of = {{0, 1, 2}, {0, 1, 2, 2}};
  w.tagged = {{0, 0}, {1, 1}, {2, 2}};
  w.build();
  const Table logits = {{1, 2, -3}, {-5, 0, 1, 3}};
  const double both = std::log(std::exp(1.0) + std::exp(3.0));
  Options options;
  options.combine = Combine::kProduct;
  options.weights = {1.5f, -0.5f};
  options.include = {2};
  const Outputs out = run(w, logits, options);
  check_ids(out, {1, 1, 0, 0, 2, 3, -1, -1, -1, -1});
  check_probs(out, 2, 0, {2, 1, -3});
  check_probs(out, 2, 1, {0, -5, both});
  const std::vector<double> pool = {3.0, 1.5 + 2.5, -4.5 - both / 2};
  double sum = 0;
  for (double score : pool) sum += std::exp(score);
  for (int slot = 0; slot < 3; ++slot)
    CHECK(std::fabs(out.union_probs[slot] - std::exp(pool[slot]) / sum) < 1e-6, "slot ", slot);
  CHECK(out.winner[0] == 1 && out.next_ids[0] == 0 && out.next_ids[1] == 0, "winner ", out.winner[0]);

  options.k = 1;  // of its own proposals only the best is left
  check_ids(run(w, logits, options), {1, 1, 2, 3, -1, -1});
  check_probs(run(w, logits, options), 2, 1, {0, 3});
  options.weights = {1.5f, 0.5f};  // as a proposer it opens the slot itself
  options.k = 2;
  check_ids(run(w, logits, options), {1, 1, 0, 0, 2, 3, -1, -1, -1, -1});
  check_probs(run(w, logits, options), 2, 1, {0, -5, both});
}

TEST(a_member_without_logits_fails_its_row) {
  const std::vector<float> dead = {-kInf, std::nanf(""), -kInf, -kInf, -kInf};
  Options options;
  options.primary = 1;
  for (int missing : {0, 1}) {
    Table logits = kJamesLogits;
    logits[missing].assign(dead.begin(), dead.begin() + static_cast<int>(logits[missing].size()));
    const Outputs out = run(james(), logits, options);
    CHECK(out.status[0] == 1 + missing, "status ", out.status[0]);
    CHECK(out.union_size[0] == 0 && out.winner[0] == -1 && out.next_ids[0] == -1 && out.next_ids[1] == -1);
    check_ids(out, std::vector<int64_t>(8, -1));
    for (float prob : out.member_probs) CHECK(prob == 0.0f);
    for (float prob : out.union_probs) CHECK(prob == 0.0f);
  }
  CHECK(run(james(), {dead, {dead.begin(), dead.begin() + 4}}, options).status[0] == 1, "the first in member order");
}

TEST(fewer_eligible_logits_than_k) {
  Options options;
  options.k = 4;
  const Outputs out = run(james(), {{-kInf, 3, -kInf, -kInf, -kInf}, {-kInf, -kInf, 1, -kInf}}, options);
  CHECK(out.union_size[0] == 2, "size ", out.union_size[0]);
  CHECK(out.union_ids[0] == 1 && out.union_ids[1] == 1 && out.union_ids[2] == 2 && out.union_ids[3] == 2);
  CHECK(out.member_probs[0] == 1.0f && out.member_probs[1] == 0.0f, "a logit of -inf has probability 0");
}

TEST(scores_of_probabilities) {
  Options options;
  options.score = Score::kProbs;
  const Outputs out = run(james(), kJamesLogits, options);
  for (int m = 0; m < 2; ++m) {
    double total = 0;
    for (float logit : kJamesLogits[m]) total += std::exp(logit);
    std::vector<double> scores;
    const std::vector<std::vector<double>> slots = {{3, 2, -2}, {4, 3, 4}};
    for (double logit : slots[m]) scores.push_back(std::exp(logit) / total);
    check_probs(out, 2, m, scores);
  }
}

TEST(an_empty_batch_is_left_alone) {
  const World world = james();
  const std::vector<Rows> logits = {Rows(Dtype::kFloat32, 1, 5), Rows(Dtype::kFloat32, 1, 4)};
  CHECK(run_step(world, logits, 0, {}).status.empty());
}
