// Checks the arguments of the step's parts, allocates the outputs and fills the parameters. Shared by every backend.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "core/part_params.h"
#include "step_arguments.h"

namespace unite {

using TopKeysOutputs = std::tuple<Tensor, Tensor>;  // keys, log_sums
// slots, slot_classes, union_size, status, key_slots
using UnionOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

namespace detail {

template <class T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// [rows, columns] of the given dtype, with any strides, on the device of `first`.
template <class T>
Matrix<T> matrix(const char* name, const Tensor& tensor, ScalarType dtype, int64_t rows, int64_t columns,
                 const Tensor& first) {
  if (tensor.scalar_type() != dtype) fail(name, " has the wrong dtype");
  if (tensor.dim() != 2) fail(name, " must have 2 dimensions, got ", tensor.dim());
  if (tensor.size(0) != rows || tensor.size(1) != columns)
    fail(name, " must be [", rows, ", ", columns, "], got [", tensor.size(0), ", ", tensor.size(1), "]");
  check_same_device(name, tensor, first);
  return {data_of<const T>(tensor), tensor.stride(0), tensor.stride(1)};
}

// One number per row.
template <class T>
const T* per_row(const char* name, const Tensor& tensor, ScalarType dtype, int64_t rows, const Tensor& first) {
  check_dense(name, tensor, dtype, 1, first);
  if (tensor.size(0) != rows) fail(name, " must have ", rows, " entries, got ", tensor.size(0));
  return data_of<const T>(tensor);
}

inline int32_t checked_rows(const Tensor& tensor) {
  check_range("the batch", tensor.size(0), 0, INT32_MAX);
  return static_cast<int32_t>(tensor.size(0));
}

inline int32_t checked_slots(const Tensor& tensor) {
  check_range("the number of slots", tensor.size(1), 1, kMaxSlots);
  return static_cast<int32_t>(tensor.size(1));
}

}  // namespace detail

struct TopKeysArguments {
  TopKeysPart part{};
  TopKeysOutputs outputs;

  TopKeysArguments(const Tensor& logits, const Tensor& eligible, int64_t eligible_offset, int64_t vocab_size, int64_t k,
                   const std::string& score) {
    StepParams& p = part.step;
    p.logits[0] = detail::member_logits("logits", logits, eligible, eligible_offset, vocab_size);
    detail::set_sizes(p, logits.size(0), 1, k, 0, false);
    p.score = parse_score(score);
    outputs = TopKeysOutputs(detail::empty({p.batch, p.k}, aoti_torch_dtype_int64(), logits),
                             detail::empty({p.batch}, aoti_torch_dtype_float32(), logits));
    part.keys = detail::data_of<uint64_t>(std::get<0>(outputs));
    part.log_sums = detail::data_of<float>(std::get<1>(outputs));
  }
};

struct UnionArguments {
  UnionPart part{};
  UnionOutputs outputs;

  UnionArguments(const Tensor& keys, const Tensor& table, const Tensor& class_ids,
                 const std::vector<int64_t>& vocab_sizes, int64_t primary, const std::vector<double>& weights,
                 const std::string& combine, const std::optional<Tensor>& include) {
    check_dense("keys", keys, ScalarType::Long, 3, keys);
    StepParams& p = part.step;
    detail::set_sizes(p, keys.size(0), keys.size(1), keys.size(2), primary, include.has_value());
    detail::set_tables(p, table, class_ids, keys);
    detail::set_include(p, include, keys);
    detail::set_weights(p, weights, combine);
    check_length("vocab_sizes", vocab_sizes.size(), p.members);
    for (int m = 0; m < p.members; ++m) {
      check_range("vocab_sizes", vocab_sizes[m], 1, kIdMask);
      p.logits[m].vocab_size = static_cast<int32_t>(vocab_sizes[m]);
    }
    const int32_t i32 = aoti_torch_dtype_int32();
    outputs = UnionOutputs(detail::empty({p.batch, p.num_slots, p.members}, i32, keys),
                           detail::empty({p.batch, p.num_slots}, i32, keys), detail::empty({p.batch}, i32, keys),
                           detail::empty({p.batch}, i32, keys), detail::empty({p.batch, p.members, p.k}, i32, keys));
    part.keys = detail::data_of<const uint64_t>(keys);
    part.slots = detail::data_of<int32_t>(std::get<0>(outputs));
    part.slot_classes = detail::data_of<int32_t>(std::get<1>(outputs));
    p.union_size = detail::data_of<int32_t>(std::get<2>(outputs));
    p.status = detail::data_of<int32_t>(std::get<3>(outputs));
    part.key_slots = detail::data_of<int32_t>(std::get<4>(outputs));
  }
};

struct GatherArguments {
  GatherPart part{};
  Tensor values;

  GatherArguments(const Tensor& logits, const Tensor& ids) : values(logits) {
    part.logits = detail::logits_rows("logits", logits);
    check_range("the width of logits", logits.size(1), 0, kIdMask);
    part.logits.vocab_size = static_cast<int32_t>(logits.size(1));
    part.batch = detail::checked_rows(logits);
    if (ids.dim() != 2) fail("ids must have 2 dimensions, got ", ids.dim());
    part.num_slots = detail::checked_slots(ids);
    if (ids.scalar_type() == ScalarType::Int) {
      part.ids = detail::matrix<int32_t>("ids", ids, ScalarType::Int, part.batch, part.num_slots, logits);
    } else {
      part.wide_ids = detail::matrix<int64_t>("ids", ids, ScalarType::Long, part.batch, part.num_slots, logits);
    }
    values = detail::empty({part.batch, part.num_slots}, aoti_torch_dtype_float32(), logits);
    part.values = detail::data_of<float>(values);
  }
};

struct ScoreArguments {
  ScorePart part{};
  Tensor scores;

  ScoreArguments(const Tensor& values, const Tensor& slots, const Tensor& union_size, const Tensor& keys,
                 const Tensor& key_slots, const Tensor& log_sums, const std::string& score,
                 const std::string& duplicates, const std::string& combine)
      : scores(values) {
    if (values.dim() != 2) fail("values must have 2 dimensions, got ", values.dim());
    if (keys.dim() != 2) fail("keys must have 2 dimensions, got ", keys.dim());
    check_range("k", keys.size(1), 1, kMaxTopK);
    ScorePart& p = part;
    p.batch = detail::checked_rows(values);
    p.num_slots = detail::checked_slots(values);
    p.k = static_cast<int32_t>(keys.size(1));
    p.score = parse_score(score);
    p.duplicates = parse_duplicates(duplicates);
    p.combine = parse_combine(combine);
    p.values = detail::matrix<float>("values", values, ScalarType::Float, p.batch, p.num_slots, values);
    p.slots = detail::matrix<int32_t>("slots", slots, ScalarType::Int, p.batch, p.num_slots, values);
    p.union_size = detail::per_row<int32_t>("union_size", union_size, ScalarType::Int, p.batch, values);
    p.keys = detail::matrix<int64_t>("keys", keys, ScalarType::Long, p.batch, p.k, values);
    p.key_slots = detail::matrix<int32_t>("key_slots", key_slots, ScalarType::Int, p.batch, p.k, values);
    p.log_sums = detail::per_row<float>("log_sums", log_sums, ScalarType::Float, p.batch, values);
    scores = detail::empty({p.batch, p.num_slots}, aoti_torch_dtype_float32(), values);
    p.scores = detail::data_of<float>(scores);
  }
};

struct CombineArguments {
  CombinePart part{};
  StepOutputs outputs;

  CombineArguments(const Tensor& member_scores, const Tensor& slots, const Tensor& slot_classes,
                   const Tensor& union_size, const Tensor& status, int64_t primary, const std::vector<double>& weights,
                   const std::string& combine) {
    check_dense("member_scores", member_scores, ScalarType::Float, 3, member_scores);
    check_dense("slots", slots, ScalarType::Int, 3, member_scores);
    check_dense("slot_classes", slot_classes, ScalarType::Int, 2, member_scores);
    for (int dim = 0; dim < 3; ++dim)
      if (slots.size(dim) != member_scores.size(dim)) fail("slots must have the shape of member_scores");
    for (int dim = 0; dim < 2; ++dim)
      if (slot_classes.size(dim) != member_scores.size(dim))
        fail("slot_classes must be [batch, slots] like member_scores");
    check_range("the number of members", member_scores.size(2), 1, kMaxMembers);
    check_range("primary", primary, 0, member_scores.size(2) - 1);
    StepParams& p = part.step;
    p.batch = detail::checked_rows(member_scores);
    p.num_slots = detail::checked_slots(member_scores);
    p.members = static_cast<int32_t>(member_scores.size(2));
    p.primary = static_cast<int32_t>(primary);
    detail::set_weights(p, weights, combine);
    outputs = detail::set_outputs(p, member_scores);
    part.member_scores = detail::data_of<const float>(member_scores);
    part.slots = detail::data_of<const int32_t>(slots);
    part.slot_classes = detail::data_of<const int32_t>(slot_classes);
    part.union_size = detail::per_row<int32_t>("union_size", union_size, ScalarType::Int, p.batch, member_scores);
    part.status = detail::per_row<int32_t>("status", status, ScalarType::Int, p.batch, member_scores);
  }
};

}  // namespace unite
