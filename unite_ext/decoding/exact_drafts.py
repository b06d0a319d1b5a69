"""Drafts for steps with exact boundaries: guesses at the next bytes, along which members are asked ahead of time.

With plain steps a draft is tried by taking a step at each of its places. Here nothing is tried. A draft only says where
a member that has to be asked will stand next, and the same pass gives what it says there (`lookahead.py`). A walk finds
these answers ready, or asks; so drafts never change a text, whether it is drawn or the likeliest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..vocab.alignment import VocabAlignment
from ..vocab.byte_order import byte_order
from .covers import ExactState
from .evaluation import Evaluator
from .lookahead import Lookahead
from .ngrams import BYTE_NGRAMS, Ngrams
from .paths import Path
from .request import NGRAM, Request

NGRAM_BYTES = 32
"""How long a draft from n-grams is."""
TOKENS = 4
"""How many tokens a member drafts where no number was asked for."""


class ExactDrafter:
    """Writes drafts for the requests of one engine.

    Parameters
    ----------
    evaluator : Evaluator
    lookahead : Lookahead
    alignment : VocabAlignment
    primary : int
    ask : callable
        Takes a member and requests, and asks it about the covers that count.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        lookahead: Lookahead,
        alignment: VocabAlignment,
        primary: int,
        ask: Callable[[int, Sequence[Request]], None],
    ) -> None:
        self._evaluator = evaluator
        self._lookahead = lookahead
        self._vocabularies = alignment.vocabularies
        self._primary = primary
        self._ask = ask

    def draft(self, requests: Sequence[Request]) -> None:
        """Give a draft to those of the requests that begin a step, want one and have used theirs up.

        A member that writes for one of them also writes on for the others that it drafts for: the passes are the same.
        """
        writers: dict[int, list[Request]] = {}
        lacking: set[int | str] = set()
        for request in requests:
            if request.drafter is None or _state(request).forced is not None:
                continue
            if request.drafter != NGRAM:
                writers.setdefault(int(request.drafter), []).append(request)
            if not _state(request).has_draft and not _state(request).is_asking:
                request.rounds += 1
                lacking.add(request.drafter)
                if request.drafter == NGRAM:
                    self._repeat(request)
        for m, own in writers.items():
            if m in lacking:
                self._ask(m, own)
                self._write(m, [request for request in own if request.error is None])

    def _repeat(self, request: Request) -> None:
        """What followed the last bytes before, in the prompt or the text."""
        state, vocabulary = _state(request), self._vocabularies[self._primary]
        if request.ngrams is None:
            prompt = b"".join([vocabulary.token_bytes[i] for i in request.prompt_ids[self._primary]])
            request.ngrams = Ngrams(prompt, BYTE_NGRAMS)
        request.ngrams.extend(request.text[request.ngrams.grown :])
        draft = state.sure + bytes(request.ngrams.following(NGRAM_BYTES, state.sure))
        if state.masks is not None:
            draft = draft[: max(0, state.masks.allowed(bytes(request.text) + draft) - len(request.text))]
        state.draft, state.draft_sure = draft, min(len(draft), len(state.sure))
        request.drafted += len(draft) - state.draft_sure

    def _write(self, m: int, requests: Sequence[Request]) -> None:
        """Let a member go on alone, greedily, from its likeliest way of reading the text; what it says is kept."""
        order, token_bytes = byte_order(self._vocabularies[m]), self._vocabularies[m].token_bytes
        tips: dict[Request, Path] = {}
        left: dict[Request, int] = {}
        for request in requests:
            state = _state(request)
            if not state.has_draft:
                state.draft, state.draft_sure = state.sure, len(state.sure)
            path, start = self._lookahead.tip(m, request), state.members[m].heaviest
            if path is not None and start is not None:
                tips[request] = path
                room = request.options.max_new_tokens - len(request.ids) - 1
                left[request] = min(request.draft_length or TOKENS, room) - (path.length - start.length)
        while tips:
            tips = {
                request: path for request, path in tips.items() if left[request] > 0 and self._fits(m, request, path)
            }
            following: dict[Request, Path] = {}
            for (request, path), (sums, eos) in zip(tips.items(), self._lookahead.said(m, tips)):
                probs = np.diff(sums)
                best = int(probs.argmax())
                if not probs[best] > eos:  # its end, or nothing at all
                    continue
                data = token_bytes[int(order.ids[best])]
                _state(request).draft += data
                request.drafted += len(data)
                following[request] = path.child(int(order.ids[order.tokens.find(data)[0]]), len(data))
                left[request] -= 1
            tips = following

    def _fits(self, m: int, request: Request, path: Path) -> bool:
        """Whether a member's context has room behind a path."""
        limit = self._evaluator.members[m].context_length
        return limit is None or len(request.prompt_ids[m]) + path.length < limit


def follow(request: Request, piece: bytes) -> None:
    """Take the bytes that a walk has come along off the draft, or all of it where the text has turned."""
    state = _state(request)
    if not state.draft:
        return
    same = 0
    while same < min(len(piece), len(state.draft)) and piece[same] == state.draft[same]:
        same += 1
    request.accepted += max(0, same - state.draft_sure)
    state.draft_sure = max(0, state.draft_sure - same)
    state.draft = state.draft[len(piece) :] if same == len(piece) else b""


def _state(request: Request) -> ExactState:
    assert request.exact is not None
    return request.exact
