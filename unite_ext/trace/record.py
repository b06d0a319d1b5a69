"""The data of a trace: the tokens of one text, who decided each, and every member's probabilities."""

from __future__ import annotations

from dataclasses import dataclass, field

AGREEMENT, PRIMARY, OVERRULED, GATED = "agreement", "primary", "overruled", "gated"
DECISIONS = {
    AGREEMENT: "every member wanted this token",
    PRIMARY: "the primary's choice, and not every member's",
    OVERRULED: "the others overruled the primary",
    GATED: "the primary was sure, the others were not asked",
}


@dataclass(frozen=True)
class TraceStep:
    """One step of a trace, with U slots and M members."""

    piece: str
    """The characters that this step's token completed; empty inside a character of several tokens, and for EOS."""
    cut: str
    """The part of them that was cut off with a stop string."""
    decided: str
    """One of `DECISIONS`."""
    winner: int
    """The slot that won."""
    favorites: list[int]
    """[M]: each member's likeliest slot; the winner, if it is as likely as that."""
    ids: list[list[int]]
    """`[U][M]`: each member's id for every slot, -1 if it has none."""
    probs: list[list[float]]
    """`[U][M]`: every member's softmax over the union."""
    averages: list[float]
    """[U]: the weighted average of these."""
    spellers: list[int]
    """[U]: a member whose token is the slot's whole text. A member with another text has the first sub-token."""
    drafted: bool = False
    """Whether the token was drafted: with `speculate`, one pass of every member may give several of these."""
    starts: list[bool] = field(default_factory=list)
    """[M]: the members before whose ids a space stood that is no part of the text; their tokens' texts begin with it.
    Empty where there was none, as in every step but a text's first."""
    missing: list[int] = field(default_factory=list)
    """Members that had stayed away, and took no part."""


@dataclass(frozen=True)
class TraceRecord:
    """Everything that files and pages hold of one generation; readable without models and tokenizers."""

    members: list[str]
    primary: int
    options: dict[str, object]
    """All options of the step, and those of the generation that are not the default."""
    prompt: object
    """Text or chat messages."""
    text: str
    finish_reason: str
    steps: list[TraceStep]
    tokens: list[dict[int, str]]
    """[M]: the text of every id that occurs in the steps; bytes that are not UTF-8 are written as <0xE2>."""
    eos_token_ids: list[list[int]]
    """[M]: EOS ids. Their text in `tokens` is a name and no part of the generated text."""
    missing_from: list[int | None] = field(default_factory=list)
    """[M]: the number, from 0, of the first token that was chosen without a member that stayed away; None for one that
    took part in all. Empty if all did."""

    def count(self, decided: str) -> int:
        """Count the steps decided in one of the ways in `DECISIONS`."""
        return sum(step.decided == decided for step in self.steps)

    @property
    def asked(self) -> int:
        """How many steps asked all members: those that the gate did not decide."""
        return len(self.steps) - self.count(GATED)

    @property
    def agreement_rate(self) -> float:
        """The share of these steps in which all members wanted the same token; 1 if there are no steps."""
        return self.count(AGREEMENT) / self.asked if self.asked else 1.0

    @property
    def overruled(self) -> list[int]:
        """[M]: in how many of these steps each member wanted another token than the one taken."""
        asked = [step for step in self.steps if step.decided != GATED]
        return [sum(s.favorites[m] != s.winner for s in asked) for m in range(len(self.members))]

    @property
    def absences(self) -> list[str]:
        """A sentence for every member that stayed away."""
        return [
            f"{name} stayed away from token {number + 1} on: the others went on without it"
            for name, number in zip(self.members, self.missing_from)
            if number is not None
        ]

    def token_text(self, member: int, token_id: int) -> str:
        """A member's text for an id of a step; empty for -1."""
        return "" if token_id < 0 else self.tokens[member][token_id]

    def step_text(self, step: TraceStep, member: int, token_id: int) -> str:
        """What a member's id adds to the text in a step; empty for -1."""
        text = self.token_text(member, token_id)
        return text.removeprefix(" ") if step.starts and step.starts[member] else text

    def slot_text(self, step: TraceStep, slot: int) -> str:
        """The text of a slot, from a member that has it in one token."""
        return self.step_text(step, step.spellers[slot], step.ids[slot][step.spellers[slot]])

    def is_first_sub_token(self, step: TraceStep, slot: int, member: int) -> bool:
        """Whether a member's token only begins the slot's text."""
        i = step.ids[slot][member]
        return (
            i >= 0
            and i not in self.eos_token_ids[member]
            and self.step_text(step, member, i) != self.slot_text(step, slot)
        )

    def __repr__(self) -> str:
        agreement = f"{100 * self.agreement_rate:.1f} % in agreement"
        return f"{type(self).__name__}({' + '.join(self.members)}; {len(self.steps)} steps, {agreement})"
