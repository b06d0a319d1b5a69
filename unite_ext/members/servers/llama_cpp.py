"""llama.cpp's server: `/completion` with a prompt of ids, of which it lists the `n_probs` likeliest next ones.

No id can be asked for by name: those that are not listed are asked for with a longer list. The logprobs are the
model's, before any sampler. The server leaves them out when the one token that it writes is not whole UTF-8; a bias,
which only its sampler sees, makes it write a letter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar

from ..remote import LOWEST, AnswerError, Listing
from .base import Facts, Server, length_of, take

_LONGER = 32  # times as many ids when one is missing


class LlamaCppServer(Server):
    """A server started by `llama-server`."""

    protocol: ClassVar[str] = "llama.cpp"
    usual: int = 64

    def connect(self, text_to_check: str) -> Facts:
        """See `Server.connect`."""
        entry = self.find_model()
        settings = self.client.get("/props").get("default_generation_settings") or {}
        meta = entry.get("meta") or {}
        body = {"content": text_to_check, "add_special": False, "parse_special": False}
        return Facts(
            str(entry.get("id")),
            length_of(settings.get("n_ctx")),
            self.tokenize(body),
            num_ids=length_of(meta.get("n_vocab")),
        )

    @cached_property
    def _num_ids(self) -> int:
        return max(self.tokenizer.get_vocab().values()) + 1

    @cached_property
    def _letter(self) -> int:
        """An id that writes something whole."""
        for text in ("a", "e", "1", "."):
            ids = self.tokenizer(text, add_special_tokens=False).input_ids
            if ids:
                return int(ids[-1])
        return 0

    def best(self, ids: Sequence[int], count: int) -> Listing:
        """See `Backend.best`."""
        body = {
            "prompt": list(ids), "n_predict": 1, "n_probs": count, "cache_prompt": True, "temperature": 0.0,
            "logit_bias": [[self._letter, 1e4]], "post_sampling_probs": False, "stream": False,
        }  # fmt: skip
        answer = self.client.post("/completion", body)
        listed = take(answer, "completion_probabilities", 0, "top_logprobs")
        found = {int(take(entry, "id")): float(take(entry, "logprob")) for entry in listed}
        return Listing(found, whole=len(found) < count)

    def chosen(self, ids: Sequence[int], wanted: Sequence[int], listed: Mapping[int, float]) -> dict[int, float]:
        """See `Backend.chosen`."""
        count = max(len(listed), self.usual)
        while True:
            count *= _LONGER
            listing = self.best(ids, count)
            missing = [i for i in wanted if i not in listing.log_probs]
            smallest = min(listing.log_probs.values(), default=0.0)
            if missing and smallest < LOWEST:  # all others are as unlikely
                listing.log_probs.update(dict.fromkeys(missing, smallest))
                missing = []
            if not missing:
                return {i: listing.log_probs[i] for i in wanted}
            if listing.whole or count > 4 * self._num_ids:
                raise AnswerError(f"{self.client.url} does not know the id {missing[0]}")
