"""Stored lines and answers are used only for the same models and options; otherwise the differences are named."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import toy_tokenizers
from toy_models import toy_model
from typer.testing import CliRunner

from unite_ext.cli import app, resume
from unite_ext.cli.resume import (
    check_rows,
    check_run,
    describe_run,
    differences,
    keep_answers,
    keep_run,
    read_run,
    run_file,
)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 64)
    (folder / "README.md").write_text("not part of it")
    return folder


def test_the_same_run_has_no_differences(model):
    first = describe_run([str(model), "org/name"], {"k": 10, "stop": None})
    (model / "README.md").write_text("rewritten")
    os.utime(model / "model.safetensors", (1, 1))
    assert differences(first, describe_run([str(model), "org/name"], {"k": 10, "stop": None})) == []


def test_options_that_differ_are_named():
    before = describe_run(["org/a"], {"k": 10, "stop": ["\n"], "seed": None, "old": 1})
    after = describe_run(["org/a"], {"k": 5, "stop": ["\n"], "seed": 3, "new": "x" * 100})
    assert differences(before, after) == [
        "k was 10, now 5", "seed was null, now 3", "old was 1, now not given",
        f"new was not given, now {json.dumps('x' * 100)[:57]}…",
    ]  # fmt: skip


def test_models_that_differ_are_named(model, tmp_path, monkeypatch):
    name = str(model)
    first = describe_run([name, "org/a"], {})
    assert differences(first, describe_run(["org/b", "org/a"], {})) == [f"model 0 was {name}, now org/b"]
    assert differences(first, describe_run(["org/a", name], {})) == [
        f"model 0 was {name}, now org/a", f"model 1 was org/a, now {name}"]  # fmt: skip
    assert differences(first, describe_run([name], {})) == ["it had 2 models, now 1"]
    # Other weights under the same name.
    (model / "model.safetensors").write_bytes(bytes(range(255)) * 64)
    assert differences(first, describe_run([name, "org/a"], {})) == [f"model 0 ({name}) has changed: model.safetensors"]
    # The folder of before, moved: the same model.
    (model / "model.safetensors").write_bytes(bytes(range(256)) * 64)
    moved = shutil.copytree(model, tmp_path / "moved")
    assert differences(first, describe_run([str(moved), "org/a"], {})) == []
    (moved / "config.json").write_text("{ }")
    assert differences(first, describe_run([str(moved), "org/a"], {})) == [f"model 0 was {name}, now {moved}"]


def test_large_files_are_not_read_as_a_whole(model, tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "_WHOLE", 1000)
    monkeypatch.setattr(resume, "_PARTS", 4)
    monkeypatch.setattr(resume, "_PART", 16)
    name, weights = str(model), model / "model.safetensors"
    first = describe_run([name], {})
    data = bytearray(weights.read_bytes())
    data[100] ^= 1  # in none of the parts that are read
    time = weights.stat().st_mtime_ns
    weights.write_bytes(data)
    os.utime(weights, ns=(time + 1, time + 1))
    assert differences(first, describe_run([name], {})) == [f"model 0 ({name}) has changed: model.safetensors"]
    data[100] ^= 1
    data[-1] ^= 1  # in the last part
    weights.write_bytes(data)
    os.utime(weights, ns=(time, time))
    assert differences(first, describe_run([name], {})) == [f"model 0 ({name}) has changed: model.safetensors"]


def test_commits_count_where_they_are_known(monkeypatch):
    commits = iter([None, "1111", "2222"])
    monkeypatch.setattr(resume, "_commit", lambda name, revision: next(commits))
    unknown, first, second = (describe_run(["org/a"], {}) for _ in range(3))
    assert differences(unknown, first) == []
    assert differences(first, second) == ["commit of model 0 (org/a) was 1111, now 2222"]


def test_a_file_of_rows(tmp_path):
    rows = tmp_path / "out.jsonl"
    given = {"model": ["org/a"], "k": 10, "output": rows, "batch_size": 8}
    run = check_rows(rows, given)
    assert not run_file(rows).exists()  # a run whose prompts are refused leaves nothing
    keep_run(rows, run)
    rows.touch()
    keep_run(rows, check_rows(rows, {**given, "k": 3}))  # nothing was written yet
    rows.write_text("{}\n")
    with pytest.raises(ValueError, match=r"out\.jsonl holds rows of another run: k was 3, now 10; name another file"):
        check_rows(rows, given)
    assert check_rows(rows, {**given, "k": 3, "batch_size": 1}) is None  # decides no text
    run_file(rows).unlink()
    with pytest.raises(ValueError, match=r"has no out\.jsonl\.run\.json beside it"):
        check_rows(rows, given)
    with pytest.raises(ValueError, match=r"the folder .*nowhere does not exist"):
        check_rows(tmp_path / "nowhere" / "out.jsonl", given)


@pytest.mark.parametrize(
    "content", ["", "[]", "3", '{"models": 3, "options": {}}', '{"models": [3], "options": {}}', '{"version": 1}']
)
def test_a_damaged_description_is_one_error(tmp_path, content):
    rows = tmp_path / "out.jsonl"
    rows.write_text("{}\n")
    run_file(rows).write_text(content)
    with pytest.raises(ValueError, match=r"out\.jsonl\.run\.json must be the description of a run, got"):
        check_run(rows, describe_run(["a"], {}))
    run_file(rows).write_text('{"version": 99, "models": [], "options": {}}')
    with pytest.raises(ValueError, match="must be of version 1, got 99"):
        check_run(rows, describe_run(["a"], {}))


def test_kept_answers(model, tmp_path):
    names = [str(model), "org/a"]
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "answers_broken.run.json").write_text("[")
    first, unlike = keep_answers(folder, describe_run(names, {"k": 10}))
    assert unlike == []
    assert keep_answers(folder, describe_run(names, {"k": 10})) == (first, [])
    second, unlike = keep_answers(folder, describe_run(names, {"k": 5}))
    assert (second != first, unlike) == (True, ["k was 10, now 5"])
    assert keep_answers(folder, describe_run(["org/a"], {"k": 10}))[1] == []  # models of other names are no surprise
    (model / "config.json").write_text('{"other": 1}')
    third, unlike = keep_answers(folder, describe_run(names, {"k": 10}))
    assert third not in (first, second)
    assert f"model 0 ({model}) has changed: config.json" in unlike
    assert read_run(run_file(third))["options"] == {"k": 10}


def test_generate_notices_other_models_and_options(tmp_path):
    folders = []
    for seed in (0, 1):
        folder = tmp_path / f"model{seed}"
        toy_model("llama", toy_tokenizers.byte_level(), seed=seed).save_pretrained(folder)
        toy_tokenizers.byte_level().save_pretrained(folder)
        folders.append(str(folder))
    output = tmp_path / "out.jsonl"
    prompts = ["--prompt", "James", "--prompt", "A"]

    def generate(*arguments, models=folders, code=0):
        members = [part for folder in models for part in ("--model", folder)]
        done = CliRunner().invoke(app, ["generate", *members, *prompts, "--output", str(output), *arguments])
        assert done.exit_code == code, done.output
        return " ".join(done.output.split())

    generate("--max-new-tokens", "3")
    whole = output.read_text()
    output.write_text(whole.splitlines(keepends=True)[0])
    said = generate("--max-new-tokens", "4", "--k", "5", "--resume", code=1)
    assert "holds rows of another run: max_new_tokens was 3, now 4; k was 10, now 5; name another file" in said
    said = generate("--max-new-tokens", "3", "--resume", models=folders[::-1], code=1)
    assert f"model 0 was {folders[0]}, now {folders[1]}" in said
    said = generate("--max-new-tokens", "3", "--resume", models=folders[:1], code=1)
    assert "it had 2 models, now 1" in said
    generate("--max-new-tokens", "3", "--batch-size", "1", "--resume")
    assert sorted(output.read_text().splitlines()) == sorted(whole.splitlines())
    # A whole file is none of another run, either.
    assert "k was 10, now 5" in generate("--max-new-tokens", "3", "--k", "5", "--resume", code=1)
