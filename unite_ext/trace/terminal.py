"""Show traces on a terminal: the text coloured by who decided each token, totals, and the union of one step."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .._text import visible
from .record import AGREEMENT, DECISIONS, GATED, OVERRULED, PRIMARY, TraceRecord

STYLES = {AGREEMENT: "green", PRIMARY: "blue", OVERRULED: "bold reverse yellow", GATED: "dim"}
BAR = 6  # columns of a full bar


def print_trace(trace: TraceRecord, console: Console) -> None:
    """Print the text and its totals. Without colours overruled tokens are in brackets, ⟦so⟧."""
    plain = console.no_color or not console.is_terminal
    notes = [Text(note, "yellow") for note in trace.absences]
    console.print(_text(trace, plain), *notes, _totals(trace, plain), sep="\n", soft_wrap=True)


def print_step(trace: TraceRecord, number: int, console: Console, *, slots: int = 12) -> None:
    """Print the union of step `number`, counted from 1: every member's token and probability, the winner first.

    Raises
    ------
    ValueError
        There is no such step.
    """
    if not 1 <= number <= len(trace.steps):
        raise ValueError(f"step must be from 1 to {len(trace.steps)}, got {number}")
    step = trace.steps[number - 1]
    order = sorted(range(len(step.averages)), key=lambda s: (s != step.winner, -step.averages[s], s))
    table = Table(title=f"step {number}: {DECISIONS[step.decided]}", title_justify="left")
    for heading in ("average", *trace.members):
        table.add_column(Text(heading))
    for slot in order[:slots]:
        cells = [_cell(trace.slot_text(step, slot), step.averages[slot], taken=slot == step.winner)]
        for m, token_id in enumerate(step.ids[slot]):
            if m in step.missing:
                cells.append(Text("away", "dim"))
                continue
            shown = "–" if token_id < 0 else trace.token_text(m, token_id)
            shown += "…" if trace.is_first_sub_token(step, slot, m) else ""
            own = step.decided != GATED and step.favorites[m] == slot
            cells.append(_cell(shown, step.probs[slot][m], taken=own))
        table.add_row(*cells)
    hidden = len(step.averages) - slots
    console.print(Group(table, Text(f"and {hidden} more" if hidden > 0 else "", "dim")))


def _cell(text: str, share: float, *, taken: bool) -> Text:
    """A token, its probability, and a bar for it."""
    number, bar = f"{share:.3f}".removeprefix("0"), "█" * round(BAR * share)
    return Text.assemble((f"'{visible(text)}'", "bold" if taken else ""), f" {number} ", (bar, "blue"))


def _text(trace: TraceRecord, plain: bool) -> Text:
    text = Text()
    for step in trace.steps:
        shown = "".join(c if c.isprintable() or c in "\n\t" else visible(c) for c in step.piece)
        if plain and step.decided == OVERRULED and shown:
            shown = f"⟦{shown}⟧"
        text.append(shown, STYLES[step.decided])
    return text


def _totals(trace: TraceRecord, plain: bool) -> RenderableType:
    counts = Text()
    for decided, style in STYLES.items():
        if trace.count(decided) or decided != GATED:
            name = f"⟦{decided}⟧" if plain and decided == OVERRULED else decided
            counts.append(f"{name} {trace.count(decided)}", style).append(", ")
    counts.append(f"{100 * trace.agreement_rate:.1f} % in agreement, {len(trace.steps)} steps", "dim")
    others = ", ".join(f"{name} {times}" for name, times in zip(trace.members, trace.overruled))
    what = "byte" if trace.options.get("boundaries") == "exact" else "token"
    return Group(counts, Text(f"wanted another {what}: {others}", "dim"))
