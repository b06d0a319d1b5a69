"""vLLM's server: `/v1/completions` with ids in and ids out.

`return_tokens_as_token_ids` makes every listed token an id, and `logprob_token_ids` gives up to 128 ids by name.
`/inference/v1/generate`, which takes ids as well, is there only with `--enable-scale-out`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import ClassVar

from ..remote import AnswerError, Listing
from .base import Facts, Server, length_of, take

MOST_CHOSEN = 128
"""Ids in one `logprob_token_ids`."""
_PREFIX = "token_id:"


class VllmServer(Server):
    """A server started by `vllm serve`."""

    protocol: ClassVar[str] = "vllm"
    most: int | None = 20
    """The server's --max-logprobs, which is 20 by default."""

    def connect(self, text_to_check: str) -> Facts:
        """See `Server.connect`."""
        entry = self.find_model()
        self.model = str(entry.get("id"))
        body = {"model": self.model, "prompt": text_to_check, "add_special_tokens": False}
        return Facts(self.model, length_of(entry.get("max_model_len")), self.tokenize(body))

    def best(self, ids: Sequence[int], count: int) -> Listing:
        """See `Backend.best`."""
        found = self._ask(ids, {"logprobs": count})
        ordered = dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))
        return Listing(ordered, whole=len(found) < count)

    def chosen(self, ids: Sequence[int], wanted: Sequence[int], listed: Mapping[int, float]) -> dict[int, float]:
        """See `Backend.chosen`."""
        found: dict[int, float] = {}
        rest = iter(wanted)
        while part := list(islice(rest, MOST_CHOSEN)):
            # The request has to name a number of logprobs too, which is then not looked at.
            given = self._ask(ids, {"logprobs": 1, "logprob_token_ids": part})
            if missing := [i for i in part if i not in given]:
                raise AnswerError(
                    f"{self.client.url} gives no logprob_token_ids (id {missing[0]} is missing): is it older than vLLM "
                    "0.32, which does?"
                )
            found |= {i: given[i] for i in part}
        return found

    def _ask(self, ids: Sequence[int], options: dict[str, object]) -> dict[int, float]:
        """The listed ids of one answer."""
        body = {
            "model": self.model, "prompt": list(ids), "max_tokens": 1, "temperature": 0.0,
            "return_tokens_as_token_ids": True, **options,
        }  # fmt: skip
        answer = self.client.post("/v1/completions", body)
        listed = take(answer, "choices", 0, "logprobs", "top_logprobs", 0)
        found = {}
        for token, value in dict(listed or {}).items():
            if not token.startswith(_PREFIX):
                raise AnswerError(f"{self.client.url} lists {token[:40]!r} instead of an id: is it vLLM's server?")
            found[int(token.removeprefix(_PREFIX))] = float(value)
        return found
