"""Building an alignment of Llama-3, Qwen2 and Mistral-v0.3, and reading it from the cache.

    UNITE_TEST_TOKENIZERS=<folder> pytest benchmarks/bench_alignment.py --benchmark-columns=min,median,max
    UNITE_TEST_TOKENIZERS=<folder> python benchmarks/bench_alignment.py     appended to results/alignment.csv

Targets on two cores, tokenizers already loaded: 3 s cold, 0.5 s from the cache including the fingerprints, 40 MB on
the device. `extra_info` of the JSON output (--benchmark-json) holds the sizes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import pytest
from lib.measure import RESULTS, append_csv, machine, percentiles

from unite_ext.vocab.alignment import VocabAlignment
from unite_ext.vocab.vocabulary import OpenedTokenizer, Vocabulary

NAMES = ("llama-3", "qwen2", "mistral-7b-v0.3")
FOLDER = os.environ.get("UNITE_TEST_TOKENIZERS")

pytestmark = pytest.mark.skipif(not FOLDER, reason="UNITE_TEST_TOKENIZERS does not name a folder of real tokenizers")


def load_tokenizers() -> list:
    from transformers import AutoTokenizer

    return [AutoTokenizer.from_pretrained(Path(FOLDER) / name) for name in NAMES]


@pytest.fixture(scope="module")
def tokenizers():
    return load_tokenizers()


def device_bytes(alignment: VocabAlignment) -> int:
    return sum(t.numel() * t.element_size() for t in (alignment.table, alignment.class_ids, alignment.eligible))


def test_cold_build(benchmark, tokenizers):
    alignment = benchmark.pedantic(
        VocabAlignment.from_tokenizers, (tokenizers,), {"cache": False}, rounds=5, warmup_rounds=1
    )
    benchmark.extra_info["device_mb"] = device_bytes(alignment) / 1e6
    benchmark.extra_info["classes"] = alignment.num_classes
    assert device_bytes(alignment) < 40e6


def test_from_cache(benchmark, tokenizers, tmp_path):
    VocabAlignment.from_tokenizers(tokenizers, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    benchmark.extra_info["file_mb"] = file.stat().st_size / 1e6
    benchmark.pedantic(VocabAlignment.from_tokenizers, (tokenizers,), {"cache": tmp_path}, rounds=10, warmup_rounds=1)


def test_fingerprints(benchmark, tokenizers):
    def fingerprints():
        return [OpenedTokenizer(t, eos_token_ids=None, lossy=False, name="t").fingerprint for t in tokenizers]

    benchmark.pedantic(fingerprints, rounds=10, warmup_rounds=1)


def test_load_file(benchmark, tokenizers, tmp_path):
    VocabAlignment.from_tokenizers(tokenizers, cache=False).save(tmp_path / "alignment")
    benchmark.pedantic(VocabAlignment.load, (tmp_path / "alignment",), rounds=10, warmup_rounds=1)


@pytest.mark.parametrize("member", range(3), ids=NAMES)
def test_one_short_continuation(benchmark, tokenizers, member):
    vocabulary = Vocabulary.from_tokenizer(tokenizers[member])
    benchmark(vocabulary.encode_continuation, b" The answer is 42.")


@pytest.mark.parametrize("member", range(3), ids=NAMES)
def test_batch_of_continuations(benchmark, tokenizers, member):
    """1,024 texts of about 20 bytes."""
    vocabulary = Vocabulary.from_tokenizer(tokenizers[member])
    data = [f" The answer is {i} James.".encode() for i in range(1024)]
    benchmark(vocabulary.encode_continuation_batch, data)


def main() -> None:
    """Measure a cold build and a read from the cache, and append both to the CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "alignment.csv", help="CSV file to append to")
    out = parser.parse_args().out
    if not FOLDER:
        raise SystemExit(f"UNITE_TEST_TOKENIZERS must name a folder with the tokenizers {', '.join(NAMES)}")
    tokenizers, facts, rows = load_tokenizers(), machine(), []
    with tempfile.TemporaryDirectory() as folder:
        for call, cache, rounds in (("build", False, 5), ("from the cache, fingerprints included", folder, 11)):
            samples = []
            for _ in range(rounds + 1):  # the first fills caches
                start = time.perf_counter()
                alignment = VocabAlignment.from_tokenizers(tokenizers, cache=cache, progress=False)
                samples.append(time.perf_counter() - start)
            size = f"{device_bytes(alignment) / 1e6:.1f} MB on the device, {alignment.num_classes:,} classes"
            rows.append(facts | {"call": call} | percentiles(samples[1:]) | {"note": size})
            print(call, rows[-1])
    append_csv(out, rows)


if __name__ == "__main__":
    main()
