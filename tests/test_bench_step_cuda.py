"""The GPU benchmark's cases, checks and rows, run on the CPU with small vocabularies."""

from __future__ import annotations

import copy
import csv
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cuda_on_cpu import emulator
from test_nvcc import find_nvcc

from unite_ext import reference
from unite_ext.testing import assert_same_step, make_logits, synthetic_alignment

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"

ORDERED = ("equal", "ascending", "descending", "sparse")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    monkeypatch.delenv("UNITE_TEST_TOKENIZERS", raising=False)
    import bench_step_cuda
    from lib import vocabularies

    vocabularies.load_family.cache_clear()
    monkeypatch.setattr(vocabularies, "SIZES", (900, 1100, 400, 950))
    monkeypatch.setattr(vocabularies, "WIDTHS", (900, 1130, 400, 960))
    monkeypatch.setattr(vocabularies, "SPECIAL_TOKENS", 4)
    monkeypatch.setattr(bench_step_cuda, "MAX_SAMPLES", bench_step_cuda.MIN_SAMPLES)
    monkeypatch.setattr(bench_step_cuda, "WARM_CALLS", 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield bench_step_cuda
    torch.set_num_threads(threads)
    vocabularies.load_family.cache_clear()


class CpuBackend:
    """Calls run at once; a graph is a list of them, whose last result stays where it is."""

    device = "cpu"
    l2_bytes = 2000

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    def warm_up(self):
        pass

    def capture(self, calls):
        calls = list(calls)
        result = calls[-1]()

        def replay():
            for call in calls:
                fresh = call()
            if not self.broken and result is not None:
                for target, value in zip(result, fresh):
                    target.copy_(value)

        return replay, result

    def seconds(self, action, mode):
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    def build_launchers(self):
        return {}


def test_every_kind_of_case_is_checked_and_gives_rows_of_one_shape(bench, tmp_path):
    calls = [call for call in bench.cuda_cases.RIVALS if call[0] != "flashinfer_topk"]
    calls = (*calls, ("unite_step", "eager"))
    cases = [
        bench.Case(1, calls),
        bench.Case(3, members=8, k=20),
        bench.Case(2, members=3, k=64, dtype=torch.float16),
        *[
            bench.Case(1, bench.cuda_cases.SHORT[:2], logits=kind)
            for kind in ("equal", "ascending", "descending", "sparse")
        ],
        bench.Case(2, bench.cuda_cases.MAIN, logits="clustered", dtype=torch.float32),
    ]
    table = tmp_path / "step.csv"
    rows = bench.measure_cuda(backend=CpuBackend(), cases=cases, seconds=0.0, save=lambda rows: append(table, rows))
    assert len(rows) == 2 * (len(calls) + 3 + 3 + 4 * 2 + 4)  # the launchers are missing
    with table.open() as file:
        stored = list(csv.DictReader(file))
    assert [r["call"] for r in stored] == [r["call"] for r in rows]
    assert {r["vocabularies"] for r in rows} == {"synthetic"}
    assert {r["cache"] for r in rows} == {"cold", "warm"}
    assert all(r["p10_us"] <= r["p50_us"] <= r["p90_us"] and r["over_amax"] for r in rows)
    assert all(r["calls"] == r["sets"] > 1 for r in rows if (r["cache"], r["mode"]) == ("cold", "graph"))


def append(table, rows):
    from lib.measure import append_csv

    append_csv(table, rows)


def test_a_wrong_result_is_not_timed_and_fails_the_run(bench, monkeypatch):
    monkeypatch.setattr(bench, "unite_step", lambda logits, a, **o: bench.reference.unite_step(logits, a, k=9))
    saved = []
    with pytest.raises(RuntimeError, match=r"1 went wrong: B=1 .* unite_step graph"):
        bench.measure_cuda(backend=CpuBackend(), cases=[bench.Case(1)], seconds=0.0, save=saved.extend)
    assert {r["call"] for r in saved} == {"amax", "topk"}


def test_what_a_replay_does_not_write_is_noticed(bench):
    with pytest.raises(RuntimeError, match="3 went wrong"):
        bench.measure_cuda(backend=CpuBackend(broken=True), cases=[bench.Case(1)], seconds=0.0)


def test_no_case_starts_after_the_budget(bench, capsys):
    assert bench.measure_cuda(backend=CpuBackend(), quick=True, budget=-1) == []
    assert capsys.readouterr().out.count("out of time") == len(bench.cuda_cases.all_cases(True))


def test_cases(bench):
    """What is measured, in full; the quick ones come first."""
    cases = bench.cuda_cases.all_cases(False)
    assert len(set(cases)) == len(cases)
    assert cases[: len(bench.cuda_cases.all_cases(True))] == bench.cuda_cases.all_cases(True)
    peaked = [c for c in cases if c.logits == "peaked" and ("topk", "graph") in c.calls]
    base = [c for c in peaked if (c.members, c.k, c.dtype) == (2, 10, torch.bfloat16)]
    assert {c.batch for c in base} == {2**n for n in range(10)}
    assert {c.k for c in peaked} == {10, 20, 64, 256}
    assert {c.members for c in peaked} == {2, 3, 8}
    assert {c.dtype for c in peaked} == {torch.float32, torch.bfloat16, torch.float16}
    assert {call for c in cases for call in c.calls} >= {
        *bench.cuda_cases.MAIN,
        *bench.cuda_cases.RIVALS,
        *bench.cuda_cases.COMPILED,
    }


def test_plain_array_holds_what_the_hash_map_holds(bench):
    alignment = bench.load_family(3).alignment
    array = bench.plain_array(alignment)
    for m, size in enumerate(alignment.vocab_sizes):
        stretch = array[m << bench.LOG2_STRETCH :][:size]
        assert torch.equal(stretch[:, 1], alignment.classes[m][:size])
    assert (array[:, 0] >= 0).sum() == (alignment.table[:, 0] >= 0).sum()


@pytest.mark.skipif(emulator.unavailable() is not None, reason=str(emulator.unavailable()))
def test_the_kernel_over_a_plain_array_gives_the_same_step(bench, tmp_path):
    source = (BENCHMARKS / "lib" / "plain_array.cu").read_text()
    macro = re.search(r"#define (UNITE_MAP_SLOT\(.*?\)) \\\n *(.*)", source)
    flag = f"-D{macro[1].replace(' ', '')}={macro[2]}"
    objects = [emulator.compile_object(emulator.HERE / "cuda_emu.cpp", "-O2")]
    objects += [emulator.compile_object(emulator.HERE / "driver.cpp", "-O2", flag)]
    emulator.run(emulator.compiler(), "-shared", *objects, "-o", tmp_path / "driver.so")
    emu = emulator.Emulator(tmp_path / "driver.so")
    for sizes in ((2500, 3100), (900, 700, 1100, 300)):
        alignment = synthetic_alignment(sizes)
        logits = make_logits(alignment, 2, dtype=torch.bfloat16)
        options = {"k": 20, "include": torch.tensor([5, 7])}
        over_array = copy.copy(alignment)
        over_array.table = bench.plain_array(alignment)
        assert_same_step(
            emu.unite_step(logits, over_array, slices=3, **options), reference.unite_step(logits, alignment, **options)
        )


@pytest.mark.skipif(find_nvcc() is None, reason="needs nvcc: neither in CUDA_HOME nor on the PATH")
def test_plain_array_compiles(tmp_path):
    command = [find_nvcc(), "-std=c++17", "-O1", "-arch=sm_90", "-Werror", "all-warnings", "-Xcompiler", "-fPIC,-Wall"]
    command += ["-shared", BENCHMARKS / "lib" / "plain_array.cu", "-o", tmp_path / "plain_array.so"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
