// The walk over members' covers against plain maps of strings.
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "../../csrc/core/byte_walk.h"
#include "check.h"

using namespace unite;

namespace {

// Random tokens over few letters, so that many begin others, and sometimes the same one twice.
struct Vocabulary {
  std::vector<std::string> tokens;
  std::string bytes;
  std::vector<int64_t> starts{0};

  Vocabulary(std::mt19937& random, int count) {
    std::set<std::string> drawn;
    for (int i = 0; i < count; ++i) {
      std::string token;
      const int length = 1 + static_cast<int>(random() % 5);
      for (int n = 0; n < length; ++n) token += "ab\xC3"[random() % 3];
      drawn.insert(token);
      if (random() % 8 == 0) tokens.push_back(token);
    }
    tokens.insert(tokens.end(), drawn.begin(), drawn.end());
    std::sort(tokens.begin(), tokens.end(), [](const std::string& a, const std::string& b) {
      return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) {
        return static_cast<uint8_t>(x) < static_cast<uint8_t>(y);
      });
    });
    for (const std::string& token : tokens) {
      bytes += token;
      starts.push_back(static_cast<int64_t>(bytes.size()));
    }
  }

  SortedTokens view() const {
    return {reinterpret_cast<const uint8_t*>(bytes.data()), starts.data(), static_cast<int32_t>(tokens.size())};
  }
};

std::vector<double> random_sums(std::mt19937& random, size_t count, double total) {
  std::vector<double> sums{0};
  for (size_t i = 0; i < count; ++i) sums.push_back(sums.back() + static_cast<double>(random() % 1000));
  const double scale = total / std::max(1.0, sums.back());
  for (double& value : sums) value *= scale;
  return sums;
}

bool begins(const std::string& text, const std::string& prefix) {
  return text.compare(0, prefix.size(), prefix) == 0;
}

bool close(double a, double b) {
  return std::fabs(a - b) < 1e-9;
}

}  // namespace

TEST(ranges_are_those_of_the_strings) {
  std::mt19937 random(1);
  for (int round = 0; round < 30; ++round) {
    const Vocabulary vocabulary(random, 60);
    const SortedTokens tokens = vocabulary.view();
    for (const std::string& prefix : vocabulary.tokens) {
      Cover cover{nullptr, 0, {0, tokens.count}, 0, 0, 0};
      for (char byte : prefix) {
        cover.range = narrowed(tokens, cover, static_cast<uint8_t>(byte));
        cover.depth += 1;
      }
      const TokenRange ended = ended_tokens(tokens, cover.range, cover.depth);
      for (int32_t i = 0; i < tokens.count; ++i) {
        const bool inside = i >= cover.range.begin && i < cover.range.end;
        CHECK(inside == begins(vocabulary.tokens[i], prefix), prefix, " ", i);
        CHECK((i >= ended.begin && i < ended.end) == (vocabulary.tokens[i] == prefix), prefix, " ", i);
      }
    }
  }
}

TEST(a_walk_averages_what_the_members_say_of_every_byte) {
  std::mt19937 random(2);
  for (int round = 0; round < 50; ++round) {
    const std::vector<Vocabulary> vocabularies{Vocabulary(random, 40), Vocabulary(random, 25)};
    std::vector<std::vector<double>> sums;
    std::vector<WalkMember> members;
    std::vector<std::map<std::string, double>> plain(2);
    std::vector<double> eos{0.1, 0.0};
    for (int m = 0; m < 2; ++m) sums.push_back(random_sums(random, vocabularies[m].tokens.size(), 1 - eos[m]));
    for (int m = 0; m < 2; ++m) {
      const SortedTokens tokens = vocabularies[m].view();
      members.push_back({tokens, {{sums[m].data(), 0, {0, tokens.count}, 0, 2.0, eos[m]}}, m == 0 ? 0.25 : 0.75});
      for (int32_t i = 0; i < tokens.count; ++i) {
        plain[m][vocabularies[m].tokens[i]] += 2.0 * (sums[m][i + 1] - sums[m][i]);
      }
    }
    WalkOptions options;
    options.max_ended = round % 2 ? 0.3 : 0.0;
    std::vector<EndedCover> ends;
    const std::vector<WalkStep> steps = walk_bytes(members, options, ends);
    CHECK(!steps.empty());
    std::string walked;
    for (const WalkStep& step : steps) {
      double expected = 0;
      for (int m = 0; m < 2; ++m) {
        double ended = 0, total = walked.empty() ? 2.0 * eos[m] : 0, taken = 0;
        if (walked.empty() && step.symbol == kEndOfText) taken = 2.0 * eos[m];
        for (const auto& [token, mass] : plain[m]) {
          if (token == walked) ended += mass;
          if (token == walked || !begins(token, walked)) continue;
          total += mass;
          if (static_cast<uint8_t>(token[walked.size()]) == step.symbol) taken += mass;
        }
        CHECK(walked.empty() || ended <= options.max_ended * (ended + total) + 1e-12, walked);
        CHECK(close(step.member_probs[m], taken / total), step.member_probs[m], " ", taken / total);
        expected += (m == 0 ? 0.25 : 0.75) * taken / total;
      }
      CHECK(step.is_best);
      CHECK(close(step.prob, expected), step.prob, " ", expected);
      if (step.symbol != kEndOfText) walked += static_cast<char>(step.symbol);
    }
    for (const EndedCover& end : ends) {
      const std::string& token = vocabularies[end.member].tokens[end.token];
      CHECK(token == walked.substr(0, end.length), token);
      CHECK(close(end.weight, plain[end.member][token]), token);
    }
  }
}

TEST(draws_follow_temperature_top_k_and_top_p) {
  std::array<double, kSymbols> probs{};
  probs['a'] = 0.5;
  probs['b'] = 0.3;
  probs['c'] = 0.2;
  WalkOptions options;
  CHECK(draw_symbol(probs, options, 0.0) == 'a');
  CHECK(draw_symbol(probs, options, 0.49) == 'a');
  CHECK(draw_symbol(probs, options, 0.51) == 'b');
  CHECK(draw_symbol(probs, options, 0.81) == 'c');
  CHECK(draw_symbol(probs, options, 0.9999999) == 'c');
  options.temperature = 0.5;  // squares: 25, 9, 4 of 38
  CHECK(draw_symbol(probs, options, 0.65) == 'a');
  CHECK(draw_symbol(probs, options, 0.67) == 'b');
  options.temperature = 1;
  options.top_k = 2;
  CHECK(draw_symbol(probs, options, 0.62) == 'a');
  CHECK(draw_symbol(probs, options, 0.9999999) == 'b');
  options.top_k = 0;
  options.top_p = 0.4;
  CHECK(draw_symbol(probs, options, 0.9999999) == 'a');
}

TEST(equal_symbols_are_decided_by_the_primary) {
  const std::string bytes = "xy";
  const std::vector<int64_t> starts{0, 1, 2};
  const SortedTokens tokens{reinterpret_cast<const uint8_t*>(bytes.data()), starts.data(), 2};
  const std::vector<double> first{0, 0.75, 1}, second{0, 0.25, 1};
  for (int primary : {0, 1}) {
    std::vector<WalkMember> members{{tokens, {{first.data(), 0, {0, 2}, 0, 1, 0}}, 0.5},
                                    {tokens, {{second.data(), 0, {0, 2}, 0, 1, 0}}, 0.5}};
    WalkOptions options;
    options.primary = primary;
    std::vector<EndedCover> ends;
    const std::vector<WalkStep> steps = walk_bytes(members, options, ends);
    CHECK(steps.size() == 1 && steps[0].symbol == (primary == 0 ? 'x' : 'y'));
    CHECK(members[0].covers[0].mass({0, 0}) == 0.0);
  }
}

TEST(a_forced_symbol_that_only_ended_tokens_allow_is_asked_about) {
  const std::string bytes = "eenx";  // e, en, x
  const std::vector<int64_t> starts{0, 1, 3, 4};
  const SortedTokens tokens{reinterpret_cast<const uint8_t*>(bytes.data()), starts.data(), 3};
  const std::vector<double> sums{0, 0.005, 0.99, 1};
  for (int symbol : {'n', ' '}) {
    std::vector<WalkMember> members{{tokens, {{sums.data(), 0, {0, 3}, 0, 1, 0}}, 1}};
    const std::vector<int> forced{'e', symbol};
    WalkOptions options;  // e has ended with less than max_ended
    options.forced = &forced;
    std::vector<EndedCover> ends;
    const std::vector<WalkStep> steps = walk_bytes(members, options, ends);
    CHECK(steps.size() == (symbol == 'n' ? 2u : 1u), symbol);
    CHECK(ends.size() == (symbol == 'n' ? 2u : 1u) && ends[0].length == 1 && close(ends[0].weight, 0.005), symbol);
  }
}
