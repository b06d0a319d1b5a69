"""`unite trace`: show saved traces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..trace import Trace, load_traces
from ..trace.terminal import print_step, print_trace
from ..trace.trace import check_path, save_traces
from .console import console, errors, fail


def save_and_say(traces: Sequence[Trace], path: Path) -> None:
    """Write traces, and print where they are and how to look at them."""
    save_traces(traces, path)
    how = "open it in a browser" if path.suffix.lower() == ".html" else f"unite trace {path} shows it"
    errors.print(f"trace: {path} ({how})", markup=False, highlight=False, soft_wrap=True)


def trace(
    file: Annotated[Path, typer.Argument(help="A .json file that `unite generate --trace` wrote.")],
    html: Annotated[Path | None, typer.Option(help="Write a page for a browser to this file.")] = None,
    text: Annotated[int, typer.Option(min=1, help="Which of the file's texts to print, counted from 1.")] = 1,
    step: Annotated[int | None, typer.Option(help="Print the union of this step, counted from 1.")] = None,
) -> None:
    """Show who decided each token of a text, and every model's probabilities.

    On the terminal: the text in colours, with totals. --step shows one step's union. --html writes one page that needs
    no network and shows the union of the token under the pointer or chosen with the arrow keys.

    Examples:

        unite generate --model A --model B --prompt "Once upon a time" --trace trace.json

        unite trace trace.json

        unite trace trace.json --step 3

        unite trace trace.json --html trace.html
    """

    try:
        if html is not None and check_path(html).suffix.lower() != ".html":
            raise ValueError(f"--html must be a .html file, got {html}")
        traces = load_traces(file)
        if not traces:
            raise ValueError(f"{file} must hold a trace, got none")
        if html is not None:
            save_and_say(traces, html)
            return
        if text > len(traces):
            raise ValueError(f"--text must be from 1 to {len(traces)}, the number of texts in {file}, got {text}")
        if step is None:
            print_trace(traces[text - 1], console)
        else:
            print_step(traces[text - 1], step, console)
    except (ValueError, OSError) as error:
        raise fail(error) from None
