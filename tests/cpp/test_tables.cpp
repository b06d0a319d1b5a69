// The two hash tables: the map over all members' ids (read only) and the row's index table.
#include <map>
#include <random>
#include <vector>

#include "../../csrc/core/block.h"
#include "../../csrc/core/hash_map.h"
#include "../../csrc/core/index_table.h"
#include "check.h"
#include "world.h"

using namespace unite;
using namespace unite_test;

namespace {

const MapEntry kEmptyEntry{kEmptyKey, kNoClass, {kNoId, kNoId}};

// The keys of one home slot, smallest first.
std::vector<int32_t> keys_with_home(uint32_t home, int log2_capacity, size_t count) {
  std::vector<int32_t> keys;
  for (int32_t key = 0; keys.size() < count; ++key)
    if (map_slot(key, log2_capacity) == home) keys.push_back(key);
  return keys;
}

}  // namespace

TEST(map_finds_every_key_and_no_other) {
  std::mt19937 random(2);
  const World world = random_world(random, {5000, 4000, 3000}, 6000);
  for (int m = 0; m < world.members; ++m)
    for (int32_t id = 0; id < static_cast<int32_t>(world.class_of[m].size()) + 100; ++id) {
      const bool held = id < static_cast<int32_t>(world.class_of[m].size()) && world.class_of[m][id] >= 0;
      const MapEntry entry = find(world.map.data(), world.log2_capacity, map_key(m, id));
      CHECK(entry.cls == (held ? world.class_of[m][id] : kNoClass), "member ", m, " id ", id, " has class ", entry.cls);
      if (!held) continue;
      for (int other = 0; other < world.members; ++other)
        if (other != m)
          CHECK(entry.other[other_index(m, other)] == world.tagged[entry.cls][other], "member ", m, " id ", id);
    }
}

TEST(map_wraps_around) {
  const int log2_capacity = 6;
  const uint32_t capacity = 1u << log2_capacity;
  const std::vector<int32_t> keys = keys_with_home(capacity - 2, log2_capacity, 6);
  std::vector<MapEntry> map(capacity, kEmptyEntry);
  for (uint32_t i = 0; i < 5; ++i)
    map[(capacity - 2 + i) % capacity] = MapEntry{keys[i], 100 + static_cast<int>(i), {}};
  for (int i = 0; i < 5; ++i)
    CHECK(find(map.data(), log2_capacity, keys[i]).cls == 100 + i, "key ", i, " of its chain");
  CHECK(find(map.data(), log2_capacity, keys[5]).cls == kNoClass, "absent key behind a full chain");
}

TEST(map_gives_up_after_the_probe_bound) {
  const int log2_capacity = 6;
  const std::vector<int32_t> keys = keys_with_home(0, log2_capacity, 66);
  std::vector<MapEntry> map(64);
  for (int i = 0; i < 64; ++i) map[i] = MapEntry{keys[i], i, {kNoId, kNoId}};
  CHECK(find(map.data(), log2_capacity, keys[kMaxProbes - 1]).cls == kMaxProbes - 1, "last key within the bound");
  CHECK(find(map.data(), log2_capacity, keys[kMaxProbes]).cls == kNoClass, "first key past the bound");
  CHECK(find(map.data(), log2_capacity, keys[65]).cls == kNoClass, "absent key in a full map");
}

TEST(map_keys_of_all_members_differ) {
  CHECK(map_key(7, kIdMask) == INT32_MAX, "the largest key is the largest positive integer");
  for (int a = 0; a < kMaxMembers; ++a)
    for (int b = 0; b < kMaxMembers; ++b) CHECK((map_key(a, 5) == map_key(b, 5)) == (a == b));
}

TEST(tags) {
  CHECK(untag(kNoId) == kNoId && !is_first_sub_token(kNoId));
  CHECK(untag(7) == 7 && !is_first_sub_token(7));
  CHECK(untag(7 | kFirstSubToken) == 7 && is_first_sub_token(7 | kFirstSubToken));
  CHECK(untag(kIdMask | kFirstSubToken) == kIdMask);
}

TEST(index_table_keeps_the_smallest_index) {
  const SerialBlock block;
  std::mt19937 random(3);
  for (int entries : {1, 16, 17, 640, 1025}) {
    const int32_t capacity = IndexTable::capacity_for(entries);
    CHECK(capacity >= 2 * entries && (capacity & (capacity - 1)) == 0, capacity, " for ", entries);
    std::vector<int32_t> keys(capacity), indices(capacity);
    const IndexTable table{keys.data(), indices.data(), capacity};
    for (int round = 0; round < 2; ++round) {  // clear() must forget the first round
      table.clear(block);
      std::map<int32_t, int32_t> expected;
      for (int i = 0; i < entries; ++i) {
        // Few distinct keys, equal low bits: collisions and repeats.
        const int32_t key = static_cast<int32_t>(random() % (entries / 2 + 1)) << (round * 10);
        const int32_t index = static_cast<int32_t>(random() % 5000);
        table.insert_min(block, key, index);
        const auto at = expected.emplace(key, index).first;
        at->second = std::min(at->second, index);
      }
      for (const auto& [key, index] : expected) CHECK(table.find(key) == index, "key ", key, " of ", entries);
      for (int32_t key = 1; key < 100; ++key)
        if (expected.count(key) == 0) CHECK(table.find(key) == IndexTable::kAbsent, "absent key ", key);
    }
  }
}

TEST(walk_order_is_a_permutation) {
  for (int members = 1; members <= kMaxMembers; ++members)
    for (int primary = 0; primary < members; ++primary) {
      CHECK(walk_member(0, primary) == primary);
      int last = -1;
      for (int position = 0; position < members; ++position) {
        const int member = walk_member(position, primary);
        CHECK(walk_position(member, primary) == position, "member ", member, " primary ", primary);
        if (position > 0) {
          CHECK(member > last && member != primary && member < members, "the others follow in member order");
          last = member;
        }
      }
    }
}
