"""`unite demo`: show in a minute what an ensemble gains, with the models that ship with the package."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from .._text import visible
from .console import console, fail
from .trace import save_and_say

if TYPE_CHECKING:
    from ..demo.problems import Problem
    from ..demo.run import Result
    from ..members.transformers import Member
    from ..trace import Trace, TraceStep


def demo(
    problem: Annotated[
        str | None, typer.Option(help='Solve only this problem of yours, for example "Mia has 12 pens ...".')
    ] = None,
    problems: Annotated[
        int, typer.Option(min=9, max=360, help="How many of the 360 held-out test problems to run.")
    ] = 360,
    k: Annotated[int, typer.Option(min=1, max=200, help="How many tokens each model proposes per step.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Write the trace of that problem: a page (.html) or data (.json).")
    ] = None,
) -> None:
    """Let four small models that ship with the package solve word problems, alone and together.

    qwen2, mistral and llama are about equally good. They make different mistakes, because each has rarely seen some
    kinds of problems. gpt-neox is much weaker. Their tokenizers split the same text differently. At every step each
    model proposes its k likeliest tokens, the proposals are united, every model scores all of them, and the average
    decides.

    The table shows the share of right answers with its 95 % interval, for each model alone, the pairs, the three, and
    with the weak one. Then one problem is solved step by step. The places where the ensemble overruled its primary, the
    first member, are marked. Nothing is downloaded.

    The models know nine kinds of problems with numbers below about 100; docs/demo.md shows how they are worded.

    Example: unite demo --problem "Leo has 23 stamps, finds 18 more and then loses 5. How many stamps does Leo have
    now?"
    """
    import torch
    from transformers.utils import logging as transformers_logging

    from ..demo import MODELS, load_member
    from ..trace.trace import check_path

    if problem is not None and not problem.strip():
        raise fail("--problem must be a question in quotes, got an empty text")
    if trace is not None:
        try:
            check_path(trace)
        except ValueError as error:
            raise fail(error) from None
    torch.set_num_threads(1)  # models this small gain nothing from a second thread
    # The bars for loading models would hide the demo's own.
    transformers_logging.disable_progress_bar()
    members = {name: load_member(name) for name in MODELS}
    results: list[Result] = []
    shown: Problem | None = None
    if problem is None:
        results, shown = _run_table(members, problems, k, quiet=as_json)
        problem = shown.question
    try:
        alone, worked = _work_by_all(members, problem, k)
        if trace is not None:
            save_and_say([worked], trace)
    except (ValueError, OSError) as error:
        raise fail(error) from None
    if as_json:
        typer.echo(json.dumps(_as_json(results, shown, problem, alone, worked), ensure_ascii=False))
        return
    if results:
        _print_table(results)
    _print_worked(shown, problem, alone, worked)


def _run_table(members: dict[str, Member], size: int, k: int, *, quiet: bool) -> tuple[list[Result], Problem]:
    """Run every line of the table. Also returns a problem that the three solve and their primary alone does not."""
    from tqdm import tqdm

    from ..demo import COMPARABLE
    from ..demo.problems import problem_set
    from ..demo.run import TEST_SEED, TEST_SPLIT, lineups, work

    test = problem_set(TEST_SPLIT, TEST_SEED, size)
    results = []
    with tqdm(total=len(lineups()) * size, unit="problem", disable=quiet, file=sys.stderr, leave=False) as bar:
        for names in lineups():
            bar.set_description(" + ".join(names))
            results.append(work([members[n] for n in names], test, k=k, on_solved=bar.update))
    alone, together = (next(r for r in results if r.members == names) for names in (COMPARABLE[:1], COMPARABLE))
    won = (p for p, a, b in zip(test, alone.right, together.right) if b and not a)
    return results, next(won, test[0])


def _work_by_all(members: dict[str, Member], question: str, k: int) -> tuple[dict[str, str], Trace]:
    """Answer a question with every model alone, and with the three together, traced."""
    from ..demo import COMPARABLE
    from ..demo.run import work_one

    alone = {name: work_one([member], question, k=k).text for name, member in members.items()}
    return alone, work_one([members[n] for n in COMPARABLE], question, k=k)


def _as_json(
    results: list[Result], shown: Problem | None, question: str, alone: dict[str, str], trace: Trace
) -> dict[str, object]:
    steps = [
        {
            "text": step.piece,
            "overruled": (wanted := _wanted(trace, step)) is not None,
            "primary_text": wanted,
            "votes": dict(zip(trace.members, step.probs[step.winner])),
        }
        for step in trace.steps
    ]
    worked = {
        "question": question,
        "answer": shown.answer if shown else None,
        "alone": alone,
        "together": trace.text,
        "steps": steps,
    }
    return {"results": [r.to_dict() for r in results], "worked": worked}


def _wanted(trace: Trace, step: TraceStep) -> str | None:
    """The primary's own token at a step that overruled it, else None; empty for the end of the text."""
    if step.decided != "overruled":
        return None
    wanted = step.ids[step.favorites[trace.primary]][trace.primary]
    return "" if wanted in trace.eos_token_ids[trace.primary] else trace.step_text(step, trace.primary, wanted)


def _section(result: Result) -> tuple[int, bool]:
    """A key for lines of the table that belong together: as many members, with or without the weak one."""
    from ..demo import WEAK

    joined = WEAK in result.members and len(result.members) > 1
    return (0 if joined else len(result.members)), joined


def _print_table(results: list[Result]) -> None:
    from ..demo import COMPARABLE

    table = Table(title=f"{len(results[0].right)} held-out problems", title_justify="left")
    table.add_column("members, the primary first")
    for heading in ("right", "accuracy", "95 % interval", "tokens per step", "ms per token"):
        table.add_column(heading, justify="right")
    for n, r in enumerate(results):
        low, high = r.interval
        cells = (
            str(sum(r.right)),
            f"{100 * r.accuracy:.1f} %",
            f"{100 * low:.1f} to {100 * high:.1f}",
            f"{r.union_size:.1f}",
            f"{r.ms_per_token:.2f}",
        )
        grows = n + 1 < len(results) and _section(results[n + 1]) != _section(r)
        table.add_row(r.name, *cells, style="bold" if r.members == COMPARABLE else None, end_section=grows)
    console.print(table)
    console.print(
        "Tokens per step: how many united proposals the members score at a step, on average. Time per token: with many "
        "problems side by side.\n",
        style="dim",
    )


def _print_worked(shown: Problem | None, question: str, alone: dict[str, str], trace: Trace) -> None:
    from ..demo import COMPARABLE
    from ..demo.problems import read_answer

    def verdict(said: str) -> str:
        if shown is None:
            return ""
        return " right" if read_answer(said) == shown.answer else " wrong"

    console.print(Text(question, style="bold"))
    if shown is not None:
        console.print(f"(the first problem that the three solve and {COMPARABLE[0]} alone does not, if there is one)")
    width = max(map(len, (*alone, "together")))
    for name, said in alone.items():
        console.print(Text.assemble((f"{name:>{width}}  ", "cyan"), visible(said), (verdict(said), "dim")))
    line = Text.assemble((f"{'together':>{width}}  ", "cyan bold"))
    overruled = []
    for i, step in enumerate(trace.steps):
        if (wanted := _wanted(trace, step)) is not None:
            overruled.append((i, step, wanted))
        line.append(visible(step.piece), "reverse" if wanted is not None else "")
    line.append(verdict(trace.text), "dim")
    console.print(line)

    console.print(
        f"\nThe ensemble overruled {COMPARABLE[0]}, its primary, at {len(overruled)} of {len(trace.steps)} steps."
    )
    for i, step, wanted in overruled:
        before = "".join(s.piece for s in trace.steps[:i])[-24:]
        votes = ", ".join(f"{name} {p:.2f}" for name, p in zip(trace.members, step.probs[step.winner]))
        console.print(
            Text.assemble(
                f"  …{visible(before)}", (visible(step.piece) or "(end)", "reverse"),
                f"   not {visible(wanted or 'to end')!r}; votes for this token: {votes}",
            ),
            soft_wrap=True,
        )  # fmt: skip
