// The working memory of one row on the CPU. Every thread has one and keeps it from row to row.
#pragma once

#include <cstdint>
#include <vector>

#include "../core/union.h"

namespace unite {

class RowMemory {
 public:
  // Everything that core/row_step.h writes for one row of `p`.
  RowScratch take(const StepParams& p) {
    const size_t walk = static_cast<size_t>(p.members) * p.k;
    const size_t slots = p.num_slots;
    grow(top_, walk);
    grow(words_, walk + slots + slots * p.members + 2);
    grow(scores_, slots * p.members + p.members);

    RowScratch s;
    s.top = top_.data();
    s.entry_class = words_.data();
    s.slot_class = s.entry_class + walk;
    s.slot_id = s.slot_class + slots;
    s.size = s.slot_id + slots * p.members;
    s.shared_class = s.size + 1;
    s.table = table(p.num_slots);
    s.slot_score = scores_.data();
    s.log_sum = s.slot_score + slots * p.members;
    return s;
  }

  // Memory for this many entries.
  IndexTable table(int32_t entries) {
    const int32_t capacity = IndexTable::capacity_for(entries);
    grow(table_, size_t{2} * capacity);
    return {table_.data(), table_.data() + capacity, capacity};
  }

  int32_t* ids(int32_t count) {
    grow(words_, count);
    return words_.data();
  }

 private:
  template <class T>
  static void grow(std::vector<T>& v, size_t size) {
    if (v.size() < size) v.resize(size);
  }

  std::vector<uint64_t> top_;
  std::vector<int32_t> words_, table_;
  std::vector<float> scores_;
};

}  // namespace unite
