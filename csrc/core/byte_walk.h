// Choose the next bytes of a text from members that each know them token by token.
//
// A vocabulary's tokens are sorted by their bytes, so the tokens that begin with given bytes are a range, and what a
// member gives them is a difference of two prefix sums. A *cover* is one way in which a member may have read the text:
// its tokens end at or before the end of the text, and the next one reaches beyond. Where the cover stands is the range
// of tokens that begin with the bytes between.
//
// The walk goes byte by byte. At every node each member's covers share out its probability among the next bytes, the
// members' shares are averaged, and one byte is taken. It stops where tokens of a member have ended with too large a
// share: what that member thinks of the bytes behind them is not known before another pass.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

namespace unite {

// Tokens of a vocabulary in the order of their bytes; a token stands before those that it begins.
struct SortedTokens {
  const uint8_t* bytes;   // of all tokens, one after the other
  const int64_t* starts;  // [count + 1], where each begins
  int32_t count;

  int32_t length(int32_t token) const { return static_cast<int32_t>(starts[token + 1] - starts[token]); }
  uint8_t byte(int32_t token, int32_t depth) const { return bytes[starts[token] + depth]; }
};

struct TokenRange {
  int32_t begin;
  int32_t end;
};

// The tokens of a range, which agree in `depth` bytes, that have no more bytes.
inline TokenRange ended_tokens(const SortedTokens& tokens, TokenRange range, int32_t depth) {
  int32_t end = range.begin;
  while (end < range.end && tokens.length(end) == depth) ++end;
  return {range.begin, end};
}

// The first token after `begin` whose byte at `depth` is another one. All tokens from `begin` on are longer than depth.
inline int32_t next_child(const SortedTokens& tokens, int32_t begin, int32_t end, int32_t depth) {
  const uint8_t byte = tokens.byte(begin, depth);
  int32_t step = 1, low = begin;  // tokens.byte(low) == byte
  while (low + step < end && tokens.byte(low + step, depth) == byte) {
    low += step;
    step *= 2;
  }
  int32_t high = std::min(end, low + step);
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    (tokens.byte(middle, depth) == byte ? low : high) = middle;
  }
  return high;
}

struct Cover {
  const double* sums;  // prefix sums of the next token's probabilities, sums[0] belongs to token `first`
  int32_t first;
  TokenRange range;  // the tokens that go on from where it stands
  int32_t depth;     // how many bytes they agree in
  double weight;
  double eos;  // probability of ending here; 0 where the cover's tokens end before the text

  double mass(TokenRange tokens) const { return sums[tokens.end - first] - sums[tokens.begin - first]; }
};

struct WalkMember {
  SortedTokens tokens;
  std::vector<Cover> covers;
  double weight;  // in the average
};

constexpr int kEndOfText = 256;  // the symbol after the 256 bytes
constexpr int kSymbols = 257;

struct WalkOptions {
  double max_ended = 0.01;
  double unlikely_share = 0.1;  // where a forced symbol is unlikely, max_ended is this share of its probability
  int max_bytes = 256;
  bool allow_eos = true;
  int primary = 0;                             // decides between equal symbols
  const std::vector<int>* forced = nullptr;    // symbols to take whatever the members say; the walk ends with them
  const std::vector<double>* draws = nullptr;  // uniform numbers in [0, 1), one per symbol; null to take the best
  double temperature = 1.0;
  int top_k = 0;
  double top_p = 1.0;
  int recorded = 0;  // how many of its best symbols every member brings into a step's candidates
};

struct Candidate {
  int symbol;
  double prob;
  std::vector<double> member_probs;
};

struct WalkStep {
  int symbol;
  bool is_best;
  double prob;
  std::vector<double> member_probs;
  std::vector<Candidate> candidates;  // best first, the symbol taken among them; none unless they are recorded
};

// A way of reading the walked text that ends inside it or with it: a cover and one more token.
struct EndedCover {
  int member;
  int cover;
  int length;     // how many of the walk's bytes it spells
  int32_t token;  // the first of those with these bytes
  double weight;
};

// What one member says of the next symbol at the node where its covers stand.
struct NextSymbol {
  std::array<double, kSymbols> mass{};
  double ended = 0;  // of tokens that end at the node
  double total = 0;  // of `mass`
};

inline void add_cover(const SortedTokens& tokens, const Cover& cover, bool at_root, bool allow_eos, NextSymbol& next) {
  if (at_root && allow_eos && cover.eos > 0) next.mass[kEndOfText] += cover.weight * cover.eos;
  if (cover.range.begin >= cover.range.end) return;
  const TokenRange ended = ended_tokens(tokens, cover.range, cover.depth);
  if (!at_root) next.ended += cover.weight * cover.mass(ended);
  for (int32_t at = ended.end; at < cover.range.end;) {
    const int32_t after = next_child(tokens, at, cover.range.end, cover.depth);
    next.mass[tokens.byte(at, cover.depth)] += cover.weight * cover.mass({at, after});
    at = after;
  }
}

// The tokens of a cover that go on with a byte.
inline TokenRange narrowed(const SortedTokens& tokens, const Cover& cover, int byte) {
  for (int32_t at = ended_tokens(tokens, cover.range, cover.depth).end; at < cover.range.end;) {
    const int32_t after = next_child(tokens, at, cover.range.end, cover.depth);
    if (tokens.byte(at, cover.depth) == byte) return {at, after};
    at = after;
  }
  return {cover.range.end, cover.range.end};
}

// Draw one of the symbols: temperature, then the top_k best, then the fewest that together have top_p.
inline int draw_symbol(const std::array<double, kSymbols>& probs, const WalkOptions& options, double uniform) {
  std::vector<std::pair<double, int>> kept;  // best first, equal ones by symbol
  for (int s = 0; s < kSymbols; ++s) {
    if (probs[s] > 0) kept.emplace_back(std::pow(probs[s], 1.0 / options.temperature), s);
  }
  std::stable_sort(kept.begin(), kept.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  if (options.top_k > 0 && static_cast<size_t>(options.top_k) < kept.size()) kept.resize(options.top_k);
  double total = 0;
  for (const auto& [p, s] : kept) total += p;
  if (options.top_p < 1) {
    double sum = 0;
    size_t count = 0;
    while (count < kept.size() && sum < options.top_p * total) sum += kept[count++].first;
    kept.resize(std::max<size_t>(count, 1));
    total = sum;
  }
  double left = uniform * total;
  for (const auto& [p, s] : kept) {
    left -= p;
    if (left < 0) return s;
  }
  return kept.back().second;
}

// What each member gives a symbol.
inline std::vector<double> symbol_probs(const std::vector<NextSymbol>& next, int symbol) {
  std::vector<double> found;
  for (const NextSymbol& member : next) found.push_back(member.total > 0 ? member.mass[symbol] / member.total : 0.0);
  return found;
}

// The union of every member's `recorded` best symbols and the one that is taken: best first, equal ones by symbol.
inline std::vector<Candidate> recorded_candidates(const std::vector<NextSymbol>& next,
                                                  const std::array<double, kSymbols>& probs, int taken, int recorded) {
  std::array<bool, kSymbols> wanted{};
  wanted[taken] = true;
  for (const NextSymbol& member : next) {
    std::vector<int> symbols;
    for (int s = 0; s < kSymbols; ++s) {
      if (member.mass[s] > 0) symbols.push_back(s);
    }
    std::stable_sort(symbols.begin(), symbols.end(), [&](int a, int b) { return member.mass[a] > member.mass[b]; });
    for (int n = 0; n < std::min<int>(recorded, static_cast<int>(symbols.size())); ++n) wanted[symbols[n]] = true;
  }
  std::vector<Candidate> found;
  for (int s = 0; s < kSymbols; ++s) {
    if (wanted[s]) found.push_back({s, probs[s], symbol_probs(next, s)});
  }
  std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.prob > b.prob; });
  return found;
}

// Walks from where the covers stand, and moves them along. A cover that has nothing to say any more has an empty range.
// `ends` takes the covers that tokens of theirs end along the way.
inline std::vector<WalkStep> walk_bytes(std::vector<WalkMember>& members, const WalkOptions& options,
                                        std::vector<EndedCover>& ends) {
  const int count = static_cast<int>(members.size());
  const int limit = options.forced ? static_cast<int>(options.forced->size()) : options.max_bytes;
  std::vector<WalkStep> steps;
  std::vector<NextSymbol> next(count);
  for (int n = 0; n < limit; ++n) {
    double voting = 0;
    for (int m = 0; m < count; ++m) {
      next[m] = NextSymbol{};
      for (const Cover& cover : members[m].covers) {
        add_cover(members[m].tokens, cover, n == 0, options.allow_eos, next[m]);
      }
      for (double mass : next[m].mass) next[m].total += mass;
      if (n > 0 && members[m].weight > 0 && !(next[m].ended <= options.max_ended * (next[m].ended + next[m].total))) {
        return steps;
      }
      if (n > 0 && members[m].weight > 0 && !(next[m].total > 0)) return steps;
      if (next[m].total > 0) voting += members[m].weight;
    }
    if (!(voting > 0)) return steps;
    std::array<double, kSymbols> probs{};
    for (int m = 0; m < count; ++m) {  // in member order, so that equal sums are equal everywhere
      if (!(next[m].total > 0)) continue;
      const double scale = members[m].weight / voting / next[m].total;
      for (int s = 0; s < kSymbols; ++s) probs[s] += scale * next[m].mass[s];
    }
    int best = 0;
    const auto& own = next[options.primary].mass;
    for (int s = 1; s < kSymbols; ++s) {
      if (probs[s] > probs[best] || (probs[s] == probs[best] && own[s] > own[best])) best = s;
    }
    int symbol = best;
    if (options.forced) {
      symbol = (*options.forced)[n];
      // What may follow the tokens that have ended can be all that makes it possible.
      const double allowed = options.unlikely_share * probs[symbol];
      for (int m = 0; m < count && n > 0; ++m) {
        const double all = next[m].ended + next[m].total;
        if (members[m].weight > 0 && next[m].ended > allowed * all) return steps;
      }
    } else if (options.draws) {
      symbol = draw_symbol(probs, options, (*options.draws)[n % options.draws->size()]);
    }
    steps.push_back({symbol, symbol == best, probs[symbol], symbol_probs(next, symbol), {}});
    if (options.recorded > 0) {
      steps.back().candidates = recorded_candidates(next, probs, symbol, options.recorded);
    }
    if (symbol == kEndOfText) return steps;
    for (int m = 0; m < count; ++m) {
      for (size_t c = 0; c < members[m].covers.size(); ++c) {
        Cover& cover = members[m].covers[c];
        cover.range = narrowed(members[m].tokens, cover, symbol);
        cover.depth += 1;
        const TokenRange ended = ended_tokens(members[m].tokens, cover.range, cover.depth);
        const double weight = cover.weight * cover.mass(ended);
        if (weight > 0) ends.push_back({m, static_cast<int>(c), n + 1, ended.begin, weight});
      }
    }
  }
  return steps;
}

}  // namespace unite
