// The scan against std::sort: every instruction set, dtype, pattern, mask, length, k and misalignment.
#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "../../csrc/core/key_order.h"
#include "../../csrc/cpu/top_k_scan.h"
#include "check.h"
#include "logits_data.h"

using namespace unite;
using namespace unite_test;

namespace {

using Words = std::vector<uint32_t>;
struct Entry {
  double value;
  int32_t id;
};

std::vector<Isa> isas() {
  std::vector<Isa> found;
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512})
    if (set_isa(isa)) found.push_back(isa);
  set_isa(best_isa());
  return found;
}

const std::vector<std::string> kMasks = {"all", "none", "alternating", "tail", "one_in_a_thousand_off", "one_in_500"};

Words mask(const std::string& name, int32_t width) {
  Words words((width + 31) / 32);
  for (int32_t id = 0; id < width; ++id) {
    bool on = name != "none";
    if (name == "alternating") on = id % 2 == 1;
    if (name == "tail") on = id < width - width / 4;
    if (name == "one_in_a_thousand_off") on = id % 1000 != 3;
    if (name == "one_in_500") on = id % 500 == 7;
    if (on) words[id / 32] |= 1u << id % 32;
  }
  return words;
}

bool is_on(const Words& words, int32_t id) {
  return words[id / 32] >> id % 32 & 1u;
}

// Every candidate of a row, best first.
std::vector<Entry> sorted(const Rows& rows, const Words& words, int32_t begin, int32_t end) {
  std::vector<Entry> entries;
  for (int32_t id = begin; id < end; ++id)
    if (is_on(words, id) && rows.value(0, id) > -kInfinity) entries.push_back({rows.value(0, id), id});
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.value > b.value || (a.value == b.value && a.id < b.id); });
  return entries;
}

void check_keys(const std::vector<uint64_t>& keys, const std::vector<Entry>& expected, int k, const std::string& what) {
  for (int i = 0; i < k; ++i) {
    if (i >= static_cast<int>(expected.size())) {
      CHECK(keys[i] == kNoKey, what, ": rank ", i, " should be empty, is id ", key_id(keys[i]));
      continue;
    }
    CHECK(keys[i] != kNoKey, what, ": rank ", i, " is empty, expected id ", expected[i].id);
    CHECK(key_id(keys[i]) == expected[i].id, what, ": rank ", i, " is id ", key_id(keys[i]), ", expected ",
          expected[i].id);
    CHECK(key_value(keys[i]) == expected[i].value, what, ": rank ", i, " is ", key_value(keys[i]));
  }
}

void check_scan(const Rows& rows, const Words& words, int32_t width, const std::vector<int>& ks,
                const std::string& what) {
  const std::vector<Entry> expected = sorted(rows, words, 0, width);
  const RowView view{rows.data(), words.data(), rows.dtype()};
  ScanScratch scratch;
  for (Isa isa : isas()) {
    set_isa(isa);
    for (int k : ks) {
      std::vector<uint64_t> keys(k, 12345);
      top_k_scan(view, 0, width, k, scratch, keys.data());
      check_keys(keys, expected, k,
                 what + " " + dtype_name(rows.dtype()) + " " + isa_name(isa) + " width " + std::to_string(width) +
                     " k " + std::to_string(k));
    }
  }
  set_isa(best_isa());
}

}  // namespace

TEST(instruction_sets) {
  CHECK(set_isa(Isa::kScalar) && active_isa() == Isa::kScalar, "scalar code runs everywhere");
  for (int isa = 0; isa <= 2; ++isa)
    CHECK(set_isa(static_cast<Isa>(isa)) == (isa <= static_cast<int>(best_isa())), isa_name(static_cast<Isa>(isa)));
  CHECK(!set_isa(static_cast<Isa>(3)) && !set_isa(static_cast<Isa>(-1)), "unknown instruction sets");
  CHECK(active_isa() == best_isa(), "a refused choice changes nothing");
  CHECK(std::string(isa_name(Isa::kAvx512)) == "avx512" && std::string(isa_name(Isa::kScalar)) == "scalar");
}

TEST(scan_every_short_length) {
  std::mt19937 random(4);
  for (int width = 1; width <= 600; ++width)
    for (Dtype dtype : kDtypes) {
      const std::string name = pattern_names()[random() % pattern_names().size()];
      const std::string on = kMasks[random() % kMasks.size()];
      Rows rows(dtype, 1, width, 0, width % 7);
      rows.set_row(0, pattern(name, width, random));
      check_scan(rows, mask(on, width), width, {1, 2, 10, 256}, name + " " + on);
    }
}

TEST(scan_every_pattern_and_mask) {
  std::mt19937 random(5);
  for (const std::string& name : pattern_names())
    for (const std::string& on : kMasks)
      for (Dtype dtype : kDtypes) {
        const int width = 4000 + static_cast<int>(random() % 3000);
        Rows rows(dtype, 1, width);
        rows.set_row(0, pattern(name, width, random));
        check_scan(rows, mask(on, width), width, {1, 7, 64, 256}, name + " " + on);
      }
}

TEST(scan_real_widths) {
  std::mt19937 random(6);
  for (const std::string& name : pattern_names())
    for (Dtype dtype : kDtypes) {
      const int width = random() % 2 ? 32000 : 151646;
      Rows rows(dtype, 1, width, 0, 3);
      rows.set_row(0, pattern(name, width, random));
      check_scan(rows, mask("one_in_a_thousand_off", width), width, {1, 10, 256}, name);
    }
}

TEST(scan_every_k) {
  std::mt19937 random(7);
  for (const char* name : {"gaussian", "ties", "ascending"}) {
    const int width = 3001;
    Rows rows(Dtype::kBFloat16, 1, width);
    rows.set_row(0, pattern(name, width, random));
    std::vector<int> ks;
    for (int k = 1; k <= 256; ++k) ks.push_back(k);
    check_scan(rows, mask("all", width), width, ks, name);
  }
}

TEST(ineligible_winners_do_not_hide_the_others) {
  std::mt19937 random(8);
  const int width = 20000;
  Rows rows(Dtype::kFloat32, 1, width);
  std::vector<float> values = pattern("gaussian", width, random);
  Words words = mask("all", width);
  for (int id = 0; id < width; id += 40) {  // a special token with a huge logit in every block
    values[id] = 1000.0f;
    words[id / 32] &= ~(1u << id % 32);
  }
  rows.set_row(0, values);
  check_scan(rows, words, width, {1, 10, 64, 256}, "specials");
}

TEST(slices_merge_into_the_whole) {
  std::mt19937 random(9);
  for (const std::string& name : pattern_names())
    for (int k : {1, 10, 256}) {
      const int width = 9000 + static_cast<int>(random() % 500);
      Rows rows(Dtype::kFloat32, 1, width);
      rows.set_row(0, pattern(name, width, random));
      const Words words = mask("one_in_a_thousand_off", width);
      const RowView view{rows.data(), words.data(), rows.dtype()};
      ScanScratch scratch;
      std::vector<uint64_t> merged(k, kNoKey), slice(k);
      for (int begin = 0, end; begin < width; begin = end) {
        end = std::min(width, begin + kStretchAlign * static_cast<int>(1 + random() % 60));
        top_k_scan(view, begin, end, k, scratch, slice.data());
        check_keys(slice, sorted(rows, words, begin, end), k, name + " slice from " + std::to_string(begin));
        merge_top_k(merged.data(), slice.data(), k);
      }
      check_keys(merged, sorted(rows, words, 0, width), k, name + " merged");
    }
}

TEST(log_sum_exp_is_the_same_on_every_instruction_set) {
  std::mt19937 random(10);
  for (Dtype dtype : kDtypes)
    for (const std::string& name : pattern_names()) {
      const int width = 1 + static_cast<int>(random() % 4096);
      Rows rows(dtype, 1, width);
      rows.set_row(0, pattern(name, width, random));
      const Words words = mask("one_in_a_thousand_off", width);
      double expected_largest = -kInfinity, expected = 0;
      for (const Entry& e : sorted(rows, words, 0, width)) expected_largest = std::max(expected_largest, e.value);
      for (const Entry& e : sorted(rows, words, 0, width)) expected += std::exp(e.value - expected_largest);
      double first_sum = -1;
      for (Isa isa : isas()) {
        set_isa(isa);
        float largest;
        double sum;
        scan_kernels().sum_exp({rows.data(), words.data(), dtype}, 0, width, &largest, &sum);
        CHECK(largest == expected_largest, name, " ", isa_name(isa), " largest is ", largest);
        CHECK(std::fabs(sum - expected) <= 1e-6 * expected, name, " ", isa_name(isa), " sum ", sum, ", not ", expected);
        if (first_sum < 0) first_sum = sum;
        CHECK(sum == first_sum, name, " ", isa_name(isa), " differs from scalar");
      }
      set_isa(best_isa());
    }
}
