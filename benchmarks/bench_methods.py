"""Every method on the demo's models: the figures of docs/methods.md.

python benchmarks/bench_methods.py rates     DeePEn's rate, on development problems
python benchmarks/bench_methods.py test      all methods, on the test problems
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from lib.measure import append_csv, machine
from transformers.utils import logging as transformers_logging

from unite_ext.demo import MODELS, load_member
from unite_ext.demo.methods import measure_rates, run
from unite_ext.demo.run import TEST_SEED, TEST_SPLIT

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rates", "test"))
    what = parser.parse_args().what
    logging.getLogger("unite_ext").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)  # models this small gain nothing from a second thread
    members = {name: load_member(name) for name in MODELS}
    if what == "rates":
        append_csv(RESULTS / "demo_methods_rates.csv", [{**row, **machine()} for row in measure_rates(members)])
        return
    setting = {"split": TEST_SPLIT, "seed": TEST_SEED}
    append_csv(RESULTS / "demo_methods.csv", [{**setting, **m.to_dict(), **machine()} for m in run(members)])


if __name__ == "__main__":
    main()
