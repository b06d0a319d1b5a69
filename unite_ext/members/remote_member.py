"""What members have in common whose model runs elsewhere: only a tokenizer is here."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..options import StepOptions
from .base import Variables
from .loading import configured_eos, load_tokenizer
from .prompts import PromptEncoder, check_spelling, read_chat_template
from .remote import Backend, RemoteContext
from .tokenized import TokenizedMember

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RemoteMember(TokenizedMember):
    """A member that asks a backend. A kind sets `backend`, `name` and `context_length` when it knows them.

    Parameters
    ----------
    tokenizer : str or transformers.PreTrainedTokenizerFast
    name : str
        What messages call it.
    eos_token_ids : sequence of int, optional
        By default those of the generation config beside the tokenizer.
    concurrency : int
        How many questions may be under way.
    chat_template, chat_template_kwargs
        As `Member`.
    """

    gives_logits = False
    gives_likelihoods = False
    backend: Backend

    def __init__(
        self,
        tokenizer: str | PreTrainedTokenizerBase,
        *,
        name: str,
        eos_token_ids: Sequence[int] | None,
        concurrency: int,
        chat_template: str | Path | None,
        chat_template_kwargs: Variables | None,
    ) -> None:
        self._given_template = read_chat_template(chat_template)
        self.chat_template_kwargs: dict[str, Any] = dict(chat_template_kwargs or {})
        self.tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
        self.name = name
        self.context_length: int | None = None
        check_spelling(self.tokenizer, name)
        self.eos_token_ids = eos_beside(tokenizer) if eos_token_ids is None else [int(i) for i in eos_token_ids]
        self._num_ids = max(self.tokenizer.get_vocab().values()) + 1
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="unite-member")

    @property
    def num_logits(self) -> int:
        """V: the tokenizer's ids."""
        return self._num_ids

    @property
    def device(self) -> torch.device:
        """Where answers arrive."""
        return torch.device("cpu")

    @property
    def prompts(self) -> PromptEncoder:
        """See `TokenizedMember.prompts`."""
        return PromptEncoder(
            self.tokenizer,
            self.name,
            rows=self._num_ids,
            context_length=self.context_length,
            chat_template=self._given_template,
            chat_template_kwargs=self.chat_template_kwargs,
        )

    def check_step(self, options: StepOptions) -> None:
        """See `BaseMember.check_step`."""
        most = self.backend.most
        if most is not None and options.k > most:
            raise ValueError(
                f"k must be at most {most} with {self.name}, which lists no more, got {options.k}: max_logprobs says "
                "what it lists"
            )

    def new_context(self, *, max_requests: int, compiled: bool = False, expected_length: int = 0) -> RemoteContext:
        """See `BaseMember.new_context`."""
        return RemoteContext(self, self.backend, self._pool)


def eos_beside(tokenizer: str | PreTrainedTokenizerBase) -> list[int]:
    """The EOS ids of the generation config that lies beside a tokenizer; none where there is no such file."""
    from transformers import GenerationConfig

    place = tokenizer if isinstance(tokenizer, str) else getattr(tokenizer, "name_or_path", "")
    if not place:
        return []
    try:
        return configured_eos(GenerationConfig.from_pretrained(place))
    except (OSError, ValueError):
        return []
