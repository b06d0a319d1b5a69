// The CPU implementations of the operators, on torch's threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>
#include <vector>

#include "fused_step.h"
#include "isa.h"
#include "step_arguments.h"

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
                       const std::vector<double> weights, bool score_probs, bool drop_duplicates,
                       const std::optional<Tensor> include, const std::optional<Tensor> /*workspace*/) {
  StepArguments step(logits, table, class_ids, eligible, eligible_offsets, vocab_sizes, k, primary, weights,
                     score_probs, drop_duplicates, include);
  fused_step_cpu(step.params, torch_threads());
  return step.outputs;
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
}

// It takes no tensor, so it belongs to no backend.
STABLE_TORCH_LIBRARY_IMPL(unite_ext, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_set", TORCH_BOX(&unite::cpu_instruction_set));
}
