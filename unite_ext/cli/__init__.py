"""The `unite` command: every command has a file of its own."""

from __future__ import annotations

import typer

from .align import align
from .chat import chat
from .console import write_anything
from .demo import demo
from .eval import evaluate
from .generate import generate
from .info import info
from .ranks import name_the_culprit
from .select import select
from .serve import serve
from .trace import trace

app = typer.Typer(
    help="UNITE: language models of different families decode together.",
    no_args_is_help=True,
    rich_markup_mode="markdown",  # rewraps paragraphs
    pretty_exceptions_show_locals=False,
)


@app.callback()
def start() -> None:
    """Run before every command."""
    write_anything()
    name_the_culprit()


app.command()(info)
app.command()(align)
app.command("eval")(evaluate)
app.command()(generate)
app.command()(chat)
app.command()(serve)
app.command()(select)
app.command()(trace)
app.command()(demo)
