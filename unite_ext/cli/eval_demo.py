"""`unite eval --demo`: measure every method on the models that ship with the package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from .console import console, errors, fail
from .resume import describe_run, differences, read_run, write_run

if TYPE_CHECKING:
    from ..demo.methods import Measured


def evaluate_demo(method: str | None, output: Path | None, limit: int | None, as_json: bool) -> None:
    """Run the bundled models alone and with every method on the demo's test problems, and print one table."""
    import torch
    from transformers.utils import logging as transformers_logging

    from ..demo import MODELS, load_member
    from ..demo.methods import lineup, run

    if limit is not None and limit < 1:
        raise fail(f"limit must be at least 1, got {limit}")
    names = [name for name, *_ in lineup()]
    if method is not None and method not in names:
        raise fail(f"method must be one of {', '.join(names)}, got {method!r}")
    if output:
        try:
            _keep_run(output)
        except (ValueError, OSError) as error:
            raise fail(error) from None
    transformers_logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models this small gain nothing from a second thread
    try:
        members = {name: load_member(name) for name in MODELS}
        found = run(
            members,
            limit=limit,
            folder=output,
            wanted=None if method is None else [*MODELS, method],
            on_start=lambda name: errors.print(f"running {name}"),
        )
    except (ValueError, OSError) as error:
        raise fail(error) from None
    finally:
        torch.set_num_threads(threads)
    if as_json:
        typer.echo(json.dumps([measured.to_dict() for measured in found]))
        return
    console.print(_table(found))
    if output:
        console.print(f"Results and samples are in {output}, for unite select.", soft_wrap=True)


def _keep_run(output: Path) -> None:
    """Write down which run a folder's results are of. ValueError if they are of other models or another unite_ext."""
    from .. import __version__
    from ..demo import MODELS, model_folder

    run = describe_run([str(model_folder(name)) for name in MODELS], {"unite_ext": __version__})
    path = output / "demo.run.json"
    kept = read_run(path)
    if kept is None and any(output.glob("*/results_n*.json")):
        raise ValueError(f"{output} has results but no {path.name} that names their models; choose another folder")
    if kept is not None and (found := differences(kept, run)):
        raise ValueError(f"{output} holds results of another run: {'; '.join(found)}; choose another folder")
    output.mkdir(parents=True, exist_ok=True)
    write_run(path, run)


def _table(found: Sequence[Measured]) -> Table:
    table = Table(title=f"{found[0].problems} test problems, the 95 % interval in brackets", title_justify="left")
    table.add_column("model or method")
    for heading in ("accuracy", "tokens per step", "ms per token", "extra memory"):
        table.add_column(heading, justify="right")
    for measured in found:
        low, high = measured.interval
        table.add_row(
            measured.name,
            f"{100 * measured.accuracy:.1f} % ({100 * low:.1f}–{100 * high:.1f})",
            "–" if measured.tokens_per_step is None else str(round(measured.tokens_per_step, 2)),
            f"{measured.ms_per_token:.2f}",
            f"{measured.extra_bytes / 1000:,.0f} kB" if measured.extra_bytes else "–",
        )
    return table
