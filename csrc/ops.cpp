// The schemas of all operators. Backends register their own implementations.
//
// Rules of the step are passed as strings, so that a new one changes no schema: score is "logits" or "probs",
// duplicates is "repeat" or "drop", combine is "mean" or "product".
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(unite_ext, m) {
  // One UNITE step for a batch of rows; unite_ext/ops.py documents the arguments. `workspace` is scratch memory for
  // the CUDA kernel, which leaves it as it was.
  m.def(
      "fused_step("
      "Tensor[] logits, Tensor table, Tensor class_ids, Tensor eligible, int[] eligible_offsets, int[] vocab_sizes, "
      "int k, int primary, float[] weights, str score, str duplicates, str combine, "
      "Tensor? include=None, Tensor(a!)? workspace=None"
      ") -> (Tensor next_ids, Tensor union_ids, Tensor union_size, Tensor winner, Tensor union_probs, "
      "Tensor member_probs, Tensor status)");
  // Zeroed memory for the `workspace` of steps on such logits.
  m.def("step_workspace(Tensor[] logits, int[] vocab_sizes, int k, str score) -> Tensor");

  // The same step in parts, for members whose logits are not in this process; unite_ext/step_parts.py documents them.
  m.def(
      "top_k_keys(Tensor logits, Tensor eligible, int eligible_offset, int vocab_size, int k, str score) "
      "-> (Tensor keys, Tensor log_sums)");
  m.def(
      "unite_keys(Tensor keys, Tensor table, Tensor class_ids, int[] vocab_sizes, int primary, float[] weights, "
      "str combine, Tensor? include=None) "
      "-> (Tensor slots, Tensor slot_classes, Tensor union_size, Tensor status, Tensor key_slots)");
  m.def("gather_logits(Tensor logits, Tensor ids) -> Tensor");
  m.def(
      "score_slots(Tensor values, Tensor slots, Tensor union_size, Tensor keys, Tensor key_slots, Tensor log_sums, "
      "str score, str duplicates, str combine) -> Tensor");
  m.def(
      "combine_slots(Tensor member_scores, Tensor slots, Tensor slot_classes, Tensor union_size, Tensor status, "
      "int primary, float[] weights, str combine"
      ") -> (Tensor next_ids, Tensor union_ids, Tensor union_size, Tensor winner, Tensor union_probs, "
      "Tensor member_probs, Tensor status)");

  // A linear layer for few rows on the CPU, float32 or bfloat16; unite_ext/members/few_rows.py says what for.
  m.def("few_rows_linear(Tensor rows, Tensor weight, Tensor? bias=None) -> Tensor");

  // Returns the instruction set of the CPU kernels, after switching to `name` unless that is empty.
  m.def("cpu_instruction_set(str name=\"\") -> str");
}
