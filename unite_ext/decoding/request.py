"""One request: a prompt, what is asked of it, and what has become of it so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..structured.constraint import StructureError

if TYPE_CHECKING:
    import torch

    from ..methods.base import TokenMethod
    from ..options import GenerationOptions
    from ..structured.constraint import Constraint
    from ..vocab.text_sync import TextSync
    from .covers import ExactState
    from .ngrams import Ngrams


NGRAM = "ngram"
"""The drafter that looks for what followed the last tokens where they stood before."""
Acceptance = dict[int | str, tuple[float, int]]
"""By drafter, the running share of drafted tokens that are taken, and how many have been compared."""


@dataclass
class StepRecord:
    """One step of one request: the union and what every member thought of it."""

    union_ids: list[list[int]]
    """`[U][M]`: each member's id of every slot, -1 where it cannot spell it."""
    union_probs: list[float]
    """[U]: the weighted average."""
    member_probs: list[list[float]]
    """`[U][M]`: every member's softmax over the union."""
    winner: int
    """Index of the slot taken."""
    gated: bool = False
    """Whether the primary's token was taken without asking the others."""
    drafted: bool = False
    """Whether it was a draft's token."""
    starts: tuple[bool, ...] = ()
    """Per member whether its ids stood behind a space that is no part of the text; nothing if none's did."""
    missing: tuple[int, ...] = ()
    """The members that had stayed away: they have no ids and no probabilities here."""


@dataclass(frozen=True)
class ByteRecord:
    """One byte of a step with exact boundaries: what could have been the next one, and what every member thought."""

    symbols: list[int]
    """[U]: bytes, 256 for the end of the text; every member's likeliest, the likeliest on average first."""
    probs: list[float]
    """[U]: the weighted average of the members' probabilities."""
    member_probs: list[list[float]]
    """`[U][M]`: every member's probability, over all bytes and the end."""
    winner: int
    """Index of the symbol taken."""


@dataclass(frozen=True)
class TargetScore:
    """How likely one given token was."""

    log_prob: float
    """Natural logarithm of the probability of emitting its text."""
    is_greedy: bool
    """Whether the ensemble would have taken it."""


@dataclass(eq=False)
class Request:
    """A prompt that an engine works on, and its result when `finish_reason` or `error` is set."""

    key: int
    """Its number in the engine, in order of submission."""
    index: int
    """Its number among the caller's prompts; sampling draws by it."""
    prompt_ids: list[list[int]]
    """Per member."""
    options: GenerationOptions
    method: TokenMethod
    syncs: list[TextSync | None]
    """Per member what keeps its ids equal to the text; None where it takes the primary's ids."""
    starts: tuple[bool, ...]
    """Per member whether it is in the start state: a space that is no part of the text stands before it."""
    generator: torch.Generator | None = None
    """What sampling draws from."""
    constraint: Constraint | None = None
    """What keeps its text within a grammar."""
    keeps_records: bool = False
    targets: Sequence[int] | None = None
    """Ids of the primary that are emitted whatever the members say, to be scored."""
    full: bool = False
    """Whether its targets are scored by the members' own probabilities, see `full_likelihood`."""
    drafter: int | str | None = None
    """Who drafts its text: a member, `NGRAM`, or what is measured to be fastest; None for plain decoding."""
    draft_length: int | None = None
    """How many tokens a draft has; None for what is measured to be fastest."""

    text: bytearray = field(default_factory=bytearray)
    ids: list[int] = field(default_factory=list)
    """The primary's."""
    finish_reason: str = ""
    """"eos" (a grammar that allows nothing more included), "stop" or "length"; empty while it runs."""
    error: Exception | None = None
    """Why it failed."""
    num_steps: int = 0
    gated_steps: int = 0
    records: list[StepRecord] = field(default_factory=list)
    """Where its steps choose tokens."""
    byte_records: list[ByteRecord] = field(default_factory=list)
    """Where they choose bytes, with exact boundaries."""
    scores: list[TargetScore] = field(default_factory=list)
    """Of the targets so far."""
    rounds: int = 0
    """Of speculation: how often all members were asked; with exact boundaries how often a draft was begun."""
    drafted: int = 0
    """Drafted tokens; bytes with exact boundaries."""
    accepted: int = 0
    """Of these, how many were taken."""
    acceptance: Acceptance = field(default_factory=dict)
    """Of this text."""
    ngrams: Ngrams | None = None
    """What `NGRAM` drafts from, made when it is first asked."""
    missing: dict[int, int] = field(default_factory=dict)
    """Members that stayed away, each with how many tokens of the primary were there then."""
    state: object = None
    """What the method knows of this request."""
    exact: ExactState | None = None
    """What steps with exact boundaries know of it; None with plain ones."""
    stops: tuple[bytes, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.stops = self.options.stops

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return bool(self.finish_reason) or self.error is not None

    def emit(self, token_id: int, data: bytes) -> None:
        """Append one token of the primary; cut the text where a stop string begins, end it where its grammar does.

        Raises
        ------
        StructureError
            Nothing may follow by the grammar, and the text is not whole.
        """
        self.ids.append(token_id)
        if self.constraint is not None:
            self.constraint.accept(data)
        self._grow(data)

    def edit(self, drop: int, append: Sequence[int], data: bytes) -> None:
        """Append bytes, for which the primary's ids change at their end; otherwise as `emit`."""
        del self.ids[len(self.ids) - drop :]
        self.ids += append
        if self.constraint is not None:
            self.constraint.accept(data)
        self._grow(data)

    def _grow(self, data: bytes) -> None:
        start = len(self.text)
        self.text += data
        if self.stops:
            found = [at for stop in self.stops if (at := self.text.find(stop, max(0, start - len(stop) + 1))) >= 0]
            if found:
                del self.text[min(found) :]
                self.finish_reason = "stop"
        if self.constraint is not None and not self.finish_reason:
            if self.constraint.ended:
                self.finish_reason = "eos"
            elif self.constraint.stuck:
                shown = bytes(self.text[-40:]).decode("utf-8", errors="replace")
                raise StructureError(
                    f"prompt {self.index}, step {self.num_steps}: nothing that the primary can write follows {shown!r} "
                    "by the grammar"
                )

    def decoded(self) -> str:
        """The text so far; bytes that are not UTF-8 become the replacement character."""
        return bytes(self.text).decode("utf-8", errors="replace")

    def token_ids(self, member: int) -> list[int]:
        """A member's ids of the text, the primary's as it emitted them, without EOS."""
        sync = self.syncs[member]
        return list(self.ids if sync is None else sync.ids)

    def context_ids(self, member: int) -> list[int]:
        """All that a member has to have read: its prompt and its ids of the text."""
        own = self.token_ids(member) if self.exact is None else self.exact.ids(member)
        return self.prompt_ids[member] + own

    def missing_from(self) -> list[int | None]:
        """Per member the number of the first token that was chosen without it, None if it took part in all."""
        return [self.missing.get(m) for m in range(len(self.syncs))]

    def settled_length(self) -> int:
        """How many bytes of the text no stop string can take back any more."""
        if self.finish_reason:
            return len(self.text)
        longest = max(map(len, self.stops), default=1) - 1
        for held in range(min(longest, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-held:]) for stop in self.stops):
                return len(self.text) - held
        return len(self.text)


@dataclass
class GenerateOutput:
    """What `UniteEnsemble.generate(..., return_dict=True)` returns; every list has one entry per prompt."""

    texts: list[str]
    token_ids: list[list[list[int]]]
    """`[B][M]`: each member's ids of the text, the primary's as it emitted them (without EOS)."""
    finish_reasons: list[str]
    """"eos", "stop" or "length"."""
    num_steps: list[int]
    """Steps taken, the one that chose EOS included."""
    gated_steps: list[int]
    """Of these, how many the gate decided."""
    rounds: list[int]
    """With `speculate`, how often all members were asked, else 0; with exact boundaries how often a draft was begun."""
    drafted: list[int]
    """Drafted tokens; bytes with exact boundaries."""
    accepted: list[int]
    """Of these, how many were taken."""
    records: list[list[StepRecord]]
    """Every step of every prompt; none where steps choose bytes."""
    byte_records: list[list[ByteRecord]]
    """With `boundaries="exact"` every byte of every prompt, and the end of its text if it was chosen."""
    missing_from: list[list[int | None]]
    """`[B][M]`: with `on_member_failure="drop"` the number, from 0, of the first token chosen without a member that
    stayed away; None for a member that took part in all."""

    @classmethod
    def of(cls, requests: Sequence[Request]) -> GenerateOutput:
        """What finished requests came to."""
        return cls(
            texts=[r.decoded() for r in requests],
            token_ids=[[r.token_ids(m) for m in range(len(r.syncs))] for r in requests],
            finish_reasons=[r.finish_reason for r in requests],
            num_steps=[r.num_steps for r in requests],
            gated_steps=[r.gated_steps for r in requests],
            rounds=[r.rounds for r in requests],
            drafted=[r.drafted for r in requests],
            accepted=[r.accepted for r in requests],
            records=[r.records for r in requests],
            byte_records=[r.byte_records for r in requests],
            missing_from=[r.missing_from() for r in requests],
        )
