"""Measure the demo's models: `python tools/demo_models/measure_models.py WHAT`, from the repository's root.

`dev` compares what is decided on development problems. `gap` combines the best model with checkpoints of lower
accuracy, and `plot` draws the result. `test` runs the test and appends to its file. `training` collects what training
reported. All numbers of docs/demo.md come from the files that this writes under benchmarks/results.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, permutations
from pathlib import Path

import torch
from recipes import RECIPES

from unite_ext.demo import COMPARABLE, MODELS, WEAK, load_member, model_folder
from unite_ext.demo.problems import KINDS, Problem, problem_set
from unite_ext.demo.run import DEV_SEED, DEV_SIZE, TEST_SEED, TEST_SIZE, TEST_SPLIT, TOP_K, Result, lineups, work
from unite_ext.members.transformers import Member

logger = logging.getLogger(__name__)

RESULTS = Path("benchmarks/results")
PLOT = Path("docs/figures/demo_gap.png")


def write(name: str, rows: Iterable[Mapping[str, object]], *, append: bool = False) -> None:
    """Write rows to a CSV file in the results folder."""
    rows = list(rows)
    path = RESULTS / f"demo_{name}.csv"
    new = not (append and path.exists())
    with path.open("w" if new else "a", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
    logger.info("%s: %d rows", path, len(rows))


def _logged(result: Result, note: str = "") -> Result:
    logger.info("%s%s: %.1f %%", result.name, note, 100 * result.accuracy)
    return result


def by_kind(result: Result, problems: Sequence[Problem]) -> dict[str, float]:
    """Accuracy in percent for every kind of problem."""
    right = {kind: [ok for ok, p in zip(result.right, problems) if p.kind == kind] for kind in KINDS}
    return {kind: round(100 * sum(oks) / len(oks), 1) for kind, oks in right.items()}


def confusion(first: Result, second: Result) -> dict[str, object]:
    """Count how often both, one or none of two models are right, and how often they give the same wrong text."""
    pairs = list(zip(first.right, second.right))
    wrong = [a == b for a, b, (x, y) in zip(first.texts, second.texts, pairs) if not x and not y]
    return {
        "first": first.name,
        "second": second.name,
        "both_right": sum(a and b for a, b in pairs),
        "only_first": sum(a and not b for a, b in pairs),
        "only_second": sum(b and not a for a, b in pairs),
        "both_wrong": len(wrong),
        "same_text_wrong": sum(wrong),
    }


def measure_dev(members: Mapping[str, Member]) -> None:
    """Measure each model, every choice of primary, several k, every kind, and the confusion between models."""
    problems = problem_set("dev", DEV_SEED, DEV_SIZE)
    wanted = [names for names in lineups() if len(names) == 1 or WEAK in names]
    wanted += [order for pair in combinations(COMPARABLE, 2) for order in permutations(pair)]
    wanted += [(primary, *(n for n in COMPARABLE if n != primary)) for primary in COMPARABLE]
    results = {names: _logged(work([members[n] for n in names], problems)) for names in wanted}
    write("dev", (r.to_dict() for r in results.values()))
    shown = [(name,) for name in MODELS] + [COMPARABLE]
    write("kinds", ({"members": results[n].name, **by_kind(results[n], problems)} for n in shown))
    write("confusion", (confusion(results[a,], results[b,]) for a, b in combinations(MODELS, 2)))
    three = [members[n] for n in COMPARABLE]
    write("k", ({"k": k, **_logged(work(three, problems, k=k), f" k={k}").to_dict()} for k in (1, 2, 3, 5, 10, 20)))


def measure_test(members: Mapping[str, Member]) -> None:
    """Run the test and append its results to those of earlier tests."""
    problems = problem_set(TEST_SPLIT, TEST_SEED, TEST_SIZE)
    results = [_logged(work([members[n] for n in names], problems)) for names in lineups()]
    setting = {"split": TEST_SPLIT, "seed": TEST_SEED, "k": TOP_K}
    write("test", ({**setting, **r.to_dict()} for r in results), append=True)


def measure_gap(members: Mapping[str, Member], checkpoints: Path) -> None:
    """Measure the best model with each of the others and their checkpoints, which differ in accuracy."""
    problems = problem_set("dev", DEV_SEED, DEV_SIZE)
    best = members[COMPARABLE[0]]
    alone = _logged(work([best], problems))
    rows = []
    for name in MODELS[1:]:
        folders = {float(p.name.rpartition("-")[2]): p for p in sorted(checkpoints.glob(f"{name}-*"))}
        partners = {share: load_member(name, folder) for share, folder in folders.items()}
        for share, partner in {**partners, 1.0: members[name]}.items():
            own, pair = work([partner], problems), _logged(work([best, partner], problems), f" at {share:.2f}")
            rows.append(
                {
                    "primary": best.name,
                    "partner": name,
                    "share_of_training": share,
                    "problems": len(problems),
                    "primary_accuracy": round(100 * alone.accuracy, 2),
                    "partner_accuracy": round(100 * own.accuracy, 2),
                    "together_accuracy": round(100 * pair.accuracy, 2),
                    "gap": round(100 * (alone.accuracy - own.accuracy), 2),
                    "gain": round(100 * (pair.accuracy - alone.accuracy), 2),
                    "won": sum(b and not a for a, b in zip(alone.right, pair.right)),
                    "lost": sum(a and not b for a, b in zip(alone.right, pair.right)),
                }
            )
    write("gap", rows)


def collect_training(folder: Path) -> None:
    """Collect what training wrote beside each model in `folder`."""
    rows = []
    for name in MODELS:
        facts = json.loads((folder / name / "training.json").read_text())
        kilobytes = sum(f.stat().st_size for f in (folder / name).iterdir()) / 1000
        rows.append({"model": name, "tokenizer": RECIPES[name].tokenizer, **facts, "kilobytes": round(kilobytes)})
    write("training", rows)


def plot_gap() -> None:
    """Draw the gain of an ensemble of two over its primary, by the gap between the two."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with (RESULTS / "demo_gap.csv").open() as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(figsize=(6.4, 4), dpi=120)
    for name, marker in zip(MODELS[1:], "osD"):
        mine = [r for r in rows if r["partner"] == name]
        gaps, gains = ([float(r[column]) for r in mine] for column in ("gap", "gain"))
        axes.plot(gaps, gains, marker, ls=":" if len(mine) > 1 else "", label=f"{name} and its checkpoints")
    axes.axhline(0, color="0.4", lw=1)
    axes.axvline(10, color="0.7", lw=1, ls="--", label="10 points, the paper's Takeaway I")
    axes.set_xlabel(f"skill gap: {COMPARABLE[0]} alone − partner alone (points)")
    axes.set_ylabel(f"gain over {COMPARABLE[0]} alone (points)")
    axes.set_title(f"{COMPARABLE[0]} with partners of growing skill, {rows[0]['problems']} development problems")
    axes.legend()
    figure.tight_layout()
    figure.savefig(PLOT)
    logger.info("%s", PLOT)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python tools/demo_models/measure_models.py", description=(__doc__ or "").partition("\n\n")[2]
    )
    parser.add_argument("what", nargs="+", choices=("training", "dev", "gap", "plot", "test"))
    parser.add_argument("--models", type=Path, help="folder of the models; the package's by default")
    parser.add_argument("--checkpoints", type=Path, help="folder of the checkpoints, for gap")
    options = parser.parse_args(arguments)
    if "gap" in options.what and options.checkpoints is None:
        parser.error("gap needs --checkpoints, the folder that training wrote them to")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # models this small gain nothing from a second thread
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    folder = options.models or model_folder(MODELS[0]).parent
    members = {}
    if {"dev", "gap", "test"} & set(options.what):
        members = {name: load_member(name, folder / name) for name in MODELS}
    for what in options.what:
        if what == "training":
            collect_training(folder)
        elif what == "plot":
            plot_gap()
        elif what == "gap":
            measure_gap(members, options.checkpoints)
        else:
            {"dev": measure_dev, "test": measure_test}[what](members)


if __name__ == "__main__":
    main()
