"""Results of `unite eval` with the real models, as rows of a CSV file.

    unite eval --model FOLDER/qwen25-coder --model FOLDER/smollm2 --tasks unite_gsm8k --limit 100 --output RESULTS ...
    python benchmarks/real_models/collect.py RESULTS --commit COMMIT    (results/real_models_eval.csv)

One row per ensemble, task and metric; the commit is that of the code which evaluated.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # to find lib

from lib.measure import RESULTS, append_csv, machine
from lib.real_models import FOLDERS

from unite_ext import StepOptions

STEP = ("k", "score", "duplicates", "combine", "boundaries", "dtype")
METRICS = ("exact_match", "acc", "acc_norm")


def rows_of(file: Path) -> list[dict[str, object]]:
    """The rows of one results file of lm-evaluation-harness."""
    found = json.loads(file.read_text(encoding="utf-8"))
    names = {folder: name for name, folder in FOLDERS.items()}
    members = [Path(member).name for member in found["config"]["members"]]
    given = found["config"]["model_args"]
    head = {"members": "+".join(names.get(member, member) for member in members)}
    head |= {name: given.get(name) or getattr(StepOptions(), name, "") for name in STEP}
    return [
        {
            "task": task, **head, "metric": metric, "problems": found["n-samples"][task]["effective"],
            "value": round(values[f"{metric},none"], 4), "stderr": round(values[f"{metric}_stderr,none"], 4),
        }
        for task, values in found["results"].items()
        for metric in METRICS
        if f"{metric},none" in values
    ]  # fmt: skip


def main() -> None:
    """Collect all results below the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--commit", required=True, help="of the code that evaluated")
    parser.add_argument("--out", type=Path, default=RESULTS / "real_models_eval.csv")
    arguments = parser.parse_args()
    files = sorted(file for folder in arguments.folders for file in folder.rglob("results_*.json"))
    if not files:
        parser.error(f"no results_*.json below {', '.join(map(str, arguments.folders))}")
    facts = machine() | {"commit": arguments.commit}
    for file in files:
        append_csv(arguments.out, [facts | row for row in rows_of(file)])
        print(file)


if __name__ == "__main__":
    main()
