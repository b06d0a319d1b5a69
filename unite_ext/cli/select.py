"""`unite select`: which models to ensemble."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .console import console, fail, plain


def select(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Folders of lm_eval results with logged samples, or JSON or CSV files of scores."),
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
    """Choose the models of an ensemble from their scores: similar skill, similar style.

    Starts with the most accurate model and adds the next best that is within --max-gap points of it and whose mean
    response length is within a factor of --max-length-ratio, until there are --max-models or nobody is left
    (arXiv 2410.03777, section 4.1). Prints the reason for every refusal, and the chosen models' adaptive weights.

    Example: unite select results/ --task gsm8k --max-models 3
    """
    from rich.table import Table

    from ..selection.rule import figures, select_models
    from ..selection.score_files import read_scores

    try:
        scores = read_scores(paths, tasks=task, metric=metric, chance=chance)
        selection = select_models(scores, max_models=max_models, max_gap=max_gap, max_length_ratio=max_length_ratio)
    except (ValueError, TypeError, OSError) as error:
        raise fail(error) from None
    try:
        weights = dict(zip(selection.chosen, selection.adaptive_weights()))
    except ValueError:  # nobody beats guessing: there is nothing to weigh
        weights = {}

    if as_json:
        models = {
            name: {"accuracy": s.accuracy, "mean_length": s.mean_length, "task": s.task, "chance": s.chance}
            for name, s in selection.scores.items()
        }
        result = {"chosen": selection.chosen, "refused": selection.refused, "weights": weights, "models": models}
        typer.echo(json.dumps(result, ensure_ascii=False))
        return
    best = selection.chosen[0]
    task_name = selection.scores[best].task
    highest, first = figures(best, selection.scores[best])
    table = Table(title=f"Models on {plain(task_name)}" if task_name else None, title_justify="left")
    table.add_column("model")
    for heading in ("accuracy", "below the best", "mean length", "times the best's", "adaptive weight"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for name, score in selection.scores.items():
        verdict = "primary" if name == best else "chosen"
        accuracy, length = figures(name, score)
        table.add_row(
            plain(name),
            f"{accuracy:.2f}",
            f"{highest - accuracy:.2f}",
            f"{length:.4g}",
            f"{length / first:.2f}",
            f"{weights[name]:.3f}" if name in weights else "",
            plain(f"refused: {selection.refused[name]}") if name in selection.refused else verdict,
        )
    console.print(table)
    if len(selection.chosen) == 1:
        console.print("Only one model is left: use it alone, the others would do it harm.")
