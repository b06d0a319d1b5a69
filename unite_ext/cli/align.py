"""`unite align`: how the vocabularies of several tokenizers relate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..members.names import short_names
from .console import console, fail, plain

if TYPE_CHECKING:
    from ..vocab.report import Example, PairReport


def align(
    tokenizers: Annotated[
        list[str], typer.Argument(help="Two to eight tokenizers: Hugging Face names, folders or .gguf files.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all counts and examples.")] = False,
    lossy: Annotated[bool, typer.Option(help="Accept tokenizers that change the text, such as lower-casing.")] = False,
    cache: Annotated[bool, typer.Option(help="Use the cache folder of alignments.")] = True,
) -> None:
    """Show how the vocabularies of several tokenizers relate.

    Counts the texts that two members can both say with one token, those that comparing surface strings
    would have missed (a vocabulary file writes a space as Ġ, ▁ or nothing), and how many tokens the other
    member can only begin, with the first sub-token of their text.

    Example: unite align meta-llama/Llama-3.1-8B Qwen/Qwen2-7B
    """
    from ..members.loading import load_tokenizer
    from ..vocab.alignment import VocabAlignment
    from ..vocab.report import report_alignment

    try:
        loaded = [load_tokenizer(name) for name in tokenizers]
        alignment = VocabAlignment.from_tokenizers(loaded, lossy=lossy, cache=cache, progress=not as_json)
    except (ValueError, TypeError, OSError) as error:
        raise fail(error) from None
    names = short_names(tokenizers)
    report = report_alignment(alignment, loaded, names)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), ensure_ascii=False))
        return

    table = Table(title="Vocabularies", title_justify="left")
    table.add_column("member")
    table.add_column("kind")
    for heading in ("ids", "eligible", "texts", "texts with two ids or more"):
        table.add_column(heading, justify="right")
    table.add_column("EOS ids")
    for m in report.members:
        counts = (f"{n:,}" for n in (m.ids, m.eligible, m.classes, m.doubled))
        table.add_row(plain(m.name), m.kind, *counts, ", ".join(map(str, m.eos_token_ids)) or "none")
    console.print(table)

    table = Table(title="Pairs", title_justify="left")
    table.add_column("pair")
    headings = ("texts in common", "of these missed by surface strings", "surface strings in common", "in the union")
    for heading in (*headings, "needs a first sub-token →", "←"):
        table.add_column(heading, justify="right")
    for p in report.pairs:
        counts = (f"{n:,}" for n in (p.classes_common, p.missed_by_surface, p.surface_common, p.surface_union))
        shares = (f"{100 * share:.1f} %" for share in p.first_sub_token_share)
        table.add_row(plain(f"{p.first} / {p.second}"), *counts, *shares)
    console.print(table)

    for p in report.pairs:
        _print_examples(f"Same text, other surface: {p.first} / {p.second}", p.missed_examples, p)
        _print_examples(f"Only begun by {p.second}: its first sub-token", p.sub_token_examples, p)
    console.print(
        f"{report.classes:,} texts in all; the alignment takes {report.device_bytes / 1e6:.1f} MB on a device."
    )


def _print_examples(title: str, examples: Sequence[Example], pair: PairReport) -> None:
    if not examples:
        return
    table = Table(title=plain(title), title_justify="left")
    for heading in (f"text in {pair.first}", "its surface", f"surface in {pair.second}", "its text"):
        table.add_column(plain(heading))
    for e in examples:
        cells = (e.text, e.surface, e.other_surface, e.other_text)
        table.add_row(*(plain(f"'{cell}'") for cell in cells))
    console.print(table)
