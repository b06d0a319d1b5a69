"""What clients are told about single tokens: probabilities, and who decided."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from dataclasses import dataclass

from .._host import END_OF_TEXT
from ..decoding.plan import Plan
from ..decoding.request import Request, StepRecord
from ..decoding.start_state import pieces_along, recorded_bytes
from ..decoding.tracing import (
    byte_length,
    end_name,
    id_text,
    shown_options,
    spelled,
    symbol_text,
    token_text,
    trace_step,
)
from ..members.base import BaseMember
from ..members.names import short_names
from ..vocab.alignment import VocabAlignment
from .jobs import Token, num_tokens, recorded_token

NEVER = -9999.0
"""The logarithm of 0 as OpenAI writes it."""


@dataclass(frozen=True)
class Logprob:
    """A token that a step could emit."""

    text: str
    logprob: float
    data: bytes | None
    """None for the end of the text."""


class TokenDetails:
    """Tells about the tokens of one server's texts.

    Parameters
    ----------
    members : sequence of BaseMember
    alignment : VocabAlignment
    primary : int
    """

    def __init__(self, members: Sequence[BaseMember], alignment: VocabAlignment, primary: int) -> None:
        self.members = members
        self.vocabularies = alignment.vocabularies
        self.primary = primary
        self.names = [member.name for member in members]
        self._token_bytes = self.vocabularies[primary].token_bytes
        self.end = end_name(members[primary], self.vocabularies[primary])
        self._eos = frozenset(self.vocabularies[primary].eos_token_ids)

    def of_request(self, request: Request) -> list[Token]:
        """The tokens of a text that is whole, without those that a stop string cut off entirely."""
        tokens = [recorded_token(request, n, self.vocabularies, self.primary) for n in range(num_tokens(request))]
        return self.kept(tokens, request)

    def kept(self, tokens: Sequence[Token], request: Request) -> list[Token]:
        """The last tokens of a text that is whole, as far as its text goes, without the end of the text."""
        if request.byte_records:
            before = sum(r.symbols[r.winner] != END_OF_TEXT for r in request.byte_records)
        else:
            before = sum(map(len, pieces_along(request, self.primary, self._token_bytes, request.ids, at=0)))
        start = before - sum(len(token.data) for token in tokens)
        found = []
        for token in tokens:
            if token.token_id is not None and start < len(request.text):
                found.append(token)
            start += len(token.data)
        return found

    def logprobs(self, token: Token, top: int) -> tuple[Logprob, list[Logprob]]:
        """A token's probability, and the `top` likeliest ones of its step.

        It is the probability of emitting it: slots that the primary would spell by the same id count together.
        """
        probs = emission_probs(token.record, self.primary)
        order = sorted(probs, key=lambda i: -probs[i])[:top]
        return self._logprob(token, token.token_id or 0, probs), [self._logprob(token, i, probs) for i in order]

    def _logprob(self, token: Token, token_id: int, probs: dict[int, float]) -> Logprob:
        value = math.log(probs[token_id]) if probs[token_id] > 0 else NEVER
        if token.is_byte:
            if token_id == END_OF_TEXT:
                return Logprob(self.end, value, None)
            data = bytes([token_id])
        elif token_id in self._eos:
            return Logprob(self.members[self.primary].token_name(token_id), value, None)
        else:
            data = recorded_bytes(token.record, self.vocabularies, self.primary, token_id)
        return Logprob(token_text(data), value, data)


def emission_probs(record: StepRecord, primary: int) -> dict[int, float]:
    """The averaged probability of every id of the primary that a step could emit."""
    probs: dict[int, float] = {}
    for ids, average in zip(record.union_ids, record.union_probs):
        if (own := ids[primary]) >= 0:
            probs[own] = probs.get(own, 0.0) + average
    return probs


class TraceFeed:
    """A text's trace in pieces, as `Trace` has it: its steps, and the texts of ids as they first occur.

    Parameters
    ----------
    details : TokenDetails
    """

    def __init__(self, details: TokenDetails) -> None:
        self._details = details
        self._kept, self._cut = (codecs.getincrementaldecoder("utf-8")(errors="replace") for _ in range(2))
        self._start = 0
        self._named: list[set[int]] = [set() for _ in details.members]

    def next(self, tokens: Sequence[Token], ended: Request | None) -> dict[str, object]:
        """The steps of tokens that have become certain; `ended` is the request when these are the last."""
        steps = []
        new_names: list[dict[int, str]] = [{} for _ in self._details.members]
        for n, token in enumerate(tokens):
            room = len(token.data) if ended is None else max(0, len(ended.text) - self._start)
            last = ended is not None and n + 1 == len(tokens)
            self._start += len(token.data)
            pieces = self._kept.decode(token.data[:room], last), self._cut.decode(token.data[room:], last)
            lengths = byte_length if token.is_byte else spelled(token.record, self._details.vocabularies)
            steps.append(vars(trace_step(token.record, self._details.primary, *pieces, lengths)))
            for ids in token.record.union_ids:
                self._name(ids, new_names, token.is_byte)
        return {"steps": steps, "tokens": new_names}

    def _name(self, ids: Sequence[int], names: list[dict[int, str]], are_bytes: bool) -> None:
        own = self._details
        for m, token_id in enumerate(ids):
            if token_id >= 0 and token_id not in self._named[m]:
                self._named[m].add(token_id)
                names[m][token_id] = (
                    symbol_text(token_id, own.end)
                    if are_bytes
                    else id_text(own.vocabularies[m], own.members[m], token_id)
                )


def trace_head(details: TokenDetails, plan: Plan) -> dict[str, object]:
    """What a trace has beside its steps, known before they are."""
    return {
        "members": short_names(details.names),
        "primary": details.primary,
        "options": shown_options(plan),
        "eos_token_ids": [
            [END_OF_TEXT] if plan.step.boundaries == "exact" else sorted(v.eos_token_ids) for v in details.vocabularies
        ],
    }
