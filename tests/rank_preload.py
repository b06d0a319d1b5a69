"""Imported once by the server that forks the processes of `rank_processes`: all that loading a small model, and serving
it, needs."""

import accelerate  # noqa: F401
import rank_cases  # noqa: F401
import transformers.generation
import transformers.models.auto.modeling_auto
import transformers.models.auto.tokenization_auto
import transformers.models.llama.modeling_llama
import transformers.models.mistral.modeling_mistral
import transformers.models.qwen2.modeling_qwen2  # noqa: F401

import unite_ext.cli
import unite_ext.decoding.ensemble
import unite_ext.harness
import unite_ext.serve.server  # noqa: F401
