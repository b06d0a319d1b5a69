"""`unite select`: choose the models of an ensemble from their scores."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from .console import console, errors, fail, plain

if TYPE_CHECKING:
    from ..selection.rule import Selection


def select(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Folders that unite eval or lm_eval wrote results and samples to, or JSON or CSV files of scores."
        ),
    ],
    task: Annotated[
        list[str] | None, typer.Option(help="Use only this task; may be repeated, tasks are averaged.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="lm_eval's metric, such as exact_match,strict-match.")] = None,
    max_models: Annotated[int | None, typer.Option(help="How many models to choose at most.")] = None,
    max_gap: Annotated[float, typer.Option(help="Points of accuracy a model may lie below the best.")] = 10.0,
    max_length_ratio: Annotated[
        float, typer.Option(help="How many times longer or shorter than the best model's its responses may be.")
    ] = 2.0,
    chance: Annotated[
        float | None,
        typer.Option(help="Accuracy of guessing in points, for the adaptive weights: 25 for four choices."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Choose the models of an ensemble from their scores: similar accuracy, similar style.

    Starts with the most accurate model and adds the next best that is within --max-gap points of it and whose mean
    response length is within a factor of --max-length-ratio, until there are --max-models or no model is left
    (arXiv 2410.03777, section 4.1). Prints the reason for every refusal, and the chosen models' adaptive weights.
    Results of ensembles are left out.

    Example: unite select results/ --task gsm8k --max-models 3
    """
    from ..members.names import short_names
    from ..selection.rule import select_models
    from ..selection.score_files import read_scores

    notes: list[str] = []
    try:
        scores = read_scores(paths, tasks=task, metric=metric, chance=chance, note=notes.append)
        shorter = dict(zip(scores, short_names(list(scores))))
        for note in notes:
            for name in sorted(shorter, key=len, reverse=True):
                note = note.replace(name, shorter[name])
            errors.print(f"[yellow]note:[/] {plain(note)}")
        if not as_json:  # JSON keeps the names as they were written
            scores = {shorter[name]: score for name, score in scores.items()}
        selection = select_models(scores, max_models=max_models, max_gap=max_gap, max_length_ratio=max_length_ratio)
    except (ValueError, TypeError, OSError) as error:
        raise fail(error) from None
    try:
        weights = dict(zip(selection.chosen, selection.adaptive_weights()))
    except ValueError:  # no model is better than guessing
        weights = {}

    if as_json:
        models = {name: asdict(score) for name, score in selection.scores.items()}
        result = {"chosen": selection.chosen, "refused": selection.refused, "weights": weights, "models": models}
        typer.echo(json.dumps(result, ensure_ascii=False))
        return
    console.print(_table(selection, weights))
    for name, reason in selection.refused.items():
        name = _shorten(name, console.width - len(reason) - 2)  # so that each takes one line
        console.print(f"{plain(name)}: {plain(reason)}", soft_wrap=True)
    if len(selection.chosen) == 1:
        console.print("Only one model is left: use it alone, an ensemble with the others would be worse.")


def _shorten(text: str, width: int) -> str:
    """Shorten a text to so many characters, but not to less than ten."""
    width = max(width, 10)
    return text if len(text) <= width else text[: width - 1] + "…"


def _table(selection: Selection, weights: dict[str, float]) -> Table:
    """All candidates in order of accuracy, in at most 80 columns."""
    from ..selection.rule import figures

    best = selection.chosen[0]
    task, problems = selection.scores[best].task, selection.scores[best].problems
    highest, first = figures(best, selection.scores[best])
    title = f"Models on {task}" if task else "Models"
    table = Table(title=plain(title + (f", {problems:,} problems" if problems else "")), title_justify="left", box=None)
    table.add_column("model", no_wrap=True, overflow="ellipsis", max_width=max(10, console.width - 52))
    for heading in ("accuracy", "gap", "length", "ratio", "weight"):
        table.add_column(heading, justify="right", min_width=len(heading))
    table.add_column("", min_width=len("refused"))
    for name, score in selection.scores.items():
        accuracy, length = figures(name, score)
        table.add_row(
            plain(name),
            f"{accuracy:.2f}",
            f"{highest - accuracy:.2f}",
            f"{length:.4g}",
            f"{length / first:.2f}",
            f"{weights[name]:.3f}" if name in weights else "",
            "primary" if name == best else "refused" if name in selection.refused else "chosen",
        )
    return table
