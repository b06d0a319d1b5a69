// The CPU implementations of the operators, on torch's threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>
#include <vector>

#include "few_rows.h"
#include "fused_step.h"
#include "isa.h"
#include "part_arguments.h"
#include "step_parts.h"

namespace unite {
namespace {

Parallel torch_threads() {
  Parallel parallel;
  parallel.num_threads = static_cast<int>(torch::stable::get_num_threads());
  parallel.run = [](int64_t tasks, const Parallel::Task& task) {
    torch::stable::parallel_for(0, tasks, 1, [&task](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) task(i);
    });
  };
  return parallel;
}

StepOutputs fused_step(const std::vector<Tensor> logits, const Tensor table, const Tensor class_ids,
                       const Tensor eligible, const std::vector<int64_t> eligible_offsets,
                       const std::vector<int64_t> vocab_sizes, int64_t k, int64_t primary,
                       const std::vector<double> weights, const std::string score, const std::string duplicates,
                       const std::string combine, const std::optional<Tensor> include,
                       const std::optional<Tensor> /*workspace*/) {
  StepArguments step(logits, table, class_ids, eligible, eligible_offsets, vocab_sizes, k, primary, weights, score,
                     duplicates, combine, include);
  fused_step_cpu(step.params, torch_threads());
  return step.outputs;
}

TopKeysOutputs top_k_keys(const Tensor logits, const Tensor eligible, int64_t eligible_offset, int64_t vocab_size,
                          int64_t k, const std::string score) {
  TopKeysArguments call(logits, eligible, eligible_offset, vocab_size, k, score);
  top_k_keys_cpu(call.part, torch_threads());
  return call.outputs;
}

UnionOutputs unite_keys(const Tensor keys, const Tensor table, const Tensor class_ids,
                        const std::vector<int64_t> vocab_sizes, int64_t primary, const std::vector<double> weights,
                        const std::string combine, const std::optional<Tensor> include) {
  UnionArguments call(keys, table, class_ids, vocab_sizes, primary, weights, combine, include);
  unite_keys_cpu(call.part, torch_threads());
  return call.outputs;
}

Tensor gather_logits(const Tensor logits, const Tensor ids) {
  GatherArguments call(logits, ids);
  gather_logits_cpu(call.part, torch_threads());
  return call.values;
}

Tensor score_slots(const Tensor values, const Tensor slots, const Tensor union_size, const Tensor keys,
                   const Tensor key_slots, const Tensor log_sums, const std::string score, const std::string duplicates,
                   const std::string combine) {
  ScoreArguments call(values, slots, union_size, keys, key_slots, log_sums, score, duplicates, combine);
  score_slots_cpu(call.part, torch_threads());
  return call.scores;
}

StepOutputs combine_slots(const Tensor member_scores, const Tensor slots, const Tensor slot_classes,
                          const Tensor union_size, const Tensor status, int64_t primary,
                          const std::vector<double> weights, const std::string combine) {
  CombineArguments call(member_scores, slots, slot_classes, union_size, status, primary, weights, combine);
  combine_slots_cpu(call.part, torch_threads());
  return call.outputs;
}

Tensor few_rows_linear(const Tensor rows, const Tensor weight, const std::optional<Tensor> bias) {
  FewRowsLinear linear;
  linear.dtype = detail::member_dtype("rows", rows);
  if (linear.dtype == Dtype::kFloat16) fail("rows must be float32 or bfloat16");
  check_dense("rows", rows, rows.scalar_type(), 2, rows);
  check_dense("weight", weight, rows.scalar_type(), 2, rows);
  linear.count = rows.size(0);
  linear.width = rows.size(1);
  linear.outs = weight.size(0);
  if (weight.size(1) != linear.width)
    fail("weight must be [outs, ", linear.width, "], got [", linear.outs, ", ", weight.size(1), "]");
  if (bias) {
    check_dense("bias", *bias, rows.scalar_type(), 1, rows);
    if (bias->size(0) != linear.outs) fail("bias must have ", linear.outs, " entries, got ", bias->size(0));
    linear.bias = bias->data_ptr();
  }
  const Tensor out =
      detail::empty({linear.count, linear.outs},
                    linear.dtype == Dtype::kFloat32 ? aoti_torch_dtype_float32() : aoti_torch_dtype_bfloat16(), rows);
  linear.rows = rows.data_ptr();
  linear.weight = weight.data_ptr();
  linear.out = out.data_ptr();
  few_rows_linear_cpu(linear, torch_threads());
  return out;
}

std::string cpu_instruction_set(const std::string name) {
  if (name.empty()) return isa_name(active_isa());
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512})
    if (name == isa_name(isa) && set_isa(isa)) return name;
  throw std::runtime_error("unite_ext::cpu_instruction_set: this machine has no " + name + ", it has up to " +
                           isa_name(best_isa()));
}

}  // namespace
}  // namespace unite

STABLE_TORCH_LIBRARY_IMPL(unite_ext, CPU, m) {
  m.impl("fused_step", TORCH_BOX(&unite::fused_step));
  m.impl("top_k_keys", TORCH_BOX(&unite::top_k_keys));
  m.impl("unite_keys", TORCH_BOX(&unite::unite_keys));
  m.impl("gather_logits", TORCH_BOX(&unite::gather_logits));
  m.impl("score_slots", TORCH_BOX(&unite::score_slots));
  m.impl("combine_slots", TORCH_BOX(&unite::combine_slots));
  m.impl("few_rows_linear", TORCH_BOX(&unite::few_rows_linear));
}

// It takes no tensor, so it is registered for all backends.
STABLE_TORCH_LIBRARY_IMPL(unite_ext, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_set", TORCH_BOX(&unite::cpu_instruction_set));
}
