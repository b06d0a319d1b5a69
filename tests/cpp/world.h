// A made-up alignment: classes, ids and the tables that the step reads, built from them.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "../../csrc/core/hash_map.h"
#include "../../csrc/core/step_params.h"

namespace unite_test {

struct World {
  int members = 0;
  std::vector<std::vector<int32_t>> class_of;  // [member][id], -1: not eligible
  std::vector<std::vector<int32_t>> tagged;    // [class][member] tagged ids
  std::vector<unite::MapEntry> map;
  int log2_capacity = 1;
  std::vector<int32_t> class_ids;
  std::vector<std::vector<uint32_t>> eligible;  // [member] words

  // The tables, from class_of and tagged.
  void build() {
    members = static_cast<int>(class_of.size());
    while (!fill_map()) ++log2_capacity;
    for (const auto& row : tagged) class_ids.insert(class_ids.end(), row.begin(), row.end());
    for (const auto& classes : class_of) {
      std::vector<uint32_t> words((classes.size() + 31) / 32);
      for (size_t id = 0; id < classes.size(); ++id)
        if (classes[id] >= 0) words[id / 32] |= 1u << id % 32;
      eligible.push_back(words);
    }
  }

  void describe(unite::StepParams& p) const {
    p.members = members;
    p.map = map.data();
    p.log2_capacity = log2_capacity;
    p.class_ids = class_ids.data();
    for (int m = 0; m < members; ++m) {
      p.logits[m].eligible = eligible[m].data();
      p.logits[m].vocab_size = static_cast<int32_t>(class_of[m].size());
    }
  }

 private:
  bool fill_map() {
    const uint32_t capacity = 1u << log2_capacity;
    map.assign(capacity, unite::MapEntry{unite::kEmptyKey, unite::kNoClass, {unite::kNoId, unite::kNoId}});
    size_t entries = 0;
    for (const auto& classes : class_of) entries += classes.size();
    if (2 * entries > capacity) return false;
    for (int m = 0; m < members; ++m)
      for (int32_t id = 0; id < static_cast<int32_t>(class_of[m].size()); ++id) {
        if (class_of[m][id] < 0) continue;
        unite::MapEntry entry{unite::map_key(m, id), class_of[m][id], {unite::kNoId, unite::kNoId}};
        if (members <= unite::kMaxInlineMembers)
          for (int other = 0; other < members; ++other)
            if (other != m) entry.other[unite::other_index(m, other)] = tagged[entry.cls][other];
        uint32_t slot = unite::map_slot(entry.key, log2_capacity);
        int probes = 1;
        for (; map[slot].key != unite::kEmptyKey; ++probes) slot = (slot + 1) % capacity;
        if (probes > unite::kMaxProbes) return false;
        map[slot] = entry;
      }
    return true;
  }
};

// Every fifth id is ineligible, some classes have several ids; where a member lacks a class it has a first sub-token
// or, rarely, nothing.
inline World random_world(std::mt19937& random, const std::vector<int>& vocab_sizes, int classes) {
  World world;
  world.class_of.resize(vocab_sizes.size());
  world.tagged.assign(classes, std::vector<int32_t>(vocab_sizes.size(), unite::kNoId));
  for (size_t m = 0; m < vocab_sizes.size(); ++m) {
    std::vector<int32_t> ids;
    for (int32_t id = 0; id < vocab_sizes[m]; ++id) {
      const bool last = id == vocab_sizes[m] - 1;  // vocab_size ends at an eligible id
      const int32_t cls = random() % 5 == 0 && !last ? -1 : static_cast<int32_t>(random() % classes);
      world.class_of[m].push_back(cls);
      if (cls < 0) continue;
      ids.push_back(id);
      if (world.tagged[cls][m] == unite::kNoId) world.tagged[cls][m] = id;
    }
    for (int32_t cls = 1; cls < classes; ++cls)
      if (world.tagged[cls][m] == unite::kNoId && random() % 10 != 0)
        world.tagged[cls][m] = ids[random() % ids.size()] | unite::kFirstSubToken;
  }
  world.build();
  return world;
}

}  // namespace unite_test
