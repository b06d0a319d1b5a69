// A step drawn at random: vocabularies, logits, options.
#pragma once

#include <string>
#include <vector>

#include "run_step.h"

namespace unite_test {

struct Case {
  World world;
  std::vector<Rows> logits;
  Options options;
  int batch;
  std::string what;
};

inline std::vector<Rows> random_logits(std::mt19937& random, const World& world, int batch, const std::string& name) {
  std::vector<Rows> logits;
  for (int m = 0; m < world.members; ++m) {
    const int vocab = static_cast<int>(world.class_of[m].size());
    const Dtype dtype = kDtypes[random() % 3];
    // Rows start misaligned, and some are strided.
    logits.emplace_back(dtype, batch, vocab, vocab + (random() % 2 ? 0 : 13), static_cast<int>(random() % 5));
    for (int row = 0; row < batch; ++row) logits[m].set_row(row, pattern(name, vocab, random));
  }
  return logits;
}

inline Case random_case(std::mt19937& random, int members, int largest_vocab, const std::string& name,
                        unite::Combine combine = unite::Combine::kMean) {
  std::vector<int> vocab;
  for (int m = 0; m < members; ++m) vocab.push_back(7 + static_cast<int>(random() % largest_vocab));
  Case c;
  c.world = random_world(random, vocab, 5 + largest_vocab);
  c.batch = 1 + static_cast<int>(random() % 5);
  c.logits = random_logits(random, c.world, c.batch, name);
  const int ks[] = {1, 2, 10, 64, 256};
  c.options.k = ks[random() % 5];
  if (members * c.options.k > unite::kMaxWalk) c.options.k = unite::kMaxWalk / members;
  c.options.primary = static_cast<int>(random() % members);
  c.options.score = random() % 3 ? unite::Score::kLogits : unite::Score::kProbs;
  c.options.duplicates = random() % 2 ? unite::Duplicates::kRepeat : unite::Duplicates::kDrop;
  c.options.combine = combine;
  if (combine == unite::Combine::kProduct) {
    for (int m = 0; m < members; ++m) c.options.weights.push_back(static_cast<float>(random() % 9) / 4.0f - 1.0f);
    c.options.weights[c.options.primary] = 1.25f;
  } else if (random() % 2) {
    float sum = 0;
    for (int m = 0; m < members; ++m) c.options.weights.push_back(static_cast<float>(1 + random() % 9));
    for (float w : c.options.weights) sum += w;
    for (float& w : c.options.weights) w /= sum;
  }
  if (random() % 2)
    for (int row = 0; row < c.batch; ++row)
      c.options.include.push_back(static_cast<int64_t>(random() % (vocab[c.options.primary] + 3)) - 2);
  c.what = name + ", " + std::to_string(members) + " members, k " + std::to_string(c.options.k);
  return c;
}

}  // namespace unite_test
