"""One generation as a reader wants it: its tokens, who decided each of them, and what every member thought."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

AGREEMENT, PRIMARY, OVERRULED, GATED = "agreement", "primary", "overruled", "gated"
DECISIONS = {
    AGREEMENT: "every member wanted this token",
    PRIMARY: "the primary's choice, and not every member's",
    OVERRULED: "the others overruled the primary",
    GATED: "the primary was sure, nobody else was asked",
}


@dataclass(frozen=True)
class TraceStep:
    """One step: U slots, M members."""

    piece: str
    """The characters that this step's token completed; empty inside a character of several tokens, and for EOS."""
    cut: str
    """What a stop string took away of them."""
    decided: str
    """One of `DECISIONS`."""
    winner: int
    """The slot taken."""
    favorites: list[int]
    """[M]: the slot that each member would have taken, the winner where it ties for a member's largest."""
    ids: list[list[int]]
    """[U][M]: each member's id of every slot, -1 where it has none."""
    probs: list[list[float]]
    """[U][M]: every member's softmax over the union."""
    averages: list[float]
    """[U]: their weighted average."""
    spellers: list[int]
    """[U]: a member whose token is all of a slot's text; where another's differs, it is its first sub-token."""


@dataclass(frozen=True)
class TraceRecord:
    """Everything about one generation, complete without models and tokenizers: what files and pages hold."""

    members: list[str]
    primary: int
    options: dict[str, Any]
    """Of the step and of the generation, those that differ from the defaults of the latter."""
    prompt: Any
    """Text or chat messages."""
    text: str
    finish_reason: str
    steps: list[TraceStep]
    tokens: list[dict[int, str]]
    """[M]: the text of every id that occurs in the steps; bytes that are not UTF-8 stand as <0xE2>."""
    eos_token_ids: list[list[int]]
    """[M]: ids whose text is a name, not part of what is said."""

    def count(self, decided: str) -> int:
        """How many steps were decided in this way, one of `DECISIONS`."""
        return sum(step.decided == decided for step in self.steps)

    @property
    def asked(self) -> int:
        """How many steps asked every member: those that the gate did not decide."""
        return len(self.steps) - self.count(GATED)

    @property
    def agreement_rate(self) -> float:
        """The share of these in which all members wanted the same token; 1 where there are none."""
        return self.count(AGREEMENT) / self.asked if self.asked else 1.0

    @property
    def overruled(self) -> list[int]:
        """[M]: in how many of these each member wanted another token than the one taken."""
        asked = [step for step in self.steps if step.decided != GATED]
        return [sum(s.favorites[m] != s.winner for s in asked) for m in range(len(self.members))]

    def token_text(self, member: int, token_id: int) -> str:
        """What a member calls an id of a step; empty for -1."""
        return "" if token_id < 0 else self.tokens[member][token_id]

    def slot_text(self, step: TraceStep, slot: int) -> str:
        """The text a slot stands for, as the member writes it that has all of it in one token."""
        return self.token_text(step.spellers[slot], step.ids[slot][step.spellers[slot]])

    def is_first_sub_token(self, step: TraceStep, slot: int, member: int) -> bool:
        """Whether a member's token only begins the slot's text."""
        i = step.ids[slot][member]
        return (
            i >= 0 and i not in self.eos_token_ids[member] and self.token_text(member, i) != self.slot_text(step, slot)
        )

    def __repr__(self) -> str:
        agreement = f"{100 * self.agreement_rate:.1f} % in agreement"
        return f"{type(self).__name__}({' + '.join(self.members)}; {len(self.steps)} steps, {agreement})"
