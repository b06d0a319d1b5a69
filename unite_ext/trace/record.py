"""One generation as a reader wants it: its tokens, who decided each of them, and what every member thought."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..members.names import short_names

if TYPE_CHECKING:
    from ..decoding.ensemble import UniteEnsemble
    from ..decoding.generation import Row, StepTrace
    from ..members.transformers import Prompt

AGREEMENT, PRIMARY, OVERRULED, GATED = "agreement", "primary", "overruled", "gated"
DECISIONS = {
    AGREEMENT: "every member wanted this token",
    PRIMARY: "the primary's choice, and not every member's",
    OVERRULED: "the others overruled the primary",
    GATED: "the primary was sure, nobody else was asked",
}
DIGITS = 6  # significant digits of a recorded probability: float32 holds hardly more


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
class Trace:
    """What `UniteEnsemble.trace` returns: everything about one generation, complete without models and tokenizers.

    In a notebook it shows itself.
    """

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

    @classmethod
    def from_row(cls, ensemble: UniteEnsemble, row: Row, prompt: Prompt, options: Mapping[str, Any]) -> Trace:
        """The record of a finished row of `generate_each(..., trace=True)`.

        Parameters
        ----------
        ensemble : UniteEnsemble
            That generated it.
        row : Row
        prompt : str or messages
        options : mapping
            With which it was generated.

        Raises
        ------
        ValueError
            The row has no trace.
        """
        from ..decoding.config import STEP_DEFAULTS  # these import torch, which saved traces do without
        from ..decoding.generation import GenerationOptions

        if len(row.traces) != row.num_steps:
            raise ValueError(
                f"row must have a trace of each of its {row.num_steps} steps, got {len(row.traces)}: generate with "
                "trace=True, by a method that decides token by token"
            )
        step = {name: options.get(name, ensemble.step_options[name]) for name in STEP_DEFAULTS}
        primary = step["primary"]
        chosen = vars(GenerationOptions(**{n: v for n, v in options.items() if n not in step}))
        defaults = vars(GenerationOptions())
        step |= {name: value for name, value in chosen.items() if value != defaults[name]}
        vocabularies = ensemble.alignment.vocabularies
        used = [sorted({ids[m] for t in row.traces for ids in t.union_ids} - {-1}) for m in range(len(vocabularies))]
        eos = [sorted(v.eos_token_ids) for v in vocabularies]
        names = [
            {i: _token_text(v.token_bytes[i]) or str(member.tokenizer.convert_ids_to_tokens(i)) for i in ids}
            for v, member, ids in zip(vocabularies, ensemble.members, used)
        ]

        def spelled(member: int, token_id: int) -> int:
            return -1 if token_id < 0 else len(vocabularies[member].token_bytes[token_id])

        data = [
            b"" if (i := t.union_ids[t.winner][primary]) < 0 else vocabularies[primary].token_bytes[i]
            for t in row.traces
        ]
        pieces = _pieces(data, len(row.text))
        return cls(
            members=short_names([member.name for member in ensemble.members]),
            primary=primary,
            options={name: _plain(value) for name, value in step.items()},
            prompt=prompt,
            text=row.decoded(),
            finish_reason=row.finish_reason,
            steps=[_record(t, primary, *piece, spelled) for t, piece in zip(row.traces, pieces)],
            tokens=names,
            eos_token_ids=eos,
        )

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

    def save(self, path: str | Path) -> None:
        """Write it as a self-contained page (`.html`) or as data that `Trace.load` reads (`.json`)."""
        from .files import save_traces

        save_traces([self], path)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a `.json` file of one trace; `unite_ext.trace.load_traces` reads several.

        Raises
        ------
        ValueError
            It holds something else.
        """
        from .files import load_traces

        traces = load_traces(path)
        if len(traces) != 1:
            raise ValueError(f"{path} holds {len(traces)} traces: read them with unite_ext.trace.load_traces")
        return traces[0]

    def to_html(self) -> str:
        """The page that `save` writes."""
        from .page import render_page

        return render_page([self])

    def _repr_html_(self) -> str:
        """For notebooks: the page in a frame of its own, so that neither styles the other."""
        import html

        page = html.escape(self.to_html(), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40rem; border: 0" title="UNITE trace"></iframe>'

    def __repr__(self) -> str:
        agreement = f"{100 * self.agreement_rate:.1f} % in agreement"
        return f"Trace({' + '.join(self.members)}; {len(self.steps)} steps, {agreement})"


def _record(trace: StepTrace, primary: int, piece: str, cut: str, spelled: Callable[[int, int], int]) -> TraceStep:
    """`spelled` tells how many bytes a member's id adds, -1 for no id."""
    winner = trace.winner
    columns = list(zip(*trace.member_probs))
    favorites = [winner if column[winner] == max(column) else column.index(max(column)) for column in columns]
    if trace.gated:
        decided = GATED
    elif favorites[primary] != winner:
        decided = OVERRULED
    else:
        decided = AGREEMENT if all(f == winner for f in favorites) else PRIMARY
    probs = [[_rounded(p) for p in slot] for slot in trace.member_probs]
    averages = [_rounded(p) for p in trace.union_probs]
    lengths = [[spelled(m, i) for m, i in enumerate(ids)] for ids in trace.union_ids]
    spellers = [row.index(max(row)) for row in lengths]
    return TraceStep(piece, cut, decided, winner, favorites, trace.union_ids, probs, averages, spellers)


def _pieces(data: Sequence[bytes], kept: int) -> list[tuple[str, str]]:
    """Per token the characters it completed and those that were cut off, where `kept` bytes of the text remain."""
    decoder, cutter = (codecs.getincrementaldecoder("utf-8")(errors="replace") for _ in range(2))
    pieces = []
    for i, token in enumerate(data):
        inside, kept = token[:kept], max(0, kept - len(token))
        last = i + 1 == len(data)
        pieces.append((decoder.decode(inside, last), cutter.decode(token[len(inside) :], last)))
    return pieces


def _token_text(data: bytes) -> str:
    """A token's text; bytes that are not UTF-8, as in a part of a character, by their number."""
    text = data.decode("utf-8", errors="surrogateescape")
    return "".join(f"<0x{ord(c) - 0xDC00:02X}>" if "\udc80" <= c <= "\udcff" else c for c in text)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _plain(value: Any) -> Any:
    """An option as JSON gives it back; what JSON has no form for, such as a method of one's own, by its name."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "name", type(value).__name__)
