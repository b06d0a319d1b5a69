"""`unite eval --demo` on stand-ins for the bundled models: what runs, what is kept, what is refused."""

from __future__ import annotations

import json

import pytest
import toy_tokenizers
from toy_models import toy_model
from typer.testing import CliRunner

from unite_ext import ModelScore, demo, select_models
from unite_ext.cli import app
from unite_ext.demo import methods
from unite_ext.demo.problems import problem_set
from unite_ext.demo.run import TEST_SEED, TEST_SPLIT
from unite_ext.members.transformers import Member
from unite_ext.selection.score_files import read_scores

LIMIT = 2


@pytest.fixture(scope="module")
def members():
    loaders = (toy_tokenizers.byte_level, toy_tokenizers.sentencepiece, toy_tokenizers.byte_level_digits)
    kinds = ("llama", "mistral", "qwen2", "gpt-neox")
    tokenizers = [load() for load in (*loaders, toy_tokenizers.gemma)]
    return {
        name: Member(toy_model(kind, tokenizer, seed=i), tokenizer, name=name)
        for i, (name, kind, tokenizer) in enumerate(zip(demo.MODELS, kinds, tokenizers))
    }


@pytest.fixture(autouse=True)
def short(monkeypatch, members):
    monkeypatch.setattr(methods, "MAX_NEW_TOKENS", 4)
    monkeypatch.setattr(demo, "load_member", lambda name: members[name])
    # Random weights answer nothing right, and a weight needs somebody above chance.
    monkeypatch.setattr(methods, "development_scores", lambda line: [ModelScore(2.0, 1.0), ModelScore(1.0, 1.0)] * 2)
    monkeypatch.setattr(methods, "adaptive_weights", lambda scores: [2, 1, 1])


def test_every_model_and_method_once_and_then_from_the_folder(members, tmp_path):
    started = []
    found = methods.run(members, limit=LIMIT, folder=tmp_path, on_start=started.append)
    names = [measured.name for measured in found]
    assert names[:4] == list(demo.MODELS)
    assert names[4:] == [
        "unite", "gac", "deepen-avg", "deepen-adapt", "mined", "packllm", "eva", "voting", "mbr"
    ]  # fmt: skip
    assert started == names
    assert methods.run(members, limit=LIMIT, folder=tmp_path, on_start=started.append) == found
    assert started == names  # nothing ran again
    methods.run(members, limit=LIMIT + 1, folder=tmp_path, wanted=["gac"], on_start=started.append)
    assert started == [*names, "gac"]  # other problems are another run

    by_name = {measured.name: measured for measured in found}
    alignment_only = by_name["unite"].extra_bytes
    assert by_name["gac"].extra_bytes > alignment_only > 0
    assert by_name["qwen2"].extra_bytes == by_name["voting"].extra_bytes == 0
    assert 10 <= by_name["unite"].tokens_per_step <= 30
    assert by_name["gac"].tokens_per_step > by_name["deepen-avg"].tokens_per_step > 100
    assert by_name["mbr"].tokens_per_step is None


def test_the_folder_feeds_select(members, tmp_path):
    methods.run(members, limit=LIMIT, folder=tmp_path, wanted=["qwen2", "mistral", "unite"])
    problems = problem_set(TEST_SPLIT, TEST_SEED, 360)[:LIMIT]
    read = read_scores([tmp_path])
    assert read.keys() == {"qwen2", "mistral"}  # the ensemble is no candidate
    _, texts = methods.measure("qwen2", [members["qwen2"]], "unite", problems)
    assert read["qwen2"].mean_length == sum(map(len, texts)) / LIMIT
    assert (read["qwen2"].task, read["qwen2"].problems) == ("demo", LIMIT)
    assert len(select_models(read).scores) == 2


def test_right_answers_count(members, monkeypatch):
    problems = problem_set("dev", 1, 3)
    monkeypatch.setattr(methods, "read_answer", lambda text: problems[1].answer)
    measured, texts = methods.measure("qwen2", [members["qwen2"]], "unite", problems)
    assert measured.right == sum(p.answer == problems[1].answer for p in problems) > 0
    assert len(texts) == 3
    row = measured.to_dict()
    assert row["accuracy"] == round(100 * measured.right / 3, 4)
    assert row["low"] < row["accuracy"] < row["high"] <= 100


def test_what_methods_run_with():
    scores = [ModelScore(60, 1), ModelScore(20, 1), ModelScore(20, 1)]
    assert methods.method_settings("deepen-adapt", scores) == {"options": {"eta": methods.ETA}, "weights": [2, 1, 1]}
    assert methods.method_settings("gac", scores) == {}
    assert methods.method_settings("voting", scores)["options"]["pattern"] == methods.ANSWER


def test_results_of_another_version_are_refused(tmp_path, monkeypatch):
    arguments = ["eval", "--demo", "--limit", "1", "--method", "unite", "--output", str(tmp_path)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    monkeypatch.setattr("unite_ext.__version__", "99.0")
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert 'holds results of another run: unite_ext was "' in " ".join(done.stderr.split())
    (tmp_path / "demo.run.json").unlink()
    done = CliRunner().invoke(app, arguments)
    assert "has results but no demo.run.json" in " ".join(done.stderr.split())


def test_the_command(tmp_path):
    arguments = ["eval", "--demo", "--limit", str(LIMIT), "--output", str(tmp_path)]
    done = CliRunner().invoke(app, [*arguments, "--method", "gac"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "2 test problems" in done.stdout
    assert all(name in done.stdout for name in (*demo.MODELS, "gac"))
    assert "mined" not in done.stdout
    done = CliRunner().invoke(app, [*arguments, "--method", "gac", "--json"])
    assert [row["name"] for row in json.loads(done.stdout)] == [*demo.MODELS, "gac"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--demo", "--model", "a"], "--tasks must not be given with --demo"),
        (["--demo", "--method", "nope"], "method must be one of"),
        (["--demo", "--limit", "0"], "limit must be at least 1, got 0"),
        (["--model", "a"], "--model and --tasks must be given"),
    ],
)
def test_what_the_command_refuses(arguments, message):
    done = CliRunner().invoke(app, ["eval", *arguments])
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())


def test_a_damaged_result(members, tmp_path):
    methods.run(members, limit=LIMIT, folder=tmp_path, wanted=["qwen2"])
    path = next(tmp_path.rglob("results_*.json"))
    path.write_text("{}")
    with pytest.raises(ValueError, match="must be a file that unite eval --demo wrote, got KeyError"):
        methods.run(members, limit=LIMIT, folder=tmp_path, wanted=["qwen2"])
