"""Members that live in other processes, see `rank_group.py`.

Every process runs the same engine, reads all tokenizers, and loads only the models of its own members. For the others
it keeps a `RankMember`, which knows what the model has read but has no logits of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..exchange import NO_KEY, Exchange
from ..options import StepOptions
from ..vocab.alignment import VocabAlignment
from .base import BaseMember, Place, Scores
from .id_context import IdContext
from .loading import MemberSource
from .prompts import PromptEncoder, one_line
from .rank_group import RankError, RankGroup
from .tokenized import TokenizedMember
from .transformers import Member

Facts = dict[str, Any]
"""What other processes have to know of a loaded model."""


class NoScores(Scores):
    """Stands for scores that this process does not have: another one has them, or there was no memory for them.

    Parameters
    ----------
    rows : int
    device : torch.device
        Where those stand that this process has.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self._rows = rows
        self._device = device

    @property
    def logits(self) -> None:
        """See `Scores.logits`."""
        return None

    def top_k(self, alignment: VocabAlignment, member: int, options: StepOptions) -> tuple[Tensor, Tensor]:
        """No keys."""
        keys = torch.full((self._rows, options.k), NO_KEY, dtype=torch.int64, device=self._device)
        return keys, torch.zeros(self._rows, device=self._device)

    def gather(self, ids: Tensor) -> Tensor:
        """No logit above -inf."""
        return torch.full(ids.shape, -torch.inf, device=self._device)

    def select(self, rows: Sequence[int]) -> NoScores:
        """See `Scores.select`."""
        return NoScores(len(rows), self._device)


class SpreadScores(Scores):
    """Scores of a member of an ensemble that lives in several processes: by parts only, which an exchange completes.

    Parameters
    ----------
    own : Scores
        The member's, or `NoScores`.
    exchange : Exchange
    """

    def __init__(self, own: Scores, exchange: Exchange) -> None:
        self.own = own
        self._exchange = exchange

    @property
    def exchange(self) -> Exchange:
        """See `Scores.exchange`."""
        return self._exchange

    @property
    def logits(self) -> None:
        """See `Scores.logits`."""
        return None

    def top_k(self, alignment: VocabAlignment, member: int, options: StepOptions) -> tuple[Tensor, Tensor]:
        """See `Scores.top_k`."""
        return self.own.top_k(alignment, member, options)

    def gather(self, ids: Tensor) -> Tensor:
        """See `Scores.gather`."""
        return self.own.gather(ids)

    def select(self, rows: Sequence[int]) -> SpreadScores:
        """See `Scores.select`."""
        return SpreadScores(self.own.select(rows), self._exchange)


class RankContext(IdContext):
    """What a member in another process has read: the ids alone."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def evaluate(self, keys: Sequence[int]) -> NoScores:
        """None: the other process has them."""
        return NoScores(len(keys), self._device)

    def evaluate_places(self, places: Sequence[Place]) -> NoScores:
        """None: the other process has them."""
        return NoScores(len(places), self._device)


class RankMember(TokenizedMember):
    """A member whose model another process has loaded.

    Parameters
    ----------
    source : MemberSource
        Its config and tokenizer.
    facts : mapping
        What that process says of the model, see `facts_of`.
    rank : int
        Which process that is.
    device : torch.device
        Where this process's own members are.
    """

    def __init__(self, source: MemberSource, facts: Facts, rank: int, device: torch.device) -> None:
        self.name = source.name
        self.tokenizer = source.tokenizer
        self.eos_token_ids = list(facts["eos_token_ids"])
        self.context_length = facts["context_length"]
        self.rank = rank
        self._source = source
        self._facts = facts
        self._device = device

    @property
    def device(self) -> torch.device:
        """Where this process takes the steps."""
        return self._device

    @property
    def num_logits(self) -> int:
        """See `BaseMember.num_logits`."""
        return int(self._facts["num_logits"])

    @property
    def bytes_per_token(self) -> int:
        """See `BaseMember.bytes_per_token`."""
        return int(self._facts["bytes_per_token"])

    @property
    def place(self) -> str:
        """See `BaseMember.place`."""
        return f"{self._facts['device']} of rank {self.rank}"

    @property
    def prompts(self) -> PromptEncoder:
        """See `TokenizedMember.prompts`."""
        return PromptEncoder(
            self.tokenizer,
            self.name,
            rows=self._facts["rows"],
            context_length=self.context_length,
            chat_template=self._source.chat_template,
            chat_template_kwargs=self._source.chat_template_kwargs,
        )

    def new_context(self, *, max_requests: int, compiled: bool = False, expected_length: int = 0) -> RankContext:
        """See `BaseMember.new_context`."""
        return RankContext(self._device)

    def __repr__(self) -> str:
        return f"RankMember({self.name}: rank {self.rank})"


def facts_of(member: Member) -> Facts:
    """What other processes have to know of a loaded model, as JSON."""
    return {
        "eos_token_ids": member.eos_token_ids,
        "context_length": member.context_length,
        "num_logits": member.num_logits,
        "rows": member.prompts.rows,
        "bytes_per_token": member.bytes_per_token,
        "device": str(member.device),
    }


def load_spread(sources: Sequence[MemberSource], group: RankGroup) -> list[BaseMember]:
    """Load this process's members, and learn about the others'. Every process calls this at once.

    Raises
    ------
    ValueError, RuntimeError
        A member of this process cannot be loaded.
    RankError
        A member of another cannot; says which.
    """
    loaded: dict[int, Member] = {}
    failed: Exception | None = None
    for m, source in enumerate(sources):
        if group.holds(m) and failed is None:
            try:
                loaded[m] = Member.from_source(source)
            except Exception as error:
                failed = error
    told = group.gather_json(
        {"error": one_line(failed)} if failed else {"facts": [[m, facts_of(own)] for m, own in loaded.items()]}
    )
    if failed is not None:
        raise failed
    for rank, said in enumerate(told):
        if "error" in said:
            raise RankError(f"{group.called(rank)} could not load its models: {said['error']}")
    facts = {m: own for said in told for m, own in said["facts"]}
    group.use_devices(next(iter(loaded.values())).device)
    return [
        loaded.get(m) or RankMember(source, facts[m], group.holders[m], group.device)
        for m, source in enumerate(sources)
    ]
