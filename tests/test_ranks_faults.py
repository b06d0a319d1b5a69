"""A process that ends, hangs or cannot load its member ends the others in time, with one line that names both."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rank_cases import PROMPTS, save_members
from rank_faults import TIMEOUT, WAYS, ask_for_different_things, command_until_fault, generate_until_fault
from rank_processes import Ranks, command
from typer.testing import CliRunner

from unite_ext.cli import app

_TORCH = ("[rank", "Exception raised from", "frame #", "frame :", "[W", "[E", "<omitting")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_members(tmp_path_factory.mktemp("models"))


def lines(ranks: Ranks, rank: int) -> list[str]:
    """What a rank has said; without what torch writes of a store that has gone with rank 0, which keeps it here."""
    return [line for line in ranks.said(rank).splitlines() if line.strip() and not line.startswith(_TORCH)]


def ended(ranks: Ranks, survivors: list[int], seconds: float) -> list[int | None]:
    try:
        return ranks.wait(seconds, survivors)
    finally:
        ranks.end()


WHEN = {"before a step": (4, 0.0), "in an exchange": (5, 1.5), "between two": (6, 0.0)}
"""Number of the exchange after the loading (a new engine takes two, its first step three), and a delay."""


def check_fault(folders, tmp_path, size: int, culprit: int, when: str, way: str) -> None:
    number, delay = WHEN[when]
    ranks = Ranks(generate_until_fault, size, (folders[:size], culprit, number, way, delay), tmp_path / "ranks")
    survivors = [rank for rank in range(size) if rank != culprit]
    assert ended(ranks, survivors, 90) == [3] * len(survivors), ranks.said(survivors[0])
    for rank in survivors:
        expected = f"RankError: rank {culprit} ({folders[culprit]}) has ended, or does not answer"
        assert lines(ranks, rank)[-1] == expected


def test_a_stopped_process_ends_the_others(folders, tmp_path):
    """SIGSTOP: its connections stay open, and nothing comes."""
    check_fault(folders, tmp_path, 2, 1, "in an exchange", "stopped")


def test_a_killed_process_ends_two_others(folders, tmp_path):
    check_fault(folders, tmp_path, 3, 1, "between two", "killed")


@pytest.mark.full
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("culprit", [0, 1, 2])
def test_every_process_is_missed(folders, tmp_path, culprit, when, way):
    check_fault(folders, tmp_path, 3, culprit, when, way)


def test_processes_that_are_asked_for_different_things_say_so(folders, tmp_path):
    ranks = Ranks(ask_for_different_things, 2, (folders[:2],), tmp_path / "ranks")
    assert ended(ranks, [0, 1], 90) == [3, 3]
    complaint = "was asked for something else than rank 0: every process must make the same calls"
    for rank in range(2):
        assert f"rank 1 ({folders[1]})" in lines(ranks, rank)[-1]
        assert complaint in lines(ranks, rank)[-1]


def arguments_of(folders, output: Path, *more: str) -> list[str]:
    models = [part for folder in folders for part in ("--model", str(folder))]
    prompts = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    return [
        "generate", *models, *prompts, "--output", str(output), "--batch-size", "1", "--max-new-tokens", "6",
        "--rank-timeout", str(TIMEOUT), *more,
    ]  # fmt: skip


def test_rows_are_kept_and_a_run_goes_on(folders, tmp_path):
    """Rank 1 is killed in the middle: rank 0 says whose end it was, and --resume does the rest."""
    output, whole = tmp_path / "rows.jsonl", tmp_path / "whole.jsonl"
    arguments = arguments_of(folders[:2], output)
    ranks = Ranks(command_until_fault, 2, (arguments, 1, 60, "killed"), tmp_path / "first")
    assert ended(ranks, [0], 90) == [1], ranks.said(0)
    said = lines(ranks, 0)
    assert said == [f"error: rank 1 ({folders[1]}) has ended, or does not answer"]
    kept = output.read_text().splitlines()
    assert 1 <= len(kept) < len(PROMPTS)
    again = Ranks(command, 2, ([*arguments, "--resume"],), tmp_path / "second")
    assert ended(again, [0, 1], 90) == [0, 0], again.said(0)
    assert lines(again, 1) == []
    result = CliRunner().invoke(app, arguments_of(folders[:2], whole))
    assert result.exit_code == 0, result.output
    assert sorted(output.read_text().splitlines()) == sorted(whole.read_text().splitlines())
    assert output.read_text().splitlines()[: len(kept)] == kept


def test_the_others_say_that_rank_0_is_gone(folders, tmp_path):
    arguments = arguments_of(folders[:2], tmp_path / "rows.jsonl")
    ranks = Ranks(command_until_fault, 2, (arguments, 0, 30, "killed"), tmp_path / "ranks")
    assert ended(ranks, [1], 90) == [1], ranks.said(1)
    assert lines(ranks, 1) == [f"error: rank 0 ({folders[0]}) has ended, or does not answer"]


def test_a_member_that_cannot_be_loaded_is_named(folders, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folders[1], broken)
    (broken / "model.safetensors").unlink()
    arguments = arguments_of([folders[0], broken], tmp_path / "rows.jsonl")
    ranks = Ranks(command, 2, (arguments,), tmp_path / "ranks")
    assert ended(ranks, [0, 1], 90) == [1, 1]
    assert lines(ranks, 0)[-1].startswith(f"error: rank 1 ({broken}) could not load its models: {broken} cannot be")
    assert lines(ranks, 1)[-1].startswith(f"error: {broken} cannot be loaded: ")
    assert not (tmp_path / "rows.jsonl").exists()


def child_of(process: subprocess.Popen, rank: int) -> int:
    """The process of a rank that a launcher has started."""
    for entry in Path("/proc").iterdir():
        try:
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == str(process.pid) and f"RANK={rank}".encode() in environment:
            return int(entry.name)
    raise AssertionError(f"there is no rank {rank}")


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("culprit", [0, 1])
def test_torchrun(folders, tmp_path, culprit, way):
    """The launcher stops the others as soon as one process has ended: they still say first whose end it was."""
    output = tmp_path / "rows.jsonl"
    arguments = arguments_of(folders[:2], output, "--max-new-tokens", "4000", "--min-new-tokens", "200")
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "unite_ext",
    ]
    said = tmp_path / "said"
    with said.open("w") as file:
        process = subprocess.Popen([*launcher, "-m", "unite_ext", *arguments], cwd=tmp_path, stdout=file, stderr=file)
    try:
        end = time.monotonic() + 300
        while not (output.exists() and output.stat().st_size) and time.monotonic() < end:
            time.sleep(0.1)
        started = time.monotonic()
        os.kill(child_of(process, culprit), WAYS[way])
        assert process.wait(120) != 0
        took = time.monotonic() - started
    finally:
        process.kill()
    complaints = [line for line in said.read_text().splitlines() if line.startswith("error:")]
    assert complaints == [f"error: rank {culprit} ({folders[culprit]}) has ended, or does not answer"]
    assert took < 60  # the launcher waits 30 seconds for a process that is stopped
    assert output.read_text().endswith("\n")


@pytest.mark.parametrize("command_line", [["serve", "--demo"], ["chat", "--demo"]])
def test_commands_of_one_process_refuse_several(monkeypatch, command_line):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = signal.getsignal(signal.SIGTERM)
    try:
        result = CliRunner().invoke(app, command_line)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert result.exit_code == 1
    assert f"unite {command_line[0]}" in result.output
    assert "must run in one process" in result.output


def test_rows_say_nothing_of_ranks(folders, tmp_path):
    """The description of a run is that of one process, which may go on with it."""
    output = tmp_path / "rows.jsonl"
    result = CliRunner().invoke(app, arguments_of(folders[:2], output))
    assert result.exit_code == 0
    described = json.loads((tmp_path / "rows.jsonl.run.json").read_text())
    assert not [name for name in described["options"] if "rank" in name]
