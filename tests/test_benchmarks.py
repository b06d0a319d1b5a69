"""The sweep, the figures and the comparison of measurements, on small vocabularies and made-up times."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from test_bench_step_cuda import CpuBackend
from test_bench_step_cuda import bench as cuda_bench  # noqa: F401 (a fixture)

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
RESULTS = BENCHMARKS / "results"
FACTS = {
    "date": "2026-01-01", "commit": "aaaaaaa", "machine": "box, 2 threads", "driver": "", "cuda": "",
    "torch": "2.10.0", "python": "3.11.7",
}  # fmt: skip
LATER = FACTS | {"date": "2026-01-02", "commit": "bbbbbbb"}


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


def write(path: Path, *rows: dict) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def timed(facts: dict, p50: float, spread: float = 0.02, **key) -> dict:
    return facts | key | {"p10_us": p50 * (1 - spread), "p50_us": p50, "p90_us": p50 * (1 + spread)}


SCRIPTS = [path for folder in (".", "lib", "real_models") for path in sorted((BENCHMARKS / folder).glob("*.py"))]


@pytest.mark.parametrize("path", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_every_script_finds_what_it_imports(path, monkeypatch):
    if path.stem == "plot":
        pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "path", [*sys.path])  # some add folders
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    monkeypatch.setitem(sys.modules, spec.name, importlib.util.module_from_spec(spec))  # dataclasses look there
    spec.loader.exec_module(sys.modules[spec.name])


def test_the_readme_names_every_script():
    page = (BENCHMARKS / "README.md").read_text()
    for path in SCRIPTS:
        if path.stem not in ("__init__", "conftest"):
            assert f"`{path.relative_to(BENCHMARKS)}`" in page


# The sweep


@pytest.fixture
def sweep(monkeypatch):
    import bench_sweep
    from lib import vocabularies

    monkeypatch.setattr(vocabularies, "SPECIAL_TOKENS", 4)
    monkeypatch.setattr(bench_sweep, "WIDTHS", (2000, 2400))
    monkeypatch.setattr(bench_sweep, "PADDING", 7)
    monkeypatch.setattr(bench_sweep, "VOCABULARIES", (500, 600, 700, 1000))
    monkeypatch.setattr(bench_sweep, "KS", (1, 10, 20, 30))
    monkeypatch.setattr(bench_sweep, "REFERENCE_MAX_LOGITS", 8 * 4400)
    bench_sweep.load_family.cache_clear()
    yield bench_sweep
    bench_sweep.load_family.cache_clear()


def run_sweep(sweep, monkeypatch, out: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_sweep", "--quick", "--seconds", "0.0001", "--out", str(out)])
    sweep.main()


def test_sweep_varies_one_axis_at_a_time(sweep, monkeypatch, tmp_path):
    run_sweep(sweep, monkeypatch, tmp_path / "sweep.csv")
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(0 < float(r["p10_us"]) <= float(r["p50_us"]) <= float(r["p90_us"]) for r in rows)
    axes = ("batch", "vocabulary", "members", "k")
    shapes = {axis: {tuple(r[a] for a in axes) for r in rows if r["axis"] == axis} for axis in axes}
    assert shapes["batch"] == {("1", "2200", "2", "10"), ("8", "2200", "2", "10"), ("64", "2200", "2", "10")}
    assert shapes["vocabulary"] == {(b, v, "2", "10") for b in ("1", "8") for v in ("500", "1000")}
    assert shapes["members"] == {
        (b, v, m, "10") for b in "18" for v, m in (("2000", "1"), ("2200", "4"), ("2171", "7"))
    }
    assert shapes["k"] == {(b, "2200", "2", k) for b in "18" for k in ("1", "30")}
    for axis, batch in (("batch", "8"), ("batch", "64")):
        calls = [r["call"] for r in rows if r["axis"] == axis and r["batch"] == batch]
        assert calls == ["amax", "unite_step", "topk", *["reference"] * (batch == "8"), "dictionary"]


def test_sweep_covers_what_the_kernels_take(sweep):
    cases = sweep.all_cases()
    assert len(set(cases)) == len(cases)
    assert {len(case.widths) for case in cases} == set(range(1, 9))
    assert {case.batch for case in cases if case.axis == "batch"} == {2**n for n in range(7)}
    assert set(sweep.all_cases(quick=True)) < set(cases)


@pytest.mark.parametrize("wrong", ["unite_step", "dictionary"])
def test_sweep_times_nothing_that_is_wrong(sweep, monkeypatch, tmp_path, wrong):
    from lib import step_calls

    real = step_calls.unite_step
    if wrong == "unite_step":
        monkeypatch.setattr(step_calls, "unite_step", lambda logits, a, **o: real([-x for x in logits], a, **o))
    else:
        monkeypatch.setattr(step_calls.DictionaryStep, "__call__", lambda self, x, k: [[0, 0] for _ in x[0]])
    with pytest.raises(AssertionError, match="disagree"):
        run_sweep(sweep, monkeypatch, tmp_path / "sweep.csv")
    assert not (tmp_path / "sweep.csv").exists()


def test_whole_suite_needs_the_tokenizers_first(tmp_path):
    environment = os.environ | {"UNITE_TEST_TOKENIZERS": ""}
    command = [BENCHMARKS / "cpu.sh", tmp_path / "results"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "UNITE_TEST_TOKENIZERS must name a folder" in done.stderr
    assert not (tmp_path / "results").exists()


# Figures


@pytest.fixture
def plot():
    pytest.importorskip("matplotlib")
    from lib import plot

    return plot


def sweep_rows(facts: dict, ours: float = 20.0) -> list[dict]:
    shape = {"batch": 8, "vocabulary": 140160, "members": 2, "k": 10, "dtype": "float32"}
    values = {"batch": (1, 8, 64), "vocabulary": (8192, 131072), "members": (1, 2, 8), "k": (1, 10, 256)}
    times = {"amax": 10.0, "unite_step": ours, "topk": 300.0, "reference": 20000.0, "dictionary": 400.0}
    return [
        timed(facts, time * (1 + i), axis=axis, **(shape | {axis: value}), call=call)
        for axis, points in values.items()
        for i, value in enumerate(points)
        for call, time in times.items()
    ]


def decode_rows(facts: dict) -> list[dict]:
    shapes = itertools.product((2, 3), (1, 8), (1, 128))
    return [timed(facts, 400.0 * b, members=m, batch=b, length=n, call="outside forwards") for m, b, n in shapes]


def texts(figure: Path) -> set[str]:
    return {"".join(element.itertext()) for element in ElementTree.parse(figure).iter() if element.tag.endswith("text")}


@pytest.fixture
def results(tmp_path) -> Path:
    """A folder with what the CPU benchmarks write."""
    folder = tmp_path / "results"
    folder.mkdir()
    write(folder / "sweep_cpu.csv", *sweep_rows(FACTS))
    write(folder / "decode_cpu.csv", *decode_rows(FACTS))
    return folder


def test_all_figures_are_drawn_alike_each_time(plot, results, tmp_path, cuda_bench):  # noqa: F811
    case, calls = cuda_bench.Case, (("unite_step", "graph"), ("amax", "graph"), ("unite_step", "eager"))
    cases = [case(1, calls), case(64, calls), case(64, calls, k=20), case(64, calls, members=3)]
    write(results / "step_cuda.csv", *cuda_bench.measure_cuda(backend=CpuBackend(), cases=cases, seconds=0.0))
    shutil.copy(results / "decode_cpu.csv", results / "decode_cuda.csv")
    first, second = (plot.draw(results, tmp_path / folder) for folder in ("first", "second"))
    names = ["sweep_cpu.svg", "step_cuda.svg", "decode_cpu.svg", "decode_cuda.svg"]
    assert [path.name for path in first] == names
    for one, other in zip(first, second):
        assert one.read_bytes() == other.read_bytes()
        assert one.stat().st_size < 150_000
    ours, rivals = {"unite_step", "floor (amax)"}, {"torch.topk", "reference", "dictionaries"}
    panels = {"Batch", "Members, at B = 8", "Vocabulary, at B = 8", "Proposals, at B = 8"}
    assert texts(first[0]) >= ours | rivals | panels
    assert texts(first[1]) >= ours | {"Batch", "Members, at B = 64", "Proposals, at B = 64"}
    assert not texts(first[1]) & rivals
    for path in first[2:]:
        assert texts(path) >= {"2 members", "3 members", "B = 1", "B = 8", "128"}


def test_figures_of_the_committed_results(plot, tmp_path):
    drawn = {path.stem for path in plot.draw(RESULTS, tmp_path)}
    assert drawn == {name for name in plot.FIGURES if (RESULTS / f"{name}.csv").exists()}
    assert "decode_cpu" in drawn


def test_figures_show_the_newest_measurement(plot, results, tmp_path):
    write(results / "sweep_cpu.csv", *sweep_rows(FACTS), *sweep_rows(LATER, ours=50.0))
    newest, older = (plot.draw(results, tmp_path / (commit or "new"), commit)[0] for commit in ("", "aaa"))
    assert any("2026-01-02, commit bbbbbbb" in text for text in texts(newest))
    assert any("2026-01-01, commit aaaaaaa" in text for text in texts(older))
    write(results / "sweep_cpu.csv", *sweep_rows(LATER, ours=60.0))
    (slower, *_) = plot.draw(results, tmp_path / "slower")
    assert slower.read_bytes() != newest.read_bytes()


def test_missing_results_are_named(plot, results, tmp_path, capsys, monkeypatch):
    (results / "sweep_cpu.csv").unlink()
    assert [path.name for path in plot.draw(results, tmp_path)] == ["decode_cpu.svg"]
    assert f"sweep_cpu.svg: not drawn, there is no {results / 'sweep_cpu.csv'}" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["plot", "--results", str(tmp_path / "nowhere"), "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="no figure was drawn"):
        plot.main()


def test_names_are_moved_apart_and_stay_in_order(plot):
    heights = [0.1, 0.5, 0.51, 0.52, 0.9]
    spread = plot.spread(heights, 0.08)
    assert spread == pytest.approx([0.1, 0.43, 0.51, 0.59, 0.9])
    assert plot.spread(spread, 0.08) == pytest.approx(spread)
    for values in torch.rand(50, 6, generator=torch.Generator().manual_seed(0)).sort(dim=1).values.tolist():
        moved = plot.spread(values, 0.1)
        assert all(b - a > 0.1 - 1e-9 for a, b in itertools.pairwise(moved))
        assert sum(moved) == pytest.approx(sum(values))


# Comparing measurements


def compare(*arguments) -> int:
    from lib import compare

    return compare.main([str(argument) for argument in arguments])


def verdicts(printed: str) -> dict[str, str]:
    """Verdict by the first column, of a table whose rows differ in `call` only."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if line.startswith("│")]
    return {row[0]: row[-1] for row in cells}


@pytest.fixture
def two(tmp_path) -> Path:
    """A file with two measurements, of every kind of change."""
    before = {"steady": 100, "slow": 100, "fast": 100, "noisy": 100, "once": 100, "little": 100}
    after = {"steady": 101, "slow": 130, "fast": 70, "noisy": 130, "once": 130, "little": 108}
    spreads = {"noisy": 0.2, "once": 0.0, "little": 0.001}
    rows = [
        timed(facts, time, spreads.get(call, 0.02), batch=1, call=call)
        for facts, times in ((FACTS, before), (LATER, after))
        for call, time in times.items()
    ]
    return write(tmp_path / "two.csv", *rows)


def test_compare_tells_changes_from_noise(two, capsys):
    assert compare(two) == 1
    printed = capsys.readouterr().out
    assert verdicts(printed) == {
        "steady": "same", "slow": "slower", "fast": "faster", "noisy": "noise", "once": "one sample", "little": "same",
    }  # fmt: skip
    assert "old: box, 2 threads, torch 2.10.0, 2026-01-01, commit aaaaaaa" in printed
    assert "warning" not in printed
    assert "only in" not in printed
    assert "6 rows compared: 1 faster, 1 noise, 1 one sample, 2 same, 1 slower" in printed


def test_compare_finds_nothing_slower(two, tmp_path, capsys):
    assert compare(two, "--threshold", "1.4") == 0
    assert compare(f"{two}@bbb", f"{two}@aaa", "--threshold", "1.35") == 1  # the fast one, read backwards
    assert verdicts(capsys.readouterr().out)["fast"] == "slower"
    improved = write(tmp_path / "new.csv", timed(LATER, 60, batch=1, call="slow"))
    assert compare(two, improved) == 0
    assert "1 rows compared: 1 faster" in capsys.readouterr().out


def test_compare_names_rows_of_one_side_and_other_machines(tmp_path, capsys):
    old = write(tmp_path / "old.csv", *(timed(FACTS, 10, batch=b, call="step") for b in (1, 2, 4)))
    elsewhere = LATER | {"machine": "other box", "torch": "2.11.0"}
    new = write(tmp_path / "new.csv", *(timed(elsewhere, 10, batch=b, call="step") for b in (1, 2, 8)))
    assert compare(old, new) == 0
    printed = capsys.readouterr().out
    assert "warning: machine differs: box, 2 threads -> other box" in printed
    assert "warning: torch differs: 2.10.0 -> 2.11.0" in printed
    assert "only in old: batch=4, call=step" in printed
    assert "only in new: batch=8, call=step" in printed
    assert "2 rows compared" in printed


def test_compare_refuses_what_cannot_be_compared(two, tmp_path, capsys):
    one = write(tmp_path / "one.csv", timed(FACTS, 10, batch=2, call="slow"))
    other = write(tmp_path / "other.csv", timed(FACTS, 10, length=2, call="slow"))
    broken = write(tmp_path / "broken.csv", timed(FACTS, 10, batch=1, call="slow") | {"p50_us": "fast"})
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "short.csv").write_text(one.read_text() + "2026-01-01,aaaaaaa\n")
    for arguments, words in (
        ([two, one], "no row of one measurement has a counterpart in the other"),
        ([two, other], "only one of the two has the column batch, length: these are different benchmarks"),
        ([two, broken], "no times in the row batch=1, call=slow"),
        ([one], "holds one measurement only"),
        ([two, f"{two}@ccc"], "nothing was measured at commit ccc, only at aaaaaaa, bbbbbbb"),
        ([tmp_path / "nowhere.csv"], "nowhere.csv: No such file"),
        ([tmp_path / "empty.csv"], "empty.csv: no rows"),
        ([tmp_path / "short.csv"], "short.csv: line 3 is not as long as the header"),
        ([RESULTS / "demo_methods.csv"] * 2, "no column p10_us, p50_us, p90_us"),
        ([RESULTS / "demo_dev.csv"] * 2, "no column date, commit"),
    ):
        assert compare(*arguments) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["alignment", "decode_cpu", "step_cpu", "text_sync"])
def test_committed_measurements_equal_themselves(name, capsys):
    """What tells rows apart is complete: nothing but a row's own counterpart has its key."""
    from lib import records

    path = RESULTS / f"{name}.csv"
    rows = records.pick_measurement(records.read_rows(path))
    assert compare(path, path) == 0
    assert f"{len(rows)} rows compared: {len(rows)} same" in capsys.readouterr().out


def test_facts_are_those_that_are_recorded():
    from lib import measure, records

    assert tuple(measure.machine()) == records.FACTS
