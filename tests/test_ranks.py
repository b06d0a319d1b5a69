"""Members on several ranks give the bits of one process, whatever is asked, and exchange little."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from rank_cases import CASES, LED, OF_THREE, load, run_all, run_rank, save_members
from rank_processes import Ranks
from typer.testing import CliRunner

from unite_ext import UniteEnsemble
from unite_ext.cli import app
from unite_ext.decoding.evaluation import MemberOutOfMemory
from unite_ext.decoding.ranks import RankExchange

RANKS = ((2, 2), (3, 3), (2, 3))  # processes, members


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_members(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def found(folders, tmp_path_factory):
    """By processes and members what every rank said, and by members what one process says."""
    alone = {2: run_all(load(folders[:2]), CASES), 3: run_all(load(folders), OF_THREE)}
    said = {}
    for size, members in RANKS:
        out = tmp_path_factory.mktemp(f"ranks-{size}-{members}")
        names, led = (list(CASES), LED) if members == 2 else (list(OF_THREE), ())
        ranks = Ranks(run_rank, size, (folders[:members], names, led, out), out)
        try:
            codes = ranks.wait(240)
        finally:
            ranks.end()
        assert codes == [0] * size, "\n".join(ranks.said(r) for r in range(size))
        said[size, members] = [json.loads((out / f"{r}.json").read_text()) for r in range(size)]
    return said, alone


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_give_the_bits_of_one_process(found, name):
    said, alone = found
    for rank in said[2, 2]:
        assert rank["auto"][name] == alone[2][name]


@pytest.mark.parametrize("name", LED)
def test_rank_0_alone_is_asked(found, name):
    """The others follow it: the same bits again."""
    said, alone = found
    assert said[2, 2][0]["led"][name] == alone[2][name]


@pytest.mark.parametrize("size", [3, 2])
@pytest.mark.parametrize("name", OF_THREE)
def test_three_members_give_the_bits_of_one_process(found, name, size):
    """On a rank each, and two of them sharing one."""
    said, alone = found
    for rank in said[size, 3]:
        assert rank["auto"][name] == alone[3][name]


def test_the_cases_do_what_they_are_called(found):
    """Texts have lengths of their own, gates decide, drafts are taken: equality would mean little otherwise."""
    _, alone = found
    plain = alone[2]["plain"]
    assert all(len(request[1][0]) > 3 for request in plain)
    assert len({json.dumps(request[1]) for request in plain}) == len(plain)
    assert sum(request[4] for request in alone[2]["gate"]) > 0
    assert sum(request[4] for request in alone[2]["gate of the other"]) > 0
    for name in ("drafts", "drafts of the other", "expression"):
        assert any(step[5] for request in alone[2][name] for step in request[6]), name
    different = ("primary", "weights", "probs", "drop", "product", "sampling", "penalty")
    assert all(alone[2][name] != plain for name in different)
    started = [row for row in alone[2]["start state"] if isinstance(row[-1], list)]
    assert len(started) == 15
    assert all(starts[0] == [False, True] for _, starts in started)
    assert [said[1] for said, _ in started[:5]] != [request[1] for request in plain]
    cancelled = alone[2]["arrivals"]
    assert cancelled[4][2] == ""
    assert cancelled[4][1][0] == []
    assert 0 < len(cancelled[0][1][0]) < 14


def test_a_step_sends_what_is_said(found):
    """A header from rank 0; a word and 8 bytes per proposal; 4 bytes per slot. B = 3 and 1, k = 10, two members."""
    said, _ = found
    header, word = 32, 8
    for requests, costs in zip((3, 1), zip(*(rank["cost"] for rank in said[2, 2]))):
        payload = word + requests * (8 * 10 + 4 * 20)
        assert [sent for sent, _ in costs] == [header + payload, payload]
        assert [exchanges for _, exchanges in costs] == [3, 3]


def test_one_process_needs_no_launcher(folders):
    """ranks="auto" in a script that nobody launched."""
    ensemble = load(folders[:2], ranks="auto")
    assert ensemble.ranks is None
    ensemble.close()
    with pytest.raises(ValueError, match="follow must be called on other ranks than 0"):
        ensemble.follow()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"method": "gac"}, "method must be 'unite' or choose among answers where members live on several ranks"),
        ({"method": "packllm"}, "got 'packllm': it needs their whole vocabularies"),
        ({"boundaries": "exact"}, "boundaries must be 'plain' where members live on several ranks, got 'exact'"),
        ({"ranks": "all"}, "ranks must be None, 'auto' or 'led', got 'all'"),
        ({"rank_timeout": 0}, "rank_timeout must be from 0.5 to 86400 seconds, got 0"),
        ({"rank_timeout": "1"}, "rank_timeout must be a number, got str"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(folders, monkeypatch, options, complaint):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises((TypeError, ValueError), match=complaint):
        load(folders[:2], **{"ranks": "auto", **options})


def test_members_that_are_made_already_are_refused(folders, monkeypatch):
    """Such as those behind servers: each rank loads its own."""
    made = load(folders[:1]).members[0]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="names must be models that run here where members live on several ranks"):
        UniteEnsemble.from_pretrained([str(folders[1]), made], ranks="auto")


@pytest.mark.parametrize("command", [["generate", "--prompt", "A"], ["eval", "--tasks", "unite_gsm8k"]])
@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_command_refuses_servers_on_every_rank(folders, monkeypatch, command, rank):
    """Before anything is loaded or asked."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("signal.signal", lambda *_: None)  # this process is not a launcher's
    given = [*command, "--model", str(folders[0]), "--model", str(folders[1])]
    found = CliRunner().invoke(app, [*given, "--member-engine", "1=vllm:http://127.0.0.1:9"])
    assert found.exit_code != 0
    assert "--member-engine must not be given under torchrun" in " ".join(found.output.split())
    if command[0] == "generate":
        found = CliRunner().invoke(app, [*given, "--on-member-failure", "drop"])
        assert found.exit_code != 0
        assert "--on-member-failure must be stop under torchrun, got 'drop'" in " ".join(found.output.split())


def test_more_processes_than_members_are_refused(folders, monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="ranks must be at most one per member, 2, got 3 processes"):
        UniteEnsemble.from_pretrained([str(folder) for folder in folders[:2]], ranks="auto")


def test_of_two_members_that_lack_memory_the_first_is_named():
    """Both of this process: its number travels, and its error is the cause."""
    group = SimpleNamespace(rank=0, size=1, gather=lambda sent: sent[None])
    exchange = RankExchange(group, [0, 0])
    first, second = torch.OutOfMemoryError("first"), torch.OutOfMemoryError("second")
    exchange.lacks(1, first)
    exchange.lacks(0, second)
    with pytest.raises(MemberOutOfMemory) as lacking:
        exchange.agreed([True])
    assert lacking.value.member == 1
    assert lacking.value.__cause__ is first
    assert exchange.agreed([True, False]) == [True, False]
