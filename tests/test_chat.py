"""`unite chat` on a real terminal: answers, commands, Ctrl-C that stops the answer only, and saved chats."""

from __future__ import annotations

import json
import os
import re
import signal
import sys

import pytest
from command_processes import Command
from running_server import CHAT, QUESTION, demo_ensemble
from typer.testing import CliRunner

from unite_ext import UniteEnsemble
from unite_ext.cli import app
from unite_ext.cli.chat import Session
from unite_ext.demo import CHAT_TEMPLATE, COMPARABLE, load_member
from unite_ext.trace import load_traces

pexpect = pytest.importorskip("pexpect")

ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "TERM": "xterm", "COLUMNS": "200", "NO_COLOR": "1",
}  # fmt: skip
SLOWED = """
import time, unite_ext.demo as demo
load = demo.load_member
def slow(*arguments, **options):
    member = load(*arguments, **options)
    member.model.register_forward_pre_hook(lambda *_: time.sleep(0.03))
    return member
demo.load_member = slow
from unite_ext.cli import app
app(["chat", "--demo"])
"""


@pytest.fixture(scope="module")
def three():
    return UniteEnsemble([load_member(name, chat_template=CHAT_TEMPLATE) for name in COMPARABLE])


def test_a_chat_on_a_terminal(three, tmp_path):
    """One session: an answer, a stopped one, commands, errors, and the end.

    Whoever runs the tests in the background has them ignore SIGINT; a terminal's programs do not.
    """
    expected = three.generate(CHAT, max_new_tokens=512)
    terminal = pexpect.spawn(
        sys.executable, ["-c", SLOWED], cwd=str(tmp_path), env=ENVIRONMENT, encoding="utf-8", timeout=60,
        dimensions=(40, 200), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        terminal.expect_exact("/help lists the commands")
        terminal.expect_exact("> ")
        terminal.sendline(QUESTION)
        terminal.expect_exact(expected)
        terminal.expect_exact("> ")
        terminal.sendline("/trace")
        terminal.expect("in agreement, [0-9]+ steps")

        terminal.sendline(QUESTION)  # the same again, stopped
        terminal.expect(r"\n" + re.escape(expected[:3]))
        terminal.sendintr()
        terminal.expect_exact("(stopped)")
        terminal.expect_exact("> ")
        terminal.sendintr()  # at the prompt: a hint
        terminal.expect_exact("Ctrl-D or /quit ends the chat")
        assert terminal.isalive()

        terminal.sendline("/weights 2 1 1")
        terminal.expect_exact("qwen2 0.5, mistral 0.25, llama 0.25")
        terminal.sendline("/weights 1 2")
        terminal.expect("error:.* weights must")
        terminal.sendline("/weights")
        terminal.expect_exact("qwen2 0.5, mistral 0.25, llama 0.25")
        terminal.sendline("/invented")
        terminal.expect_exact("/invented is no command; /help lists them")
        terminal.sendline("/save chat.json")
        terminal.expect_exact("--load goes on with it")
        terminal.sendline("/save page.html")
        terminal.expect_exact("open it in a browser")
        terminal.sendline("/retry")
        terminal.expect_exact(three.generate(CHAT, max_new_tokens=512, weights=[2, 1, 1]))
        terminal.expect_exact("> ")
        terminal.sendeof()
        terminal.expect(pexpect.EOF)
        terminal.wait()
        assert terminal.exitstatus == 0
    finally:
        terminal.close(force=True)
    messages = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert messages[1]["content"] == expected
    assert expected.startswith(messages[3]["content"])
    assert len(messages[3]["content"]) < len(expected)
    assert (tmp_path / "page.html").stat().st_size > 1000


def test_a_chat_through_pipes(three, tmp_path):
    (tmp_path / "old.json").write_text(json.dumps({"messages": [{"role": "system", "content": "S"}, *CHAT]}))
    arguments = ["chat", "--demo", "--load", "old.json", "--max-new-tokens", "8"]
    result = Command(arguments, tmp_path, given=f"/system\n{QUESTION}\n/quit\nnever read\n")
    assert result.wait() == 0
    assert result.stdout == f"system message: S\n{three.generate(CHAT, max_new_tokens=8)}\n"
    assert "the answer has its most tokens" in result.stderr


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"messages": 3}', '{"messages": [{"content": "no role"}]}', '{"messages": [5]}']
)
def test_a_file_that_is_no_chat(content, tmp_path):
    (tmp_path / "chat.json").write_text(content)
    result = CliRunner().invoke(app, ["chat", "--demo", "--load", str(tmp_path / "chat.json")], env={"COLUMNS": "400"})
    assert result.exit_code == 1
    assert "--load must be a file that /save wrote, got" in result.output
    assert "Traceback" not in result.output


def test_a_page_needs_an_answer(session, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session.run(lines("/save chat.html"))
    assert "/save needs an answer that was not stopped, got none yet" in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def session():
    return Session(demo_ensemble(), {"max_new_tokens": 6})


def lines(*given: str):
    """What reads these lines, then ends."""
    left = iter(given)

    def read() -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    return read


def test_commands(session, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session.run(
        lines(
            "/k 3", "/temperature", "/temperature 1.5", "/tokens 4", "/system Be brief.", QUESTION, "/help", "/k x",
            "/k 0", "/tokens -1", "/save", "/save chat.txt", "/save a.json", "/save b.html", "/clear", "/retry",
            "/trace", "  ",
        )
    )  # fmt: skip
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if line.startswith(("k ", "temperature", "max_new"))] == [
        "k 3", "temperature 0", "temperature 1.5", "max_new_tokens 4",
    ]  # fmt: skip
    assert "/weights [W ...]" in out
    for message in (
        "k must be a number, got 'x'", "k must be from 1", "max_new_tokens must be", ".json file for the chat",
        "/retry needs a message", "/trace needs an answer",
    ):  # fmt: skip
        assert message in " ".join(err.split())
    assert session.options == {"max_new_tokens": 4, "k": 3, "do_sample": True, "temperature": 1.5}
    assert session.messages == []
    saved = json.loads((tmp_path / "a.json").read_text())["messages"]
    assert [m["role"] for m in saved] == ["system", "user", "assistant"]


def test_what_cannot_be_answered_is_forgotten(session, capsys):
    session.run(lines("word " * 400, QUESTION))
    assert "whose context holds 256" in " ".join(capsys.readouterr().err.split())
    assert [m["content"] for m in session.messages] == [QUESTION, demo_ensemble().generate(CHAT, max_new_tokens=6)]


def test_a_model_does_not_command_the_terminal(session, capsys, monkeypatch):
    class Stream(list):
        request = type("Request", (), {"finish_reason": "eos", "decoded": lambda self: "\x1b]0;title\x07"})()

    monkeypatch.setattr(session.ensemble, "stream", lambda *a, **k: Stream(["\x1b]0;title\x07", "\ta\n"]))
    monkeypatch.setattr(session.ensemble, "trace_of", lambda *a, **k: None)
    session.run(lines("Hi"))
    assert capsys.readouterr().out.startswith("\\x1b]0;title\\x07\ta\n")


def test_saved_traces_are_those_of_the_answers(session, tmp_path):
    session.run(lines(QUESTION, QUESTION, f"/save {tmp_path / 'x.html'}"))
    from unite_ext.trace.trace import save_traces

    save_traces(session.traces, tmp_path / "x.json")
    assert [trace.text for trace in load_traces(tmp_path / "x.json")] == [m["content"] for m in session.messages[1::2]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --model once per member, or --demo"),
        (["--demo", "--model", "A"], "give --model once per member, or --demo"),
        (["--demo", "--chat-template", "plain"], "--chat-template must come with --model"),
        (["--demo", "--load", "missing.json"], "missing.json"),
        (["--demo", "--temperature", "-1"], "temperature must be above 0"),
        (["--demo", "--speculate", "99"], "speculate must be from 1"),
    ],
)
def test_bad_arguments(arguments, message, monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from unite_ext.cli import app

    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["chat", *arguments])
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
