"""The tables of passes over several ids: layers, caches, speculation, scoring."""

from __future__ import annotations

from lib.markdown import markdown, measured_on, newest
from lib.records import Rows


def speculation() -> str:
    """Gain of every kind of draft over plain decoding."""
    return _gains([r for r in newest("speculation_cpu") if r["passes_per_token"]])  # older files hold scoring as well


def exact_drafts() -> str:
    """The same with exact boundaries."""
    known = ("none", "ngram")
    return _gains(
        [
            r if r["draft"] in known or r["draft"].isdigit() else r | {"draft": "by the second member"}
            for r in newest("exact_drafts_cpu")
        ]
    )


def _gains(rows: Rows) -> str:
    """Gain of every kind of draft, and what it would be with free places."""
    kinds = list(dict.fromkeys(r["draft"] for r in rows if r["draft"] != "none"))
    cases: dict[tuple[str, str, str], Rows] = {}
    for r in rows:
        cases.setdefault((r["case"], r["members"], r["batch"]), []).append(r)
    table = []
    for (case, members, batch), found in cases.items():
        by = {r["draft"]: r for r in found}
        cells = [
            f"{float(by[kind]['gain']):.2f}× ({float(by[kind]['free_places_gain']):.2f}×)" if kind in by else "-"
            for kind in kinds
        ]
        plain = f"{float(by['none']['tokens_per_s']):.1f}"
        table.append([f"{case}, {members} members, B = {batch}", plain, *cells])
    header = ["", "no drafts, tokens/s", *(k if not k.isdigit() else f"drafts of {k}" for k in kinds)]
    return markdown(header, table, measured_on(rows))


def few_rows() -> str:
    """One linear layer for a handful of rows."""
    rows = newest("few_rows_cpu")
    found = {(r["dtype"], r["layer"], r["rows"]): r for r in rows}
    counts = list(dict.fromkeys(r["rows"] for r in rows))

    def short(ms: str) -> str:
        return f"{float(ms):.0f}" if float(ms) >= 10 else f"{float(ms):.2g}"

    table = [
        [
            f"{layer}, {dtype}",
            short(found[dtype, layer, counts[0]]["floor_ms"]),
            *(
                f"{short(r['torch_ms'])}, {short(r['ours_ms'])} ({float(r['ratio']):.1f}×)"
                for r in (found[dtype, layer, n] for n in counts)
            ),
        ]
        for dtype, layer in dict.fromkeys((r["dtype"], r["layer"]) for r in rows)
    ]
    return markdown(
        ["layer", "floor", "1 row", *(f"{n} rows" for n in counts[1:])], table, f"Milliseconds. {measured_on(rows)}"
    )


def passes() -> str:
    """Passes over a few ids beside a long cache."""
    rows = newest("passes_cpu")
    found = {(r["model"], r["rows"], r["context"], r["ids"]): r for r in rows}
    ids = list(dict.fromkeys(r["ids"] for r in rows))
    table = [
        [
            f"{model}, {batch} x {context} ids",
            *(
                f"{float(r['transformers_ms']):.0f}, {float(r['ours_ms']):.0f} ms ({float(r['ratio']):.1f}×)"
                if r
                else "-"
                for r in (found.get((model, batch, context, n)) for n in ids)
            ),
        ]
        for model, batch, context in dict.fromkeys((r["model"], r["rows"], r["context"]) for r in rows)
    ]
    return markdown(["cached", *(f"{n} more each" for n in ids)], table, measured_on(rows))


def leaving() -> str:
    """A step in which a request leaves a batch and another joins."""
    rows = newest("leaving_cpu")
    table = [
        [
            f"{r['model']}, {r['rows']} x {r['context']} ids",
            *(f"{float(r[way]):.0f} ms" for way in ("step_ms", "copied_ms", "ours_ms")),
        ]
        for r in rows
    ]
    header = ["", "a step", "one leaves and one joins, all rows copied", "only those that move"]
    return markdown(header, table, measured_on(rows))


def scoring() -> str:
    """Given continuations: one pass against a step per token, and against the harness."""
    rows = newest("scoring_cpu")
    ways = list(dict.fromkeys(r["way"] for r in rows))
    found = {
        (r["case"], r["members"], r["way"]): f"{float(r['tokens_per_s']):.0f} ({float(r['gain']):.1f}×)" for r in rows
    }
    table = [
        [f"{case}, {members} members", *(found[case, members, way] for way in ways)]
        for case, members in dict.fromkeys((r["case"], r["members"]) for r in rows)
    ]
    note = f"Tokens per second, and how many times a step per token's. {measured_on(rows)}"
    return markdown(["", *ways], table, note)
