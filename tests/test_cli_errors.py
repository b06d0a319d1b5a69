"""Wrong arguments of the command: one line that names the argument or member, before any weights are read."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys

import pytest
import toy_tokenizers
import transformers
from toy_models import toy_model
from typer.testing import CliRunner

from unite_ext.cli import app
from unite_ext.members.transformers import Member

CHAT = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}<|{{ m.role }}|>"
    "{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{{ mood }}{% endif %}"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    """Folders of a chat model and a base model."""
    folders = []
    chatty = copy.deepcopy(toy_tokenizers.byte_level())
    chatty.chat_template = CHAT
    for kind, tokenizer in (("llama", chatty), ("mistral", toy_tokenizers.sentencepiece())):
        folder = tmp_path_factory.mktemp("models") / kind
        toy_model(kind, tokenizer, context=64).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders.append(str(folder))
    return folders


def run(models: list[str], *arguments: str, code: int = 0, **options):
    named = [part for folder in models for part in ("--model", folder)]
    result = CliRunner().invoke(app, ["generate", *named, "--max-new-tokens", "3", *arguments], **options)
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chat"], "mistral has no chat template: give its prompts as text, or chat_template='plain'"),
        (["--output", "none/rows.jsonl"], "--output: the folder none does not exist"),
        (["--output", "."], "--output must be a file, got the folder ."),
        (["--dtype", "float33"], "dtype must be auto, float32, bfloat16 or float16, got float33"),
        (["--device", "gpu"], "device must be one that torch knows, such as cpu or cuda:0, got 'gpu'"),
        (
            ["--device", "cpu", "--device", "cpu", "--device", "cpu"],
            "--device must be given once, or once per --model, 2",
        ),
        (["--model", "./nowhere"], "got ./nowhere: no such folder"),
        (["--model", __file__], "model must be a folder, a .gguf file or a Hugging Face name, got the file"),
        (["--prompt", "word " * 64], "prompt 1: a prompt takes"),
        (["--prompt", "\udcff"], r"prompt 1: a prompt must be whole Unicode characters, got the lone surrogate"),
        (["--chat-template", "plain"], "--chat-template needs --chat, or messages in --file"),
        (
            ["--chat", "--chat-template", "none.jinja"],
            "chat_template must be 'own', 'plain', a Jinja template or a file",
        ),
        (["--chat", "--chat-template-kwargs", "[1]"], "--chat-template-kwargs must be a JSON object, got [1]"),
    ],
)
def test_errors_are_one_line_and_early(models, arguments, message, monkeypatch):
    def refuse(*_, **__):
        pytest.fail("weights were read before all was checked")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    output = run(models, "--prompt", "Hi", *arguments, code=1).output
    assert message in output
    assert output.count("\n") == 1, output
    assert output.startswith("error: ")


def test_a_template_that_raises_is_one_line(models, tmp_path):
    file = tmp_path / "chats.jsonl"
    file.write_text('{"messages": [{"role": "tool", "content": "x"}]}\n')
    output = run(models[:1], "--file", str(file), code=1).output
    assert output.endswith("llama's chat template refuses the messages: no tools\n")
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"messages": "hello"}', "line 1: 'messages' must be a list of chat messages, got str"),
        (b'"fine"\n{"messages": []}', "line 2: a prompt must be text or at least one chat message, got an empty list"),
        (b'\n{"messages": [{"content": "x"}]}', "line 2: a chat message must have a 'role'"),
        (b'{"prompt": 5}', "line 1: must be a JSON object with 'prompt' or 'messages', got {\"prompt\": 5}"),
        (b"[1, 2, 3]", "line 1: must be a JSON object with 'prompt' or 'messages', got [1, 2, 3]"),
        (b'{"prompt": "\xff"}', "prompts.jsonl: must be UTF-8, got byte 0xff at byte 12"),
    ],
)
def test_bad_prompt_files_name_the_line(models, tmp_path, content, message):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    output = run(models, "--file", str(file), code=1).output
    assert message in output
    assert output.count("\n") == 1


def test_prompts_are_the_lines_of_a_file(models, tmp_path):
    """Nothing but a newline ends one, also when rows are read again to go on."""
    prompts = ["James\u2028met", "A\u0085B", "C\x1cD", "Jam"]
    file, output = tmp_path / "prompts.jsonl", tmp_path / "rows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(json.dumps(p, ensure_ascii=False) for p in prompts).encode())
    run(models, "--file", str(file), "--output", str(output))
    rows = [json.loads(line) for line in output.read_bytes().split(b"\n")[:-1]]
    assert sorted(row["prompt"] for row in rows) == sorted(prompts)
    output.write_bytes(b"\n".join(output.read_bytes().split(b"\n")[:2]) + b"\n{")
    run(models, "--file", str(file), "--output", str(output), "--resume")
    again = [json.loads(line) for line in output.read_bytes().split(b"\n")[:-1]]
    assert sorted(row["index"] for row in again) == [0, 1, 2, 3]
    text = tmp_path / "prompts.txt"
    text.write_bytes(b"\xef\xbb\xbfJames\r\nJam\r\n")
    rows = [json.loads(line) for line in run(models, "--file", str(text)).stdout.split("\n")[:-1]]
    assert sorted(row["prompt"] for row in rows) == ["Jam", "James"]
    piped = run(models, "--json", input=b"\xef\xbb\xbfJames\r\n").stdout
    assert json.loads(piped)["prompt"] == "James"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"index": "0", "prompt": "James"}', "line 1: must be"),
        ('{"index": 0, "text": "."}', "line 1: must be"),
        ("[0]", "line 1: must be"),
        ('{"index": 1, "prompt": "James"}', "line 1: row 1 belongs to another prompt"),
        ('{"index": 0, "prompt": "Jam"}', "line 1: row 0 belongs to another prompt"),
    ],
)
def test_rows_of_something_else_are_not_gone_on_with(models, tmp_path, row, message):
    output = tmp_path / "rows.jsonl"
    output.write_text(row + "\n")
    (tmp_path / "prompts.txt").write_text("James\n")
    given = ["--file", str(tmp_path / "prompts.txt"), "--output", str(output), "--resume"]
    assert message in run(models, *given, code=1).output
    assert output.read_text() == row + "\n"


def test_a_grammar_must_be_text(models, tmp_path):
    file = tmp_path / "answer.gbnf"
    file.write_bytes(b'root ::= "\xff"')
    output = run(models, "--prompt", "Hi", "--grammar", str(file), code=1).output
    assert "answer.gbnf must be UTF-8 text" in output
    assert output.count("\n") == 1


def test_a_server_s_log_has_levels():
    result = CliRunner().invoke(app, ["serve", "--demo", "--log-level", "loud"])
    assert result.exit_code == 1
    assert "--log-level must be one of debug, info, warning, error, got 'loud'" in " ".join(result.output.split())


def test_chat_and_base_models_on_one_command_line(models):
    arguments = ["--prompt", "Hi", "--chat", "--json", "--chat-template-kwargs", '{"mood": "calm"}']
    row = json.loads(run(models, *arguments, "--chat-template", "own", "--chat-template", "plain").stdout)
    assert row["prompt"] == [{"role": "user", "content": "Hi"}]
    chatty = Member.from_pretrained(models[0], chat_template_kwargs={"mood": "calm"})
    assert chatty.prompts.render(row["prompt"]) == "<|user|>Hi<|assistant|>calm"


NOBODY = """
import pwd

def nobody(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = nobody
from unite_ext.cli import app
app()
"""


def child(
    models: list[str], tmp_path, *arguments: str, start: tuple[str, ...] = ("-m", "unite_ext"), **environment: str
):
    own = {name: value for name, value in os.environ.items() if name not in ("HOME", "UNITE_CACHE", "XDG_CACHE_HOME")}
    named = [part for folder in models for part in ("--model", folder)]
    return subprocess.run(
        [sys.executable, *start, "generate", *named, "--max-new-tokens", "3", "--prompt", "Ωmega", *arguments],
        env={**own, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **environment},
        capture_output=True,
        cwd=tmp_path,
        check=False,
    )


def test_a_row_survives_an_encoding_that_lacks_its_characters(models, tmp_path):
    done = child(models, tmp_path, "--json", PYTHONIOENCODING="ascii", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode("ascii"))["prompt"] == "Ωmega"
    done = child(models, tmp_path, "--min-new-tokens", "3", PYTHONIOENCODING="ascii", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.name != "posix", reason="passwd is POSIX's")
def test_a_user_without_home_and_passwd_entry_can_generate(models, tmp_path):
    """As in containers."""
    done = child(models, tmp_path, "--json", start=("-c", NOBODY))
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["prompt"] == "Ωmega"
