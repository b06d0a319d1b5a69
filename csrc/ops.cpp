// The schemas of every operator of this package. Backends register their own implementations.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(unite_ext, m) {
  // One UNITE step for a batch of rows; unite_ext/ops.py documents the arguments. `workspace` is scratch memory for
  // the CUDA kernel; it comes back as it went in.
  m.def(
      "fused_step("
      "Tensor[] logits, Tensor table, Tensor class_ids, Tensor eligible, int[] eligible_offsets, int[] vocab_sizes, "
      "int k, int primary, float[] weights, bool score_probs, bool drop_duplicates, "
      "Tensor? include=None, Tensor(a!)? workspace=None"
      ") -> (Tensor next_ids, Tensor union_ids, Tensor union_size, Tensor winner, Tensor union_probs, "
      "Tensor member_probs, Tensor status)");
  // Zeroed memory for the `workspace` of steps on such logits.
  m.def("step_workspace(Tensor[] logits, int[] vocab_sizes, int k, bool score_probs) -> Tensor");
  // Which instruction set the CPU kernel uses: names it, after switching to `name` unless that is empty.
  m.def("cpu_instruction_set(str name=\"\") -> str");
}
