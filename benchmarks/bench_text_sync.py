"""Text sync as a text grows: prose, where borders are close, and unbroken runs, which have none.

    UNITE_TEST_TOKENIZERS=<folder> python benchmarks/bench_text_sync.py      appended to results/text_sync.csv

The time of one `TextSync.append` of four bytes, at several lengths of the text.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from lib.measure import RESULTS, append_csv, machine, percentiles

from unite_ext import Vocabulary
from unite_ext.vocab.text_sync import TextSync

NAMES = ("llama-3", "qwen2", "deepseek-v3", "mistral-7b-v0.3")
LENGTHS = (100, 1_000, 10_000)
TEXTS = {
    "prose": b"The committee, which met in 2024, couldn't agree; nobody was surprised. " * 200,
    "digits": b"3141592653" * 1_100,
    "one word": b"antidisestablishmentarianism" * 400,
}
WINDOW = 50


def main() -> None:
    """Command line."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "text_sync.csv", help="CSV file to append to")
    out = parser.parse_args().out

    folder = os.environ.get("UNITE_TEST_TOKENIZERS")
    if not folder:
        raise SystemExit(f"UNITE_TEST_TOKENIZERS must name a folder with the tokenizers {', '.join(NAMES)}")
    facts, rows = machine(), []
    for name in NAMES:
        vocabulary = Vocabulary.from_tokenizer(AutoTokenizer.from_pretrained(Path(folder) / name))
        for kind, text in TEXTS.items():
            for length in LENGTHS:
                sync = TextSync(vocabulary)
                sync.append(text[:length])
                samples = []
                for at in range(length, length + 4 * WINDOW, 4):
                    start = time.perf_counter()
                    sync.append(text[at : at + 4])
                    samples.append(time.perf_counter() - start)
                rows.append(facts | {"tokenizer": name, "text": kind, "length": length} | percentiles(samples))
                print(f"{name:16} {kind:9} {length:>6} {rows[-1]['p50_us']:>9.1f} µs")
    append_csv(out, rows)


if __name__ == "__main__":
    main()
