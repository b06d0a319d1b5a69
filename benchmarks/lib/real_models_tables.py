"""The tables of what ensembles of real models did."""

from __future__ import annotations

from lib import records
from lib.markdown import RESULTS, markdown, measured_on, newest


def bits_per_byte() -> str:
    """Real texts under real models: every member alone, byte by byte together, and by the rules of a step."""
    measured = records.read_rows(RESULTS / "bits_per_byte.csv")
    # No timings: what one machine has measured stands beside what another one has. The last of a case counts.
    rows = list({(r["set"], r["members"], r["rule"]): r for r in measured if r["half"] == "first"}.values())

    def found(kind: str, rule: str, *orders: tuple[str, ...]) -> str:
        wanted = ["+".join(order) for order in orders]
        bits = [r["bits_per_byte"] for r in rows if (r["set"], r["rule"]) == (kind, rule) and r["members"] in wanted]
        return ", ".join(f"{float(b):.3f}" for b in bits) or "-"

    together = dict.fromkeys((r["set"], r["members"]) for r in rows if r["rule"] == "repeat")
    done: set[tuple[str, frozenset[str]]] = set()
    table = []
    for kind, members in together:
        names = tuple(members.split("+"))
        if (kind, frozenset(names)) in done:
            continue
        done.add((kind, frozenset(names)))
        orders = (names, names[::-1])
        alone = ", ".join(found(kind, "alone", (name,)) for name in names)
        by_rule = [found(kind, rule, *orders) for rule in ("average", "exact", "repeat", "drop")]
        table.append([f"{kind}: {' + '.join(names)}", alone, *by_rule])
    sizes = [f"{kind} {r['texts']} texts of {r['bytes']} bytes" for kind, r in {r["set"]: r for r in rows}.items()]
    commits = " and ".join(dict.fromkeys(r["commit"] for r in rows))
    note = f"Bits per byte; {', '.join(sizes)}; two figures: either member leading. Commits {commits}."
    return markdown(["texts: members", "each alone", "byte by byte", "`exact`", "`repeat`", "`drop`"], table, note)


def code_prompts(half: str = "first") -> str:
    """Code that real models write, alone and by the rules of a step; where either member led, both figures."""
    measured = records.read_rows(RESULTS / "code_prompts.csv")
    rows = [r for r in {(r["half"], r["members"], r["rule"]): r for r in measured}.values() if r["half"] == half]
    groups: dict[tuple[frozenset[str], str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((frozenset(row["members"].split("+")), row["rule"]), []).append(row)
    order = {rule: n for n, rule in enumerate(("alone", "repeat", "drop", "exact"))}
    sizes = {members: n for n, members in enumerate(sorted(dict.fromkeys(m for m, _ in groups), key=len))}
    table = []
    for (_, rule), own in sorted(groups.items(), key=lambda item: (sizes[item[0][0]], order[item[0][1]])):
        figures = [", ".join(r[name] for r in own) for name in ("compile", "regular", "lines", "blank")]
        table.append(
            [f"{own[0]['members'].replace('+', ' + ')}, `{rule}`" if rule != "alone" else own[0]["members"], *figures]
        )
    some, commits = rows[0], " and ".join(dict.fromkeys(r["commit"] for r in rows))
    note = f"Of {some['prompts']} prompts; two figures: either member leading. {some['dtype']}, commits {commits}."
    return markdown(["members, rule", "compile", "indented by fours", "lines", "blank lines"], table, note)


def code_prompts_second() -> str:
    """The same for the prompts that were kept until the defaults had been decided."""
    return code_prompts("second")


def real_models_eval() -> str:
    """Benchmarks with the real models: percent right, and the standard error; the last run of a case counts."""
    measured = records.read_rows(RESULTS / "real_models_eval.csv")
    shown = {"unite_gsm8k": "exact_match", "unite_piqa_likelihood": "acc", "unite_arc_challenge_likelihood": "acc_norm"}
    rows = {(r["members"], r["boundaries"], r["task"]): r for r in measured if shown[r["task"]] == r["metric"]}
    cases = sorted({case[:2] for case in rows}, key=lambda case: (case[0].count("+"), case))

    def cell(case: tuple[str, str], task: str) -> str:
        row = rows.get((*case, task))
        if row is None:
            return "-"
        return f"{100 * float(row['value']):.1f} ± {100 * float(row['stderr']):.1f} ({row['problems']})"

    table = [
        [
            members.replace("+", " + ") + (", `exact`" if boundaries == "exact" else ""),
            *(cell((members, boundaries), t) for t in shown),
        ]
        for members, boundaries in cases
    ]
    some = next(iter(rows.values()))
    note = f"Percent right, one standard error, and how many problems. {some['dtype']}, k = {some['k']}."
    return markdown(["members", "GSM8K, 4-shot", "PIQA", "ARC-Challenge"], table, note)


def tokens_per_step() -> str:
    """The size of the union with real models, and what a token takes beside its members' own."""
    measured = records.read_rows(RESULTS / "tokens_per_step.csv")
    rows = records.pick_measurement([r for r in measured if r["batch_size"] == "1"])
    table = [
        [
            r["members"].replace("+", " + "),
            f"{float(r['tokens_per_step']):.1f}",
            *(f"{float(r[f'{rule}_ms']):.0f} ms ({float(r[f'{rule}_to_sum']):.2f})" for rule in ("plain", "exact")),
            ", ".join(f"{float(word):.0f} ms" for word in r["alone_ms"].split()[1::2]),
        ]
        for r in rows
    ]
    some = rows[0]
    note = (
        "Per token of the first member, and how many times the sum of its members' own. "
        f"{some['prompts']} texts, one at a time, k = {some['k']}, {some['dtype']}. {measured_on(rows)}"
    )
    header = ["members", "tokens per step", "`plain`", "`exact`", "each alone"]
    return markdown(header, table, note)


def exact_batches() -> str:
    """A token of a batch by plain steps and with exact boundaries, commit by commit."""
    measured = [r for r in records.read_rows(RESULTS / "tokens_per_step.csv") if r["batch_size"] != "1"]
    rows = [r for r in measured if (r["date"], r["machine"]) == (measured[-1]["date"], measured[-1]["machine"])]
    table = [
        [
            f"{r['members'].replace('+', ' + ')}, {r['batch_size']} texts, commit {r['commit']}",
            *(f"{float(r[f'{rule}_ms']):.0f} ms" for rule in ("plain", "exact")),
            f"{float(r['exact_ms']) / float(r['plain_ms']):.2f}",
        ]
        for r in rows
    ]
    some = rows[-1]
    note = (
        f"Per token of the first member, prompts included; {some['prompts']} texts, {some['dtype']}. "
        f"{some['machine']}, torch {some['torch']}, {some['date']}."
    )
    return markdown(["", "`plain`", "`exact`", "ratio"], table, note)


def skill_gap() -> str:
    """A whole real model beside partners without their last layers."""
    rows = newest("skill_gap")
    best, partners = rows[0], {(r["members"], r["layers"]): r for r in rows[1:]}
    together = [r for r in rows if "+" in r["members"]]

    def cells(r: dict[str, str]) -> list[str]:
        return [f"{100 * float(r['accuracy']):.1f}", f"{float(r['bits_per_byte']):.3f}"]

    table = [[f"{best['members']} alone", "", "", *cells(best), ""]]
    for r in together:
        name, low, high = r["members"].split("+")[1], float(r["bits_low"]), float(r["bits_high"])
        gain = f"{low:+.3f} to {high:+.3f}".replace("-", "−")
        table.append([f"+ {name}, {r['layers']} layers", *cells(partners[name, r["layers"]]), *cells(r), gain])
    note = (
        f"PIQA, {best['problems']} problems, {best['dtype']}; the last column is the 95 % interval of the difference "
        f"to {best['members']} alone, in bits per byte. {records.measured_on(rows)}."
    )
    header = ["", "partner: % right", "bits per byte", "together: % right", "bits per byte", "difference"]
    return markdown(header, table, note)
