"""SGLang's own interface: `/generate` with `input_ids`.

`logprob_start_len=-1` asks for the new token's place only: from 0 on, the server would compute the whole prompt again,
and not use its cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..http_client import Refused
from ..remote import AnswerError, Listing
from .base import NOT_THERE, Facts, Server, length_of, take


class SglangServer(Server):
    """A server started by `sglang.launch_server`."""

    protocol: ClassVar[str] = "sglang"

    def connect(self, text_to_check: str) -> Facts:
        """See `Server.connect`."""
        entry = self.find_model()
        model = str(entry.get("id"))
        body = {"model": model, "prompt": text_to_check, "add_special_tokens": False}
        context_length, num_ids = length_of(entry.get("max_model_len")), self._num_ids()
        return Facts(model, context_length, self.tokenize(body), num_ids=num_ids)

    def best(self, ids: Sequence[int], count: int) -> Listing:
        """See `Backend.best`."""
        meta = self._ask(ids, {"top_logprobs_num": count})
        found = _pairs(take(meta, "output_top_logprobs", 0))
        return Listing(found, whole=len(found) < count)

    def chosen(self, ids: Sequence[int], wanted: Sequence[int], listed: Mapping[int, float]) -> dict[int, float]:
        """See `Backend.chosen`."""
        meta = self._ask(ids, {"token_ids_logprob": list(wanted)})
        found = _pairs(take(meta, "output_token_ids_logprobs", 0))
        if missing := [i for i in wanted if i not in found]:
            raise AnswerError(f"{self.client.url} does not give the id {missing[0]} that was asked for")
        return found

    def _ask(self, ids: Sequence[int], options: dict[str, object]) -> Any:
        """The meta_info of one answer."""
        body = {
            "input_ids": list(ids), "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": True, "logprob_start_len": -1, **options,
        }  # fmt: skip
        return take(self.client.post("/generate", body), "meta_info")

    def _num_ids(self) -> int | None:
        """The size of the model's vocabulary, where the server says it."""
        try:
            return length_of(self.client.get("/get_model_info").get("vocab_size"))
        except Refused as error:
            if error.status in NOT_THERE:
                return None
            raise


def _pairs(entries: Any) -> dict[int, float]:
    """Entries of [logprob, id, text] by id."""
    return {int(take(entry, 1)): float(take(entry, 0)) for entry in entries or ()}
