"""The `unite` command, run with its arguments."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import toy_tokenizers
from command_processes import Command
from toy_models import toy_model
from typer.testing import CliRunner

from unite_ext import Trace
from unite_ext.cli import app
from unite_ext.trace import load_traces

runner = CliRunner()


def run(*arguments: str, code: int = 0, **options):
    result = runner.invoke(app, list(arguments), **options)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    """Folders of two small models with their tokenizers."""
    folders = []
    for kind, tokenizer in (("llama", toy_tokenizers.byte_level()), ("mistral", toy_tokenizers.sentencepiece())):
        folder = tmp_path_factory.mktemp("models") / kind
        toy_model(kind, tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders.append(str(folder))
    return folders


def members(models: list[str]) -> list[str]:
    return [part for folder in models for part in ("--model", folder)]


def test_help_teaches():
    text = run("--help").output
    for command in ("info", "align", "generate"):
        assert command in text
    assert "Example" in run("align", "--help").output
    assert "Examples" in run("generate", "--help").output


def test_info():
    facts = json.loads(run("info", "--json").output)
    assert facts["CPU kernel"].split(",")[0] in ("avx512", "avx2", "scalar")
    assert set(facts) >= {"unite_ext", "torch", "transformers", "CUDA kernel", "CUDA devices"}
    assert "CPU kernel" in run("info").output


def test_align_shows_figures_and_examples(models):
    text = run("align", *models, env={"COLUMNS": "200"}).output
    assert "byte-level" in text
    assert "sentencepiece" in text
    report = json.loads(run("align", "--json", *models).output)
    [pair] = report["pairs"]
    assert pair["classes_common"] > 256
    assert pair["missed_by_surface"] > 100
    assert 0 < pair["first_sub_token_share"][0] < 1
    for example in pair["missed_examples"]:
        assert example["text"] == example["other_text"]
        assert example["surface"] != example["other_surface"]
    assert all(e["text"] != e["other_text"] for e in pair["sub_token_examples"])


def test_align_prints_the_papers_table_5():
    folder = os.environ.get("UNITE_TEST_TOKENIZERS")
    if not folder:
        pytest.skip("UNITE_TEST_TOKENIZERS does not name a folder of real tokenizers")
    names = [str(Path(folder) / name) for name in ("llama-3", "qwen2", "mistral-7b-v0.3")]
    report = json.loads(run("align", "--json", *names).output)
    llama_qwen, llama_mistral, qwen_mistral = report["pairs"]
    assert (llama_qwen["surface_common"], llama_qwen["surface_union"]) == (109_566, 170_336)
    assert [p["classes_common"] for p in (llama_qwen, llama_mistral, qwen_mistral)] == [109_566, 29_110, 29_234]
    assert report["members"][2]["doubled"] == 125
    text = run("align", *names, env={"COLUMNS": "200"}).output  # the same alignment, which is kept
    assert "109,566" in text
    assert "170,336" in text


def test_align_says_what_is_wrong(tmp_path):
    assert "error:" in run("align", str(tmp_path / "nowhere"), code=1).output


def test_generate_streams_one_prompt(models):
    text = run("generate", *members(models), "--prompt", "James", "--max-new-tokens", "12").stdout
    from_stdin = run("generate", *members(models), "--max-new-tokens", "12", input="James\n").stdout
    assert text == from_stdin
    record = json.loads(
        run("generate", *members(models), "--prompt", "James", "--max-new-tokens", "12", "--json").stdout
    )
    assert text == record["text"] + "\n"
    assert record["finish_reason"] in ("eos", "length")
    assert len(record["token_ids"]) == 2


def test_generate_writes_rows_and_resumes(models, tmp_path):
    prompts = [f"Number {i}" for i in range(5)]
    file, output = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    file.write_text("\n".join(prompts) + "\n")
    arguments = [
        "generate", *members(models), "--file", str(file), "--output", str(output), "--max-new-tokens", "8",
        "--do-sample", "--seed", "3", "--batch-size", "2",
    ]  # fmt: skip
    run(*arguments)
    whole = {r["index"]: r for r in map(json.loads, output.read_text().splitlines())}
    assert [whole[i]["prompt"] for i in range(5)] == prompts
    assert "exists: --resume goes on" in run(*arguments, code=1).output
    # As after a crash: two rows, and half of a third.
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[:2]) + lines[2][:20])
    run(*arguments, "--resume")
    assert {r["index"]: r for r in map(json.loads, output.read_text().splitlines())} == whole
    assert "nothing to do" in run(*arguments, "--resume").output
    file.write_text("something else\n" * 5)
    assert "belongs to another prompt" in run(*arguments, "--resume", code=1).output


def test_generate_keeps_traces(models, tmp_path):
    base = ["generate", *members(models), "--max-new-tokens", "6", "--min-new-tokens", "6"]
    one, page, many = (str(tmp_path / name) for name in ("one.json", "page.html", "many.json"))
    text = run(*base, "--prompt", "James", "--trace", one).stdout
    trace = Trace.load(one)
    assert text == trace.text + "\n"
    assert trace.options["max_new_tokens"] == 6
    assert "open it in a browser" in run(*base, "--prompt", "James", "--trace", page).output
    assert Path(page).read_text() == trace.to_html()
    shown = run(*base, "--prompt", "James", "--trace", "-").stdout
    assert "6 steps" in shown
    rows = [
        json.loads(x) for x in run(*base, "--prompt", "A", "--prompt", "James", "--trace", many).stdout.splitlines()
    ]
    assert {r["index"]: r["text"] for r in rows} == {i: t.text for i, t in enumerate(load_traces(many))}


def test_generate_reads_json_lines_and_templates(models, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "James"}\n{"messages": [{"role": "user", "content": "Hi"}]}\n')
    assert "no chat template" in run("generate", *members(models), "--file", str(file), code=1).output
    file.write_text('{"prompt": "James"}\n"A"\n')
    rows = [
        json.loads(x)
        for x in run("generate", *members(models), "--file", str(file), "--max-new-tokens", "4").stdout.splitlines()
    ]
    assert sorted(r["prompt"] for r in rows) == ["A", "James"]
    file.write_text("{broken\n")
    assert "line 1: must be a JSON object" in run("generate", *members(models), "--file", str(file), code=1).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "x", "--max-new-tokens", "0"], "max_new_tokens must be from 1"),
        (["--prompt", "x", "--k", "0"], "k must be from 1 to 256"),
        (["--prompt", "x", "--file", "y"], "give --prompt or --file, not both"),
        (["--prompt", "x", "--system", "y"], "--system needs --chat"),
        (["--prompt", "x", "--resume"], "--resume needs --output"),
        (["--prompt", "x", "--weight", "1"], "weights must have one entry per member"),
        (["--prompt", ""], "the input is empty"),
        (["--prompt", "x", "--trace", "t.txt"], "a trace is written as .html (a page) or .json (data)"),
        (["--prompt", "x", "--trace", "none/t.html"], "the folder 'none' does not exist"),
        (["--prompt", "x", "--trace", "-", "--json"], "--trace - shows one text"),
        (["--prompt", "x", "--trace", "t.html", "--method", "voting"], "it has no steps to trace"),
    ],
)
def test_generate_says_what_is_wrong(models, arguments, message):
    output = run("generate", *members(models), *arguments, code=1).output
    assert message in " ".join(output.split())
    assert "Traceback" not in output


def test_interrupt_keeps_what_is_done(models, tmp_path):
    file, output = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    file.write_text("James\n" * 500)
    arguments = ["generate", *members(models), "--file", str(file), "--output", str(output), "--batch-size", "1"]
    process = Command([*arguments, "--max-new-tokens", "60"], tmp_path)
    until = time.monotonic() + 240
    while time.monotonic() < until and process.poll() is None:
        if output.exists() and output.read_text().count("\n") >= 2:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130, process.stderr
    lines = output.read_text().splitlines()
    assert 2 <= len(lines) < 500
    assert f"{len(lines)} of 500 rows are done" in " ".join(process.stderr.split())
    assert all(json.loads(line)["prompt"] == "James" for line in lines)
