// The rules in double precision with std::map and std::sort, to compare fused_step_cpu with. It shares only constants
// with the core.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "run_step.h"

namespace unite_test {

struct NaiveRow {
  int status = 0;
  std::vector<std::vector<int64_t>> ids;          // [slot][member]
  std::vector<std::vector<double>> member_probs;  // [slot][member]
  std::vector<double> probs;                      // [slot]
  std::vector<bool> emits;                        // [slot] the primary can emit it, or it is EOS
};

class NaiveStep {
 public:
  NaiveStep(const World& world, const std::vector<Rows>& logits, const Options& options)
      : world_(world), logits_(logits), options_(options) {}

  NaiveRow row(int64_t row) const {
    NaiveRow out;
    std::vector<std::vector<int64_t>> top;
    for (int m = 0; m < world_.members; ++m) {
      top.push_back(top_k(m, row));
      if (top[m].empty() && out.status == 0) out.status = 1 + m;
    }
    if (out.status != 0) return out;

    std::vector<int> order = {options_.primary};
    for (int m = 0; m < world_.members; ++m)
      if (m != options_.primary) order.push_back(m);
    std::vector<int> classes;
    for (int m : order)
      for (int64_t id : top[m]) open(classes, world_.class_of[m][id]);
    if (!options_.include.empty() && options_.include[row] != -1) {
      const int64_t id = options_.include[row];
      const auto& primary = world_.class_of[options_.primary];
      if (id < 0 || id >= static_cast<int64_t>(primary.size()) || primary[id] < 0) {
        out.status = unite::kBadInclude;
        return out;
      }
      open(classes, primary[id]);
    }

    out.ids.assign(classes.size(), std::vector<int64_t>(world_.members, -1));
    out.member_probs.assign(classes.size(), std::vector<double>(world_.members, 0.0));
    for (int m = 0; m < world_.members; ++m) score_member(m, row, classes, top[m], out);
    for (size_t slot = 0; slot < classes.size(); ++slot) {
      double p = 0;
      for (int m = 0; m < world_.members; ++m) {
        const double weight = options_.weights.empty() ? 1.0 / world_.members : options_.weights[m];
        p += weight * out.member_probs[slot][m];
      }
      out.probs.push_back(p);
      out.emits.push_back(classes[slot] == 0 || out.ids[slot][options_.primary] >= 0);
    }
    return out;
  }

 private:
  static void open(std::vector<int>& classes, int cls) {
    if (std::find(classes.begin(), classes.end(), cls) == classes.end()) classes.push_back(cls);
  }

  std::vector<int64_t> top_k(int member, int64_t row) const {
    std::vector<int64_t> ids;
    for (size_t id = 0; id < world_.class_of[member].size(); ++id)
      if (world_.class_of[member][id] >= 0 && logits_[member].value(row, id) > -kInfinity) ids.push_back(id);
    std::stable_sort(ids.begin(), ids.end(), [&](int64_t a, int64_t b) {
      return logits_[member].value(row, a) > logits_[member].value(row, b);
    });
    if (static_cast<int>(ids.size()) > options_.k) ids.resize(options_.k);
    return ids;
  }

  void score_member(int member, int64_t row, const std::vector<int>& classes, const std::vector<int64_t>& top,
                    NaiveRow& out) const {
    std::map<int, int64_t> own;  // class -> its highest-ranked id
    for (int64_t id : top) own.emplace(world_.class_of[member][id], id);
    const std::vector<double> of_probs = probabilities(member, row);
    const double highest = logits_[member].value(row, top[0]);  // beside a large logit a logarithm would be lost

    std::vector<double> scores;
    std::map<int64_t, size_t> keeper;  // id -> the slot that keeps it
    for (int pass : {0, 1})            // slots with an id of their own come before first sub-tokens
      for (size_t slot = 0; slot < classes.size(); ++slot) {
        const int32_t tagged = world_.tagged[classes[slot]][member];
        const bool is_own = own.count(classes[slot]) != 0;
        const bool first_sub_token = !is_own && tagged >= unite::kFirstSubToken;
        const int64_t id = is_own ? own[classes[slot]] : tagged < 0 ? -1 : tagged % unite::kFirstSubToken;
        out.ids[slot][member] = id;
        if (id >= 0 && first_sub_token == (pass == 1)) keeper.emplace(id, slot);
      }
    for (size_t slot = 0; slot < classes.size(); ++slot) {
      const int64_t id = out.ids[slot][member];
      double score = id < 0 ? -kInfinity : logits_[member].value(row, id) - highest;
      if (options_.score == unite::Score::kProbs && id >= 0) score = of_probs[id];
      if (own.count(classes[slot]) != 0) score = of_several(member, row, classes[slot], top, of_probs);
      if (options_.duplicates == unite::Duplicates::kDrop && id >= 0 && keeper[id] != slot) score = -kInfinity;
      scores.push_back(score);
    }
    const double largest = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (double score : scores) sum += std::exp(score - largest);
    for (size_t slot = 0; slot < classes.size(); ++slot)
      out.member_probs[slot][member] = std::exp(scores[slot] - largest) / sum;
  }

  // The score of a class that is in the member's top-k, from all its ids there.
  double of_several(int member, int64_t row, int cls, const std::vector<int64_t>& top,
                    const std::vector<double>& of_probs) const {
    double largest = -kInfinity, sum = 0, probability = 0;
    for (int64_t id : top) {
      if (world_.class_of[member][id] != cls) continue;
      const double logit = logits_[member].value(row, id) - logits_[member].value(row, top[0]);
      if (largest == -kInfinity) largest = logit;
      sum += std::exp(logit - largest);
      probability += of_probs[id];
    }
    return options_.score == unite::Score::kProbs ? probability : largest + std::log(sum);
  }

  // The probability of every id among the member's eligible ones.
  std::vector<double> probabilities(int member, int64_t row) const {
    const auto& classes = world_.class_of[member];
    std::vector<double> probs;
    double largest = -kInfinity, sum = 0;
    for (size_t id = 0; id < classes.size(); ++id)
      if (classes[id] >= 0) largest = std::max(largest, logits_[member].value(row, id));
    for (size_t id = 0; id < classes.size(); ++id) {
      probs.push_back(classes[id] >= 0 ? std::exp(logits_[member].value(row, id) - largest) : 0.0);
      sum += probs.back();
    }
    for (double& p : probs) p /= sum;
    return probs;
  }

  const World& world_;
  const std::vector<Rows>& logits_;
  const Options& options_;
};

}  // namespace unite_test
