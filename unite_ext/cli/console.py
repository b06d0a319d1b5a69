"""What all commands print with: two consoles, errors for a person, and texts that cannot act on a terminal."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from .._text import visible

console = Console()
errors = Console(stderr=True)


def write_anything() -> None:
    """Let characters that a terminal's or pipe's encoding lacks appear as escapes: none of them ends a command."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def fail(message: object) -> typer.Exit:
    """Print an error for a person; raise what this returns."""
    errors.print(f"[bold red]error:[/] {plain(message)}", soft_wrap=True)
    return typer.Exit(code=1)


def plain(text: object) -> str:
    """Text that rich prints as it is: no markup, and control characters visible."""
    return visible(str(text)).replace("[", r"\[")
