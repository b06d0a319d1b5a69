"""`unite demo`: what an ensemble gains, seen in a minute, with the models that ship with the package."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..member import Member
    from .problems import Problem
    from .run import Result, WorkedStep


def demo(
    problem: Annotated[
        str | None, typer.Option(help='Work this problem of yours and nothing else, for example "Mia has 12 pens ...".')
    ] = None,
    problems: Annotated[
        int, typer.Option(min=9, max=360, help="How many of the 360 held-out test problems to run.")
    ] = 360,
    k: Annotated[int, typer.Option(min=1, max=200, help="How many tokens each model proposes per step.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Four small models that ship with the package solve word problems, alone and together.

    qwen2, mistral and llama are about equally good and make different mistakes, each having rarely seen other kinds of
    problems; gpt-neox is much weaker. Their tokenizers cut the same text differently. At every step each model
    proposes its k likeliest tokens, the proposals are united, every model scores all of them, and the average decides.

    The table shows the share of right answers with its 95 % interval, for each model alone, the pairs, the three, and
    what happens when the weak one joins. Then one problem is worked step by step: marked are the places where
    the ensemble overruled its primary, the first member. Nothing is downloaded.

    The models know nine kinds of problems and numbers below about 100; see docs/demo.md for how they say them.

    Example: unite demo --problem "Leo has 23 stamps, finds 18 more and then loses 5. How many stamps does Leo have
    now?"
    """
    import torch
    from transformers.utils import logging as transformers_logging

    from ..cli import fail
    from . import MODELS, load_member

    if problem is not None and not problem.strip():
        raise fail("--problem must not be empty: give a question in quotes")
    # One thread: with models this small, waiting for a second one costs more than it brings.
    torch.set_num_threads(1)
    # One bar per model loaded would drown the demo's own.
    transformers_logging.disable_progress_bar()
    members = {name: load_member(name) for name in MODELS}
    results: list[Result] = []
    shown: Problem | None = None
    if problem is None:
        results, shown = _run_table(members, problems, k, quiet=as_json)
        problem = shown.question
    try:
        worked = _work_by_all(members, problem, k)
    except ValueError as error:
        raise fail(error) from None
    if as_json:
        typer.echo(json.dumps(_as_json(results, shown, problem, *worked), ensure_ascii=False))
        return
    if results:
        _print_table(results)
    _print_worked(shown, problem, *worked)


def _run_table(members: dict[str, Member], size: int, k: int, *, quiet: bool) -> tuple[list[Result], Problem]:
    """Every line of the table, and the problem to show: one the ensemble solves and its primary alone does not."""
    from tqdm import tqdm

    from . import COMPARABLE
    from .problems import problem_set
    from .run import TEST_SEED, TEST_SPLIT, lineups, work

    test = problem_set(TEST_SPLIT, TEST_SEED, size)
    results = []
    with tqdm(total=len(lineups()) * size, unit="problem", disable=quiet, file=sys.stderr, leave=False) as bar:
        for names in lineups():
            bar.set_description(" + ".join(names))
            results.append(work([members[n] for n in names], test, k=k, on_solved=bar.update))
    alone, together = (next(r for r in results if r.members == names) for names in (COMPARABLE[:1], COMPARABLE))
    won = (p for p, a, b in zip(test, alone.right, together.right) if b and not a)
    return results, next(won, test[0])


def _work_by_all(members: dict[str, Member], question: str, k: int) -> tuple[dict[str, str], str, list[WorkedStep]]:
    """What every model says alone, what the three say together, and the steps of that."""
    from . import COMPARABLE
    from .run import work_one

    alone = {name: work_one([member], question, k=k)[0] for name, member in members.items()}
    text, steps = work_one([members[n] for n in COMPARABLE], question, k=k)
    return alone, text, steps


def _as_json(
    results: list[Result],
    shown: Problem | None,
    question: str,
    alone: dict[str, str],
    text: str,
    steps: list[WorkedStep],
) -> dict[str, Any]:
    worked = {
        "question": question,
        "answer": shown.answer if shown else None,
        "alone": alone,
        "together": text,
        "steps": [
            {"text": s.text, "overruled": s.overruled, "primary_text": s.primary_text, "votes": s.votes} for s in steps
        ],
    }
    return {"results": [r.to_dict() for r in results], "worked": worked}


def _section(result: Result) -> tuple[int, bool]:
    """Lines of the table that belong together: as many members, with or without the weak one."""
    from . import WEAK

    joined = WEAK in result.members and len(result.members) > 1
    return (0 if joined else len(result.members)), joined


def _print_table(results: list[Result]) -> None:
    from rich.table import Table

    from ..cli import console
    from . import COMPARABLE

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
        "Tokens per step: the united proposals that the members score at a step, on average. Time per token: many "
        "problems run side by side.\n",
        style="dim",
    )


def _print_worked(
    shown: Problem | None, question: str, alone: dict[str, str], text: str, steps: list[WorkedStep]
) -> None:
    from rich.text import Text

    from ..cli import console
    from . import COMPARABLE
    from .problems import read_answer

    def verdict(said: str) -> str:
        if shown is None:
            return ""
        return " right" if read_answer(said) == shown.answer else " wrong"

    console.print(Text(question, style="bold"))
    if shown is not None:
        console.print(f"(the first problem that the three solve and {COMPARABLE[0]} alone does not, if there is one)")
    width = max(map(len, (*alone, "together")))
    for name, said in alone.items():
        console.print(Text.assemble((f"{name:>{width}}  ", "cyan"), _visible(said), (verdict(said), "dim")))
    line = Text.assemble((f"{'together':>{width}}  ", "cyan bold"))
    for step in steps:
        line.append(_visible(step.text), "reverse" if step.overruled else "")
    line.append(verdict(text), "dim")
    console.print(line)

    overruled = [i for i, step in enumerate(steps) if step.overruled]
    console.print(f"\nThe ensemble overruled {COMPARABLE[0]}, its primary, at {len(overruled)} of {len(steps)} steps.")
    for i in overruled:
        step = steps[i]
        before = "".join(s.text for s in steps[:i])[-24:]
        votes = ", ".join(f"{name} {p:.2f}" for name, p in step.votes.items())
        wanted = step.primary_text or "to end"
        console.print(
            Text.assemble(
                f"  …{_visible(before)}", (_visible(step.text) or "(end)", "reverse"),
                f"   not {_visible(wanted)!r}; votes for this token: {votes}",
            ),
            soft_wrap=True,
        )  # fmt: skip


def _visible(text: str) -> str:
    """Text on one line, its line ends and other control characters as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
