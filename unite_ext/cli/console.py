"""What all commands print with: two consoles, errors for a person, and texts that cannot act on a terminal."""

from __future__ import annotations

import typer
from rich.console import Console

from .._text import visible

console = Console()
errors = Console(stderr=True)


def fail(message: object) -> typer.Exit:
    """Print an error for a person; raise what this returns."""
    errors.print(f"[bold red]error:[/] {plain(message)}", soft_wrap=True)
    return typer.Exit(code=1)


def plain(text: object) -> str:
    """Text that rich prints as it is: no markup, and control characters visible."""
    return visible(str(text)).replace("[", r"\[")
