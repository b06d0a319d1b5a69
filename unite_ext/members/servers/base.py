"""What every protocol of a server offers, and what it can tell about the model behind it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..http_client import Answer, HttpClient, Refused
from ..remote import AnswerError, Backend

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOT_THERE = (404, 405, 501)
"""Status codes of a path that a server does not have."""


@dataclass(frozen=True)
class Facts:
    """What a server tells about its model; None for what it does not."""

    model: str | None = None
    context_length: int | None = None
    tokenized: Sequence[int] | None = None
    """The ids of `text_to_check`, without special tokens."""
    num_tokens: int | None = None
    """How many ids that text has, perhaps with BOS."""
    num_ids: int | None = None
    """The size of its vocabulary, where it counts every id."""


class Server(Backend):
    """A server that speaks one protocol.

    Parameters
    ----------
    client : HttpClient
    tokenizer : transformers.PreTrainedTokenizerFast
    model : str, optional
        What the server calls the model; by default the only one that it has.
    """

    protocol: ClassVar[str]

    def __init__(self, client: HttpClient, tokenizer: PreTrainedTokenizerBase, model: str | None) -> None:
        self.client = client
        self.tokenizer = tokenizer
        self.model = model

    @abstractmethod
    def connect(self, text_to_check: str) -> Facts:
        """Ask the server about its model, and how it tokenizes a text. AnswerError as `HttpClient`."""

    def find_model(self) -> Answer:
        """The model's entry in /v1/models. AnswerError where it is not there, or not the only one."""
        entries = self.client.get("/v1/models").get("data") or []
        names = [entry.get("id") for entry in entries if isinstance(entry, dict)]
        if self.model is None and len(names) != 1:
            raise AnswerError(f"{self.client.url} has the models {', '.join(map(str, names))}: model must name one")
        if self.model is not None and self.model not in names:
            raise AnswerError(f"{self.client.url} has no model {self.model!r}, only {', '.join(map(str, names))}")
        found: Answer = entries[0 if self.model is None else names.index(self.model)]
        return found

    def tokenize(self, body: Mapping[str, object]) -> list[int] | None:
        """What /tokenize gives for a body; None where there is no such path."""
        try:
            tokens = self.client.post("/tokenize", body).get("tokens")
        except Refused as error:
            if error.status in NOT_THERE:
                return None
            raise
        return [int(i) for i in tokens] if isinstance(tokens, list) else None


def take(answer: Any, *path: str | int) -> Any:
    """What lies at a path in an answer. AnswerError where it ends before, as when a server's interface has changed."""
    found = answer
    for part in path:
        try:
            found = found[part]
        except (KeyError, IndexError, TypeError):
            shown = ".".join(map(str, path))
            raise AnswerError(f"the server's answer has no {shown}") from None
    return found


def length_of(value: object) -> int | None:
    """A context length that a server tells, None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
