"""Write the tables of the documents from the CSV files in results/, or check that they are up to date.

    python benchmarks/lib/tables.py            rewrite what stands between <!-- table: NAME --> and <!-- end -->
    python benchmarks/lib/tables.py --check    exit with 1 if something would change

Each file's newest measurement (its last rows with one commit, machine and date) counts.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a command, to find lib

from lib import records
from lib.markdown import RESULTS, markdown, measured_on, newest
from lib.passes_tables import exact_drafts, few_rows, leaving, passes, scoring, speculation
from lib.real_models_tables import (
    bits_per_byte,
    code_prompts,
    code_prompts_second,
    exact_batches,
    real_models_eval,
    skill_gap,
    tokens_per_step,
)
from lib.records import duration

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def step_cpu() -> str:
    """Ours, the floor and the rivals by batch, float32 and k = 10."""
    rows = newest("step_cpu")
    names = {
        "amax": "one `amax` over them (the floor)", "unite_step": "**`unite_step`**", "topk": "`torch.topk` alone",
        "dictionary": "dictionaries of strings", "reference": "the PyTorch reference",
    }  # fmt: skip
    cases = {(r["call"], r["batch"]): r for r in rows if r["dtype"] == "float32" and r["k"] == "10"}
    batches = sorted({int(b) for _, b in cases})
    table = [
        [names[call], *(duration(float(r["p50_us"])) if (r := cases.get((call, str(b)))) else "" for b in batches)]
        for call in names
    ]
    return markdown(["", *(f"B = {b}" for b in batches)], table, measured_on(rows))


def step_cpu_dtypes() -> str:
    """unite_step as a multiple of amax over the same logits, by dtype and k."""
    rows = [r for r in newest("step_cpu") if r["call"] == "unite_step"]
    cases = {(r["dtype"], r["k"], r["batch"]): r for r in rows}
    batches = sorted({int(r["batch"]) for r in rows})
    table = []
    for dtype, k in dict.fromkeys((r["dtype"], r["k"]) for r in rows):
        found = [cases[dtype, k, str(b)] for b in batches]
        table.append(
            [f"{dtype}, k = {k}", *(f"{duration(float(r['p50_us']))} ({float(r['over_amax']):.2f}×)" for r in found)]
        )
    return markdown(["", *(f"B = {b}" for b in batches)], table, measured_on(rows))


def decode_cpu() -> str:
    """Time per step of the decode loop, and outside the forward passes."""
    rows = newest("decode_cpu")
    table = []
    for members, batch in dict.fromkeys((r["members"], r["batch"]) for r in rows):
        own = [r for r in rows if r["members"] == members and r["batch"] == batch]
        cell = {(r["call"], r["length"]): duration(float(r["p50_us"])) for r in own}
        reference = {r["call"]: duration(float(r["p50_us"])) for r in own if r["call"] in ("hf generate", "oracle")}
        lengths = sorted({int(r["length"]) for r in own if r["call"] == "ensemble"})
        for length in lengths:
            first = length == lengths[0]
            table.append(
                [
                    f"{members} members, B = {batch}, after {length}",
                    cell["ensemble", str(length)],
                    cell["outside forwards", str(length)],
                    reference.get("hf generate", "") if first else "",
                    reference.get("oracle", "") if first else "",
                ]
            )
    header = ["", "a step", "of this outside forwards", "the members' own `generate`, summed", "the oracle"]
    return markdown(header, table, measured_on(rows))


def alignment() -> str:
    """Building and loading an alignment."""
    rows = newest("alignment")
    table = [[r["call"], duration(float(r["p50_us"])), r["note"]] for r in rows]
    return markdown(["Llama-3 + Qwen2 + Mistral-v0.3", "time", ""], table, measured_on(rows))


def text_sync() -> str:
    """One append of four bytes, by kind and length of the text."""
    rows = newest("text_sync")
    lengths = sorted({int(r["length"]) for r in rows})
    table = []
    for name, kind in dict.fromkeys((r["tokenizer"], r["text"]) for r in rows):
        own = {
            int(r["length"]): duration(float(r["p50_us"])) for r in rows if (r["tokenizer"], r["text"]) == (name, kind)
        }
        table.append([f"{name}, {kind}", *(own[n] for n in lengths)])
    return markdown(["four bytes more", *(f"after {n:,}" for n in lengths)], table, measured_on(rows))


def holes() -> str:
    """A pass of the model by the rule for compacting its cache, and the columns that the rule left."""
    rows = newest("holes_cpu")
    names = {
        ("own", "2.0", "64"): "**holes read: 2 × the columns** (ours)",
        ("never", "0.0", "0"): "never",
        **{("share", str(s), "64"): f"holes: {100 * s:.0f} % of the columns" for s in (0.1, 0.25, 0.5)},
        **{("cost", str(c), "64"): f"holes read: {c:g} × the columns" for c in (0.5, 1.0, 4.0)},
        ("cost", "2.0", "8"): "holes read: 2 × the columns, from 8 holes on instead of 64",
    }
    cases = {((r["rule"], r["value"], r["least"]), r["batch"]): r for r in rows}
    batches = sorted({int(r["batch"]) for r in rows})

    def cell(r: dict[str, str]) -> str:
        return f"{duration(float(r['mean_us']))}, {r['columns']} of {r['used']} columns"

    table = [[name, *(cell(cases[rule, str(b)]) for b in batches)] for rule, name in names.items()]
    return markdown(
        ["compact when", *(f"B = {b}" for b in batches)], table, measured_on(rows).replace("Medians", "Means")
    )


def decode_against() -> str:
    """The decode loop beside that of an older commit: a step, and its time outside the forward passes."""
    rows = newest("decode_against")
    found = {(r["batch"], r["length"], r["call"]): (float(r["other_us"]), float(r["this_us"])) for r in rows}

    def cells(key: tuple[str, str, str]) -> list[str]:
        before, now = found[key]
        return [duration(before), duration(now), f"{now / before:.2f}×"]

    table = [
        [f"B = {batch}, after {length}", *cells((batch, length, "outside forwards")), *cells((batch, length, call))]
        for batch, length, call in found
        if call == "ensemble"
    ]
    header = ["", "outside forwards, before", "now", "", "a step, before", "now", ""]
    note = f"{rows[0]['members']} members; before: commit {rows[0]['other']}. {measured_on(rows)}"
    return markdown(header, table, note)


def engine_arrivals() -> str:
    """Requests that arrive one by one against one offline batch."""
    rows = newest("engine_cpu", "ratio")
    table = [[r["case"], f"{float(r['tokens_per_s']):,.0f}", f"{float(r['ratio']):.2f}", r["steps"]] for r in rows]
    return markdown([f"{rows[0]['requests']} requests", "tokens/s", "of the batch", "steps"], table, measured_on(rows))


def engine_prompt() -> str:
    """How long running requests wait for a step while a long prompt is read."""
    rows = newest("engine_cpu", "p50_us")
    table = [[r["case"], *(duration(float(r[name])) for name in ("p50_us", "p90_us", "worst_us"))] for r in rows]
    return markdown(["a step", "median", "p90", "worst"], table, records.measured_on(rows) + ".")


def ranks() -> str:
    """A step of two members: in one process, on two ranks, and with whole vocabularies exchanged."""
    rows = [*newest("ranks_cpu"), *(r for r in newest("hosts_cpu") if r["network"] != "none")]
    found = {(r["network"], r["call"], r["batch"]): r for r in rows}

    def cell(r: dict[str, str]) -> str:
        return f"{duration(float(r['p10_us']))}, {duration(float(r['p50_us']))}, {duration(float(r['p90_us']))}"

    table = [
        [
            call if call == "one process" else f"{call}, {network}",
            *(cell(found[network, call, batch]) for batch in ("1", "32")),
            *(f"{int(found[network, call, batch]['sent_bytes']):,}" for batch in ("1", "32")),
        ]
        for network, call in dict.fromkeys((r["network"], r["call"]) for r in rows)
    ]
    header = ["", "B = 1: p10, p50, p90", "B = 32: p10, p50, p90", "bytes sent, B = 1", "B = 32"]
    return markdown(header, table, f"A step, and what each rank sends in it. {records.measured_on(rows)}.")


def vllm() -> str:
    """A step with a member in vLLM, beside the same model in this process."""
    rows = newest("vllm_cpu")
    table = []
    for key in dict.fromkeys((r["model"], r["beside"], r["vllm"], r["texts"]) for r in rows):
        model, beside, kind, texts = key
        own = [r for r in rows if (r["model"], r["beside"], r["vllm"], r["texts"]) == key]
        counts = {name: sum(int(r[name]) for r in own) for name in ("same", "near_ties", "different")}
        total = sum(counts.values())
        ties = f", {counts['near_ties']} to a near tie" * bool(counts["near_ties"])
        times = (", ".join(f"{float(r[name]):.0f} ms" for r in own) for name in ("local_ms", "vllm_ms"))
        table.append([f"{model} ({kind}) + {beside}", texts, f"{counts['same']} of {total}{ties}", *times])
    header = ["in vLLM + beside it", "texts at once", "same tokens", "a step in this process", "in vLLM"]
    return markdown(header, table, f"Two times: either one leads. {measured_on(rows)}")


def trace_page() -> str:
    """The page of a long trace."""
    rows = newest("trace_page")
    table = [[r["call"], duration(float(r["p50_us"])), r["bytes"] and f"{int(r['bytes']) / 1e6:.1f} MB"] for r in rows]
    header = [f"{int(rows[0]['tokens']):,} tokens, {rows[0]['members']} members", "time", "file"]
    return markdown(header, table, measured_on(rows))


def methods() -> str:
    """Every method on the demo's models."""
    rows = newest("demo_methods")
    table = [
        [
            f"`{r['name']}`" + (" alone" if r["name"] == r["members"] else ""),
            f"{float(r['accuracy']):.1f} % ({float(r['low']):.1f}–{float(r['high']):.1f})",
            r["tokens_per_step"] and f"{float(r['tokens_per_step']):.3g}",
            f"{float(r['ms_per_token']):.2f}",
            f"{float(r['extra_kb']):,.0f} kB" if float(r["extra_kb"]) else "",
        ]
        for r in rows
    ]
    header = ["", "accuracy", "tokens per step", "ms per token", "extra memory"]
    return markdown(header, table, measured_on(rows).replace("Medians", f"{rows[0]['problems']} problems"))


def methods_rates() -> str:
    """DeePEn's accuracy on development problems by its rate."""
    rows = newest("demo_methods_rates")
    table = [["`deepen-avg`", *(f"{float(r['accuracy']):.1f} %" for r in rows)]]
    return markdown(["rate", *(r["eta"] for r in rows)], table, f"{rows[0]['problems']} development problems.")


def demo() -> str:
    """The bundled models alone and together, on the demo's held-out test problems."""
    rows = records.read_rows(RESULTS / "demo_test.csv")
    split = rows[-1]["split"]
    rows = [row for row in rows if row["split"] == split]
    table = [
        [
            r["members"],
            f"{float(r['accuracy']):.1f} %",
            f"{float(r['low']):.1f} to {float(r['high']):.1f} %",
            f"{float(r['tokens_per_step']):.1f}",
        ]
        for r in rows
    ]
    note = f"{rows[0]['problems']} test problems, k = {rows[0]['k']}; the test was run once."
    return markdown(["members", "right", "95 % interval", "tokens per step"], table, note)


def serve_cpu() -> str:
    """The server under clients that ask again when they are answered, and under arrivals at random."""
    rows = newest("serve_cpu")
    found = {(r["members"], r["case"], int(r["clients"])): r for r in rows}
    table = []
    for members, clients in dict.fromkeys((members, clients) for members, _, clients in found):
        engine, closed, poisson = (
            found[members, case, clients] for case in ("engine alone", "closed loop", "Poisson at 0.8")
        )
        table.append(
            [
                f"{members}, {clients}", engine["tokens_per_s"], closed["tokens_per_s"],
                f"{float(closed['tokens_per_s']) / float(engine['tokens_per_s']):.2f}",
                f"{closed['first_p50_ms']}, {closed['first_p99_ms']}",
                f"{closed['token_p50_ms']}, {closed['token_p99_ms']}",
                f"{poisson['first_p50_ms']}, {poisson['first_p99_ms']}",
            ]
        )  # fmt: skip
    header = [
        "members, clients",
        "engine alone",
        "server",
        "ratio",
        "first token",
        "per token",
        "first token, arrivals",
    ]
    memory = [
        f"{before} to {max(float(r['memory_after_mb']) for r in rows if r['members'] == members):.0f} MB ({members})"
        for members, before in {r["members"]: r["memory_before_mb"] for r in rows}.items()
    ]
    note = f"Tokens per second; milliseconds p50, p99. Memory {', '.join(memory)}. {measured_on(rows)}"
    return markdown(header, table, note)


TABLES: dict[str, Callable[[], str]] = {
    f.__name__: f
    for f in (
        demo,
        methods,
        methods_rates,
        step_cpu,
        step_cpu_dtypes,
        decode_cpu,
        decode_against,
        alignment,
        text_sync,
        holes,
        engine_arrivals,
        engine_prompt,
        speculation,
        exact_drafts,
        few_rows,
        passes,
        leaving,
        scoring,
        ranks,
        vllm,
        trace_page,
        serve_cpu,
        bits_per_byte,
        code_prompts,
        code_prompts_second,
        real_models_eval,
        tokens_per_step,
        exact_batches,
        skill_gap,
    )
}


def rendered(text: str) -> str:
    """A document with its tables made again."""
    return MARKED.sub(lambda m: m[1] + TABLES[m[2]]() + m[3], text)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, exit with 1 if a table is out of date")
    check = parser.parse_args().check
    stale = []
    for path in DOCUMENTS:
        text = path.read_text()
        if (new := rendered(text)) != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(new)
    if stale:
        print(("out of date: " if check else "written: ") + ", ".join(stale))
    raise SystemExit(bool(stale) and check)


if __name__ == "__main__":
    main()
