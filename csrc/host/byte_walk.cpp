// Python's way to core/byte_walk.h: a vocabulary's sorted tokens as an object, and the walk over members' covers.
#include "core/byte_walk.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "byte_walk.h"

namespace py = pybind11;

namespace {

using Doubles = py::array_t<double, py::array::c_style>;

class SortedTokensObject {
 public:
  explicit SortedTokensObject(const std::vector<py::bytes>& tokens) {
    starts_.reserve(tokens.size() + 1);
    starts_.push_back(0);
    for (const py::bytes& token : tokens) {
      const std::string_view text = token;
      if (text.empty()) throw std::invalid_argument("tokens must not be empty");
      if (starts_.size() > 1 && text < std::string_view(last(), starts_.back() - starts_[starts_.size() - 2])) {
        throw std::invalid_argument("tokens must be sorted by their bytes");
      }
      bytes_.append(text);
      starts_.push_back(static_cast<int64_t>(bytes_.size()));
    }
  }

  unite::SortedTokens view() const {
    return {reinterpret_cast<const uint8_t*>(bytes_.data()), starts_.data(), static_cast<int32_t>(starts_.size() - 1)};
  }

 private:
  const char* last() const { return bytes_.data() + starts_[starts_.size() - 2]; }

  std::string bytes_;
  std::vector<int64_t> starts_;
};

// sums, first, begin, end, depth, weight, eos: see unite::Cover.
using CoverTuple = std::tuple<Doubles, int32_t, int32_t, int32_t, int32_t, double, double>;

unite::Cover as_cover(const CoverTuple& given, const unite::SortedTokens& tokens) {
  const auto& [sums, first, begin, end, depth, weight, eos] = given;
  if (begin < first || end < begin || end > tokens.count || sums.size() < static_cast<py::ssize_t>(end) - first + 1) {
    throw std::invalid_argument("a cover's sums must reach from its first token over its range");
  }
  for (int32_t token : {begin, end - 1}) {
    if (begin < end && tokens.length(token) < depth) {
      throw std::invalid_argument("a cover's tokens must have at least `depth` bytes");
    }
  }
  return {sums.data(), first, {begin, end}, depth, weight, eos};
}

py::tuple walk(const std::vector<std::tuple<const SortedTokensObject*, std::vector<CoverTuple>, double>>& given,
               int primary, double max_ended, double unlikely_share, int max_bytes, bool allow_eos,
               const std::optional<std::vector<int>>& forced, const std::optional<std::vector<double>>& draws,
               double temperature, int top_k, double top_p, int recorded) {
  std::vector<unite::WalkMember> members;
  for (const auto& [tokens, covers, weight] : given) {
    unite::WalkMember member{tokens->view(), {}, weight};
    for (const CoverTuple& cover : covers) member.covers.push_back(as_cover(cover, member.tokens));
    members.push_back(std::move(member));
  }
  if (primary < 0 || primary >= static_cast<int>(members.size())) {
    throw std::invalid_argument("primary must be a member");
  }
  for (int symbol : forced.value_or(std::vector<int>{})) {
    if (symbol < 0 || symbol >= unite::kSymbols) throw std::invalid_argument("forced must hold bytes, or 256 for EOS");
  }
  if (draws && draws->empty()) throw std::invalid_argument("draws must not be empty");
  const unite::WalkOptions options{max_ended,
                                   unlikely_share,
                                   max_bytes,
                                   allow_eos,
                                   primary,
                                   forced ? &*forced : nullptr,
                                   draws ? &*draws : nullptr,
                                   temperature,
                                   top_k,
                                   top_p,
                                   recorded};
  std::vector<unite::WalkStep> steps;
  std::vector<unite::EndedCover> ends;
  {
    py::gil_scoped_release release;
    steps = unite::walk_bytes(members, options, ends);
  }
  py::list taken;
  for (const unite::WalkStep& step : steps) {
    py::list candidates;
    for (const unite::Candidate& c : step.candidates) {
      candidates.append(py::make_tuple(c.symbol, c.prob, c.member_probs));
    }
    taken.append(py::make_tuple(step.symbol, step.is_best, step.prob, step.member_probs, candidates));
  }
  py::list ranges;
  for (const unite::WalkMember& member : members) {
    py::list own;
    for (const unite::Cover& cover : member.covers) {
      const auto ended = unite::ended_tokens(member.tokens, cover.range, cover.depth);
      const double mass = cover.mass({ended.end, cover.range.end});
      own.append(py::make_tuple(ended.end, cover.range.end, cover.depth, mass));
    }
    ranges.append(own);
  }
  py::list ended;
  for (const unite::EndedCover& e : ends) ended.append(py::make_tuple(e.member, e.cover, e.length, e.token, e.weight));
  return py::make_tuple(taken, ranges, ended);
}

// The range of the tokens with exactly these bytes, and the end of those that begin with them.
py::tuple find(const SortedTokensObject& object, const std::string& prefix) {
  const unite::SortedTokens tokens = object.view();
  unite::Cover cover{nullptr, 0, {0, tokens.count}, 0, 0.0, 0.0};
  for (char byte : prefix) {
    cover.range = unite::narrowed(tokens, cover, static_cast<uint8_t>(byte));
    cover.depth += 1;
  }
  const auto ended = unite::ended_tokens(tokens, cover.range, cover.depth);
  return py::make_tuple(ended.begin, ended.end, cover.range.end);
}

// For 1, 2, ... bytes of a text what `find` says, as long as some token begins with them.
py::list prefixes(const SortedTokensObject& object, const std::string& text) {
  const unite::SortedTokens tokens = object.view();
  unite::Cover cover{nullptr, 0, {0, tokens.count}, 0, 0.0, 0.0};
  py::list found;
  for (char byte : text) {
    cover.range = unite::narrowed(tokens, cover, static_cast<uint8_t>(byte));
    cover.depth += 1;
    if (cover.range.begin == cover.range.end) break;
    const auto ended = unite::ended_tokens(tokens, cover.range, cover.depth);
    found.append(py::make_tuple(ended.begin, ended.end, cover.range.end));
  }
  return found;
}

}  // namespace

void bind_byte_walk(py::module_& module) {
  py::class_<SortedTokensObject>(module, "SortedTokens", "A vocabulary's tokens, sorted by their bytes.")
      .def(py::init<const std::vector<py::bytes>&>(), py::arg("tokens"))
      .def("find", &find, py::arg("prefix"),
           "Where the tokens with exactly these bytes begin and end, and where those end that begin with them.")
      .def("prefixes", &prefixes, py::arg("text"),
           "What `find` says of 1, 2, ... bytes of a text, as long as some token begins with them.")
      .def("__len__", [](const SortedTokensObject& object) { return object.view().count; });
  module.def("walk", &walk, py::arg("members"), py::kw_only(), py::arg("primary"), py::arg("max_ended"),
             py::arg("unlikely_share"), py::arg("max_bytes"), py::arg("allow_eos"), py::arg("forced") = py::none(),
             py::arg("draws") = py::none(), py::arg("temperature") = 1.0, py::arg("top_k") = 0, py::arg("top_p") = 1.0,
             py::arg("recorded") = 0, "Choose the next bytes of a text, see core/byte_walk.h.");
  module.attr("END_OF_TEXT") = unite::kEndOfText;
}
