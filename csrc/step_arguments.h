// Checks the operators' arguments, allocates the outputs and fills StepParams. Shared by every backend.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "checks.h"
#include "core/step_params.h"

namespace unite {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// next_ids, union_ids, union_size, winner, union_probs, member_probs, status
using StepOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

inline Score parse_score(const std::string& score) {
  if (score == "logits") return Score::kLogits;
  if (score == "probs") return Score::kProbs;
  fail("score must be one of 'logits', 'probs', got '", score, "'");
}

inline Duplicates parse_duplicates(const std::string& duplicates) {
  if (duplicates == "repeat") return Duplicates::kRepeat;
  if (duplicates == "drop") return Duplicates::kDrop;
  fail("duplicates must be one of 'repeat', 'drop', got '", duplicates, "'");
}

inline Combine parse_combine(const std::string& combine) {
  if (combine == "mean") return Combine::kMean;
  if (combine == "product") return Combine::kProduct;
  fail("combine must be one of 'mean', 'product', got '", combine, "'");
}

namespace detail {

inline Tensor empty(std::initializer_list<int64_t> sizes, int32_t dtype, const Tensor& like) {
  int64_t strides[3] = {1, 1, 1};
  for (int i = static_cast<int>(sizes.size()) - 2; i >= 0; --i) strides[i] = strides[i + 1] * sizes.begin()[i + 1];
  const int32_t device_type = like.is_cuda() ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu();
  AtenTensorHandle handle;
  if (aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides, dtype, device_type,
                               like.get_device_index(), &handle) != AOTI_TORCH_SUCCESS)
    fail("out of memory for the outputs");
  return Tensor(handle);
}

inline Dtype member_dtype(const std::string& name, const Tensor& logits) {
  switch (logits.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      fail(name, " must be float32, bfloat16 or float16");
  }
}

// The rows of a member's logits, without `eligible` and `vocab_size`.
inline MemberLogits logits_rows(const std::string& name, const Tensor& logits) {
  if (logits.dim() != 2) fail(name, " must be [batch, vocabulary], got ", logits.dim(), " dimensions");
  if (logits.stride(1) != 1 && logits.size(1) > 1) fail(name, " must be contiguous in its last dimension");
  MemberLogits result{};
  result.data = logits.data_ptr();
  result.row_stride = logits.size(0) > 1 ? logits.stride(0) : 0;
  result.dtype = member_dtype(name, logits);
  return result;
}

inline MemberLogits member_logits(const std::string& name, const Tensor& logits, const Tensor& eligible,
                                  int64_t eligible_offset, int64_t vocab_size) {
  MemberLogits result = logits_rows(name, logits);
  check_dense("eligible", eligible, ScalarType::Int, 1, logits);
  check_range("vocab_sizes", vocab_size, 1, kIdMask);
  if (logits.size(1) < vocab_size)
    fail(name, " must hold the highest eligible id, ", vocab_size - 1, ", got a width of ", logits.size(1));
  const int64_t words = (vocab_size + 31) / 32;
  if (eligible_offset < 0 || eligible_offset + words > eligible.size(0))
    fail("eligible must hold ", words, " words from offset ", eligible_offset, " on for ", name);
  result.eligible = static_cast<const uint32_t*>(eligible.data_ptr()) + eligible_offset;
  result.vocab_size = static_cast<int32_t>(vocab_size);
  return result;
}

// Sets batch, members, k, primary and num_slots.
inline void set_sizes(StepParams& p, int64_t batch, int64_t members, int64_t k, int64_t primary, bool with_include) {
  check_range("the batch", batch, 0, INT32_MAX);
  check_range("the number of members", members, 1, kMaxMembers);
  check_range("k", k, 1, kMaxTopK);
  check_range("members * k", members * k, 1, kMaxWalk);
  check_range("primary", primary, 0, members - 1);
  p.batch = static_cast<int32_t>(batch);
  p.members = static_cast<int32_t>(members);
  p.k = static_cast<int32_t>(k);
  p.primary = static_cast<int32_t>(primary);
  p.num_slots = static_cast<int32_t>(members * k + (with_include ? 1 : 0));
}

// Sets the alignment's tables; call it after set_sizes().
inline void set_tables(StepParams& p, const Tensor& table, const Tensor& class_ids, const Tensor& first) {
  check_dense("table", table, ScalarType::Int, 2, first);
  check_dense("class_ids", class_ids, ScalarType::Int, 2, first);
  const int64_t capacity = table.size(0);
  if (table.size(1) != 4 || capacity < 2 || (capacity & (capacity - 1)) != 0)
    fail("table must be [a power of two, 4], got [", capacity, ", ", table.size(1), "]");
  if (reinterpret_cast<uintptr_t>(table.data_ptr()) % alignof(MapEntry) != 0)
    fail("table must start at a multiple of ", alignof(MapEntry), " bytes, as torch allocates it");
  if (class_ids.size(1) != p.members) fail("class_ids must be [classes, ", p.members, "], got ", class_ids.size(1));
  p.map = static_cast<const MapEntry*>(table.data_ptr());
  p.log2_capacity = 0;
  while ((int64_t{1} << p.log2_capacity) < capacity) ++p.log2_capacity;
  p.class_ids = static_cast<const int32_t*>(class_ids.data_ptr());
}

inline void set_include(StepParams& p, const std::optional<Tensor>& include, const Tensor& first) {
  p.include = nullptr;
  if (!include.has_value()) return;
  check_dense("include", *include, ScalarType::Long, 1, first);
  if (include->size(0) != p.batch) fail("include must have ", p.batch, " entries, got ", include->size(0));
  p.include = static_cast<const int64_t*>(include->data_ptr());
}

inline void set_weights(StepParams& p, const std::vector<double>& weights, const std::string& combine) {
  check_length("weights", weights.size(), p.members);
  p.combine = parse_combine(combine);
  for (int m = 0; m < p.members; ++m) p.weights[m] = static_cast<float>(weights[m]);
}

inline StepOutputs set_outputs(StepParams& p, const Tensor& first) {
  const int64_t batch = p.batch, slots = p.num_slots, members = p.members;
  const int32_t i64 = aoti_torch_dtype_int64(), i32 = aoti_torch_dtype_int32(), f32 = aoti_torch_dtype_float32();
  StepOutputs outputs(empty({batch, members}, i64, first), empty({batch, slots, members}, i64, first),
                      empty({batch}, i32, first), empty({batch}, i32, first), empty({batch, slots}, f32, first),
                      empty({batch, slots, members}, f32, first), empty({batch}, i32, first));
  p.next_ids = static_cast<int64_t*>(std::get<0>(outputs).data_ptr());
  p.union_ids = static_cast<int64_t*>(std::get<1>(outputs).data_ptr());
  p.union_size = static_cast<int32_t*>(std::get<2>(outputs).data_ptr());
  p.winner = static_cast<int32_t*>(std::get<3>(outputs).data_ptr());
  p.union_probs = static_cast<float*>(std::get<4>(outputs).data_ptr());
  p.member_probs = static_cast<float*>(std::get<5>(outputs).data_ptr());
  p.status = static_cast<int32_t*>(std::get<6>(outputs).data_ptr());
  return outputs;
}

}  // namespace detail

struct StepArguments {
  StepParams params{};
  StepOutputs outputs;

  StepArguments(const std::vector<Tensor>& logits, const Tensor& table, const Tensor& class_ids, const Tensor& eligible,
                const std::vector<int64_t>& eligible_offsets, const std::vector<int64_t>& vocab_sizes, int64_t k,
                int64_t primary, const std::vector<double>& weights, const std::string& score,
                const std::string& duplicates, const std::string& combine, const std::optional<Tensor>& include) {
    if (logits.empty()) fail("logits must not be empty");
    const Tensor& first = logits[0];
    if (first.dim() != 2) fail("logits[0] must be [batch, vocabulary], got ", first.dim(), " dimensions");
    StepParams& p = params;
    detail::set_sizes(p, first.size(0), static_cast<int64_t>(logits.size()), k, primary, include.has_value());
    check_length("eligible_offsets", eligible_offsets.size(), logits.size());
    check_length("vocab_sizes", vocab_sizes.size(), logits.size());
    p.score = parse_score(score);
    p.duplicates = parse_duplicates(duplicates);
    detail::set_weights(p, weights, combine);
    detail::set_tables(p, table, class_ids, first);
    for (int m = 0; m < p.members; ++m) {
      const std::string name = "logits[" + std::to_string(m) + "]";
      check_same_device(name, logits[m], first);
      p.logits[m] = detail::member_logits(name, logits[m], eligible, eligible_offsets[m], vocab_sizes[m]);
      if (logits[m].size(0) != p.batch)
        fail(name, " must have ", p.batch, " rows like logits[0], got ", logits[m].size(0));
    }
    detail::set_include(p, include, first);
    outputs = detail::set_outputs(p, first);
  }
};

}  // namespace unite
