"""One model of an ensemble: the model, its tokenizer, its prompts and its limits."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from .cache_probe import probe_reuse
from .kv_cache import RaggedCache
from .static_cache import StaticRaggedCache, compile_forward

logger = logging.getLogger(__name__)

Message = Mapping[str, str]
Prompt = str | Sequence[Message]


class Member:
    """A causal language model and its tokenizer.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        In evaluation mode or not: it is put there.
    tokenizer : transformers.PreTrainedTokenizerFast
    name : str, optional
        What messages call it; by default the name it was loaded from.

    Attributes
    ----------
    eos_token_ids : list of int
        The ids that end a text according to the model's generation config.
    context_length : int or None
        The longest text the model was made for.
    cache_reuse : {"holes", "compact", "recompute"}
        How its KV cache may be reused, found by a probe (`unite_ext.members.cache_probe.probe_reuse`).
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str | None = None) -> None:
        self.model: Any = model.eval()
        self.tokenizer: Any = tokenizer
        self.name: str = name or getattr(model.config, "_name_or_path", "") or type(model).__name__
        self.eos_token_ids: list[int] = _generation_eos(model)
        self.context_length: int | None = _context_length(model.config)
        self.cache_reuse: str = probe_reuse(model, name=self.name)

    @classmethod
    def from_pretrained(cls, name: str, *, tokenizer: Any = None, **options: Any) -> Member:
        """Load model and tokenizer by Hugging Face name or local folder.

        `options` go to `AutoModelForCausalLM.from_pretrained`; those the tokenizer shares (`revision`,
        `trust_remote_code`, `token`, `cache_dir`, `local_files_only`) to both. `device` moves the loaded model.
        """
        from transformers import AutoModelForCausalLM

        device = options.pop("device", None)
        if device is not None and options.get("device_map") is not None:
            raise ValueError(f"device and device_map exclude each other, got {device!r} and {options['device_map']!r}")
        tokenizer = load_tokenizer(name, {"tokenizer": tokenizer, **options})
        model = AutoModelForCausalLM.from_pretrained(name, **options)
        if device is not None:
            model = model.to(device)
        return cls(model, tokenizer, name=name)

    @property
    def device(self) -> torch.device:
        """Where the model takes its ids."""
        return self.model.device

    @property
    def num_logits(self) -> int:
        """V, the width of the model's head, which padding may have made wider than its tokenizer."""
        head = self.model.get_output_embeddings()
        return head.weight.shape[0] if head is not None else self.model.config.vocab_size

    @cached_property
    def compiled_forward(self) -> Any:
        """The model's pass under `torch.compile`, compiled on first use."""
        return compile_forward(self.model)

    def new_cache(self, rows: int, *, compiled: bool = False, expected_length: int = 0) -> RaggedCache:
        """An empty KV cache for a batch; `compiled` for fixed shapes, with room for `expected_length` ids a row."""
        if compiled and self.cache_reuse != "recompute":
            return StaticRaggedCache(
                self.model, rows, reuse=self.cache_reuse, forward=self.compiled_forward, expected_length=expected_length
            )
        return RaggedCache(self.model, rows, reuse=self.cache_reuse)

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt: text as the tokenizer encodes it (its own BOS included), or messages by its chat template.

        Raises
        ------
        ValueError
            Messages without a chat template, a prompt without any id, or one longer than the model's context.
        """
        if isinstance(prompt, str):
            ids = self.tokenizer(prompt, verbose=False).input_ids  # too long is an error below, not a warning
        else:
            if not getattr(self.tokenizer, "chat_template", None):
                raise ValueError(f"{self.name} has no chat template: give its prompts as text")
            text = self.tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, tokenize=False)
            ids = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        # A tokenizer may close what it encodes (T5, BERT); the model is to go on.
        if ids and ids[-1] in self._closing_ids():
            ids = ids[:-1]
        if not ids:
            bos = self.tokenizer.bos_token_id
            if bos is None:
                raise ValueError(f"prompts must not be empty: {self.name} has no BOS token to start from")
            ids = [bos]
        if self.context_length is not None and len(ids) >= self.context_length:
            raise ValueError(
                f"a prompt takes {len(ids)} tokens in {self.name}, whose context holds {self.context_length}: "
                "shorten it, the new tokens need room as well"
            )
        return list(ids)

    def _closing_ids(self) -> set[int]:
        plain = self.tokenizer("", add_special_tokens=True).input_ids
        closing = {self.tokenizer.eos_token_id, getattr(self.tokenizer, "sep_token_id", None)}
        return {i for i in plain[-1:] if i in closing and i != self.tokenizer.bos_token_id}

    def __repr__(self) -> str:
        return (
            f"Member({self.name}: {type(self.model).__name__}, {self.model.dtype}, {self.device}, "
            f"cache reuse {self.cache_reuse!r})"
        )


def load_tokenizer(name: str, options: Mapping[str, Any]) -> Any:
    """The tokenizer that `Member.from_pretrained(name, **options)` uses."""
    from transformers import AutoTokenizer

    tokenizer = options.get("tokenizer")
    if tokenizer is None:
        shared = ("revision", "trust_remote_code", "token", "cache_dir", "local_files_only")
        return AutoTokenizer.from_pretrained(name, **{o: options[o] for o in shared if o in options})
    return AutoTokenizer.from_pretrained(tokenizer) if isinstance(tokenizer, str) else tokenizer


def _generation_eos(model: Any) -> list[int]:
    config = getattr(model, "generation_config", None)
    eos = getattr(config, "eos_token_id", None)
    if eos is None:
        return []
    return [eos] if isinstance(eos, int) else list(eos)


def _context_length(config: Any) -> int | None:
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "n_positions", "seq_length"):
        length = getattr(config, name, None)
        if isinstance(length, int) and length > 0:
            return length
    return None
