"""A server with OpenAI's `/v1/completions`: a few likeliest tokens, as texts. What a step gets is approximate.

The prompt goes as ids. A listed token is found by its text, so that of several ids of one text one counts. What is not
listed has at most the probability of the last that is: that bound is taken.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar

from ...vocab.vocabulary import Vocabulary
from ..remote import LOWEST, AnswerError, Listing
from .base import Facts, Server, length_of, take


class OpenAIServer(Server):
    """A server of which only OpenAI's interface is known."""

    protocol: ClassVar[str] = "openai"
    approximate: bool = True
    most: int | None = 20
    _warned = False

    def connect(self, text_to_check: str) -> Facts:
        """See `Server.connect`. Only how many ids the text has can be known."""
        self.model = str(self.find_model().get("id"))
        body = {"model": self.model, "prompt": text_to_check, "max_tokens": 1, "temperature": 0.0}
        used = (self.client.post("/v1/completions", body).get("usage") or {}).get("prompt_tokens")
        if self._vocabulary.kind == "sentencepiece":
            warnings.warn(
                f"{self.client.url}: many servers list tokens of SentencePiece vocabularies without the space they "
                "begin with; votes then go to the token without it",
                stacklevel=6,
            )
        return Facts(self.model, num_tokens=length_of(used))

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary.from_tokenizer(self.tokenizer, lossy=True)

    @cached_property
    def _ids(self) -> dict[str, int]:
        """The id of every token's text, special tokens by their names."""
        found = {data.decode(): i for data, i in self._vocabulary.representatives().items() if _is_text(data)}
        for token, i in self.tokenizer.get_added_vocab().items():
            found.setdefault(token, i)
        return found

    def best(self, ids: Sequence[int], count: int) -> Listing:
        """See `Backend.best`."""
        body = {"model": self.model, "prompt": list(ids), "max_tokens": 1, "temperature": 0.0, "logprobs": count}
        listed = take(self.client.post("/v1/completions", body), "choices", 0, "logprobs", "top_logprobs", 0)
        found: dict[int, float] = {}
        for token, value in sorted(dict(listed or {}).items(), key=lambda pair: -pair[1]):
            if (i := self._ids.get(token)) is not None:
                found.setdefault(i, float(value))
        if not found:
            raise AnswerError(f"{self.client.url} lists no token that the tokenizer has")
        return Listing(found, whole=False)

    def chosen(self, ids: Sequence[int], wanted: Sequence[int], listed: Mapping[int, float]) -> dict[int, float]:
        """See `Backend.chosen`. What is not listed counts with the least that is; said once."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.client.url} does not give all that a step asks for: what it does not list counts with the "
                "least log-probability that it lists, which is an upper bound (said once)",
                stacklevel=2,
            )
        smallest = min(value for value in listed.values() if value > LOWEST)
        return dict.fromkeys(wanted, smallest)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
