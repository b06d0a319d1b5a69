"""A member that is a Hugging Face transformers model in this process: its prompts, its limits, its contexts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .attention import use_grouped_attention
from .base import Variables
from .cache_probe import embedding_rows, probe_reuse, probe_trees
from .context import TransformersContext
from .few_rows import use_few_rows_linear
from .kv_cache import RaggedCache
from .loading import MemberSource, configured_eos, context_length, load_tokenizer, prepare
from .prompts import PromptEncoder, check_spelling, read_chat_template
from .static_cache import StaticRaggedCache, compile_forward
from .tokenized import TokenizedMember
from .tree_cache import TreeCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Member", "load_tokenizer"]


class Member(TokenizedMember):
    """A causal language model and its tokenizer.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        In evaluation mode or not: it is put there. Where it runs transformers' `sdpa` attention it is told to run
        `unite_ext.members.attention` in its place, and on CPUs its large linear layers become those of
        `unite_ext.members.few_rows`, with the same results to rounding.
    tokenizer : transformers.PreTrainedTokenizerFast
    name : str, optional
        What messages call it; by default the name it was loaded from.
    chat_template : str, optional
        In place of the tokenizer's own: a Jinja template, or "plain" to write messages as "User: ..." for a model that
        has none.
    chat_template_kwargs : mapping, optional
        Variables for the chat template, such as `enable_thinking` or `tools`.

    Attributes
    ----------
    eos_token_ids : list of int
        The ids that end a text according to the model's generation config.
    context_length : int or None
        The longest text the model was made for.
    cache_reuse : {"holes", "compact", "recompute"}
        How its KV cache may be reused, found by a probe (`unite_ext.members.cache_probe.probe_reuse`).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Variables | None = None,
    ) -> None:
        self.model: PreTrainedModel = model.eval()
        self.tokenizer: PreTrainedTokenizerBase = tokenizer
        self.name: str = name or getattr(model.config, "_name_or_path", "") or type(model).__name__
        self._given_template: str | None = read_chat_template(chat_template)
        self.chat_template_kwargs: dict[str, Any] = dict(chat_template_kwargs or {})
        self.eos_token_ids: list[int] = configured_eos(getattr(model, "generation_config", None))
        self.context_length: int | None = context_length(model.config)
        check_spelling(tokenizer, self.name)
        use_grouped_attention(model)
        use_few_rows_linear(model)
        self.cache_reuse: str = probe_reuse(model, name=self.name)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        tokenizer: Any = None,
        device: Any = None,
        chat_template: str | Path | None = None,
        chat_template_kwargs: Variables | None = None,
        **options: Any,
    ) -> Member:
        """Load model and tokenizer by Hugging Face name, local folder or .gguf file.

        Parameters
        ----------
        name : str or path
            A .gguf file needs ``pip install 'unite_ext[gguf]'``.
        tokenizer : str or tokenizer, optional
            Another than the model's.
        device : str or torch.device, optional
            Where the loaded model is moved.
        chat_template, chat_template_kwargs
            As `Member`; `chat_template` may be a file.
        **options
            Of `AutoModelForCausalLM.from_pretrained`; those that say where files are (`revision`, `subfolder`,
            `gguf_file`, `token`, `cache_dir`, `local_files_only`, `trust_remote_code`, ...) hold for the tokenizer too.

        Raises
        ------
        TypeError, ValueError
            An option is unknown or wrong, or there is no such model; said before its weights are read.
        """
        return cls.from_source(
            prepare(
                name,
                tokenizer=tokenizer,
                device=device,
                chat_template=chat_template,
                chat_template_kwargs=chat_template_kwargs,
                **options,
            )
        )

    @classmethod
    def from_source(cls, source: MemberSource) -> Member:
        """Load what `prepare` has checked."""
        return cls(
            source.load_model(),
            source.tokenizer,
            name=source.name,
            chat_template=source.chat_template,
            chat_template_kwargs=source.chat_template_kwargs,
        )

    @property
    def device(self) -> torch.device:
        """Where the model takes its ids."""
        return self.model.device

    @property
    def num_logits(self) -> int:
        """V, the width of the model's head, which padding may have made wider than its tokenizer."""
        width = _head_width(self.model)
        return width if width is not None else self._logits_width

    @cached_property
    def _logits_width(self) -> int:
        """V, seen in a run."""
        with torch.no_grad():
            ids = torch.ones(1, 1, dtype=torch.long, device=self.model.device)
            return int(self.model(input_ids=ids, use_cache=False).logits.shape[-1])

    @cached_property
    def compiled_forward(self) -> Any:
        """The model's pass under `torch.compile`, compiled on first use."""
        return compile_forward(self.model)

    def new_context(
        self, *, max_requests: int, compiled: bool = False, expected_length: int = 0
    ) -> TransformersContext:
        """See `BaseMember.new_context`."""
        compiled = compiled and self.cache_reuse != "recompute"

        def new_row() -> RaggedCache:
            return RaggedCache(self.model, 1, reuse=self.cache_reuse)

        def new_batch() -> RaggedCache:
            if not compiled:
                return (TreeCache if self.gives_trees else RaggedCache)(self.model, 0, reuse=self.cache_reuse)
            return StaticRaggedCache(
                self.model,
                0,
                reuse=self.cache_reuse,
                forward=self.compiled_forward,
                max_rows=max_requests,
                expected_length=expected_length,
            )

        return TransformersContext(new_batch, new_row, reads_apart=self.cache_reuse != "recompute")

    @cached_property
    def gives_trees(self) -> bool:
        """Whether one pass can give the logits of many places of a text, found by a probe on first use."""
        return probe_trees(self.model, self.cache_reuse, name=self.name)

    @cached_property
    def bytes_per_token(self) -> int:
        """See `BaseMember.bytes_per_token`: keys and values of all layers."""
        if self.cache_reuse == "recompute":
            return 0
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", 0)
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
        return 2 * config.num_hidden_layers * key_heads * size * self.model.dtype.itemsize

    def input_embeddings(self) -> Tensor:
        """See `BaseMember.input_embeddings`."""
        return self.model.get_input_embeddings().weight.detach()

    @torch.no_grad()
    def negative_log_likelihood(self, ids: Sequence[int]) -> float:
        """See `BaseMember.negative_log_likelihood`."""
        if len(ids) < 2:
            return 0.0
        tensor = torch.tensor([list(ids)], device=self.device)
        logits = self.model(input_ids=tensor, use_cache=False).logits[0, :-1].float()
        return float(torch.nn.functional.cross_entropy(logits, tensor[0, 1:].to(logits.device), reduction="sum"))

    @property
    def prompts(self) -> PromptEncoder:
        """How prompts become ids, with tokenizer and embedding as they are now."""
        return PromptEncoder(
            self.tokenizer,
            self.name,
            rows=embedding_rows(self.model),
            context_length=self.context_length,
            chat_template=self._given_template,
            chat_template_kwargs=self.chat_template_kwargs,
        )

    def __repr__(self) -> str:
        return (
            f"Member({self.name}: {type(self.model).__name__}, {self.model.dtype}, {self.device}, "
            f"cache reuse {self.cache_reuse!r})"
        )


def _head_width(model: PreTrainedModel) -> int | None:
    """The width of a model's head, packed weights and heads without a weight included; None where only a run shows."""
    head = model.get_output_embeddings()
    for width in (getattr(head, "out_features", None), getattr(head, "num_embeddings", None)):
        if isinstance(width, int):
            return width
    weight = getattr(head, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, torch.Tensor) and weight.dim() == 2 else None
