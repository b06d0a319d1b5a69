"""`unite info`: what is installed and what runs here."""

from __future__ import annotations

import json
import platform
from typing import Annotated

import typer
from rich.table import Table

from .console import console


def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show versions, compiled modules, devices and the instruction set in use."""
    import tokenizers
    import torch
    import transformers

    from .. import __version__, _backend
    from ..ops import cpu_instruction_set

    facts = {
        "unite_ext": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "CPU kernel": f"{cpu_instruction_set()}, {torch.get_num_threads()} threads",
        "CUDA kernel": _backend.cuda_unavailable_reason or "loaded",
        "CUDA devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in facts.items():
        table.add_row(name, (", ".join(value) or "none") if isinstance(value, list) else str(value))
    console.print(table)
