"""`unite chat`: talk with an ensemble in the terminal."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._text import visible
from .console import console, errors, fail, plain
from .ensembles import SAMPLE_CHAT, load_ensemble
from .options import (
    Boundaries,
    ChatTemplateKwargs,
    ChatTemplates,
    Devices,
    Dtype,
    OptionalModels,
    Primary,
    Proposals,
    TrustRemoteCode,
    Weights,
)
from .ranks import refuse_ranks
from .trace import save_and_say

if TYPE_CHECKING:
    from ..decoding.ensemble import UniteEnsemble
    from ..members.base import Prompt
    from ..trace import Trace

HELP = """\
/weights [W ...]    show the members' weights, or set them: one number per member
/k [N]              how many tokens every member proposes per step
/temperature [T]    0 takes the likeliest token, above it samples
/tokens [N]         most new tokens of an answer
/system [TEXT]      the system message
/trace              who decided each token of the last answer
/retry              answer the last message again
/clear              forget the chat
/save FILE          the chat as .json, which --load reads, or the answers' traces as .html
/help, /quit        this list; the end (Ctrl-D as well)
Ctrl-C stops an answer; what there is of it stays."""


@dataclass
class Session:
    """One chat: its messages, its options, and the traces of its answers."""

    ensemble: UniteEnsemble
    options: dict[str, Any]
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)

    def run(self, read: Callable[[], str]) -> None:
        """Take lines until there are no more."""
        while True:
            try:
                line = read().strip()
            except EOFError:
                console.print()
                return
            except KeyboardInterrupt:
                errors.print("\nCtrl-D or /quit ends the chat", style="dim", highlight=False)
                continue
            if line in ("/quit", "/exit"):
                return
            try:
                if line.startswith("/"):
                    self.command(line)
                elif line:
                    self.say(line)
            except (ValueError, TypeError, OSError, RuntimeError) as error:
                errors.print(f"[bold red]error:[/] {plain(error)}", soft_wrap=True, highlight=False)

    def say(self, text: str) -> None:
        """Send a message, and show the answer as it comes."""
        before = len(self.messages)
        self.messages.append({"role": "user", "content": text})
        try:
            self.answer()
        except BaseException:
            del self.messages[before:]  # what could not be answered would be refused again
            raise

    def prompt(self) -> Prompt:
        """The chat so far."""
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*first, *self.messages]

    def answer(self) -> None:
        """Answer the last message; Ctrl-C stops it."""
        prompt = self.prompt()
        stream = self.ensemble.stream(prompt, trace=True, **self.options)
        try:
            for piece in stream:
                typer.echo(_shown(piece), nl=False)
            typer.echo()
            self.traces.append(self.ensemble.trace_of(stream.request, prompt, **self.options))
            if stream.request.finish_reason == "length":
                errors.print("(the answer has its most tokens; /tokens sets how many)", style="dim", highlight=False)
        except KeyboardInterrupt:
            # The engine is this answer's own. Nobody asks it again, however it was interrupted.
            errors.print("\n(stopped)", style="dim", highlight=False)
        self.messages.append({"role": "assistant", "content": stream.request.decoded()})

    def command(self, line: str) -> None:
        """Do what a line with a slash says.

        Raises
        ------
        ValueError
            There is no such command, or not with this argument.
        """
        name, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: console.print(HELP, markup=False, highlight=False),
            "weights": self.set_weights,
            "k": lambda text: self.set_number("k", int, text),
            "temperature": self.set_temperature,
            "tokens": lambda text: self.set_number("max_new_tokens", int, text),
            "system": self.set_system,
            "trace": self.show_trace,
            "retry": self.retry,
            "clear": self.clear,
            "save": self.save,
        }
        if name not in commands:
            raise ValueError(f"/{name} is no command; /help lists them")
        commands[name](rest)

    def change(self, **options: Any) -> None:
        """Take other options, if they are good."""
        changed = {**self.options, **options}
        self.ensemble.plan(changed)
        self.options = changed

    def set_weights(self, text: str) -> None:
        """Show or set the members' weights."""
        if text:
            self.change(weights=[_number(float, part, "weights") for part in text.replace(",", " ").split()])
        members = self.ensemble.members
        shares = self.ensemble.plan(self.options).step.step_weights(len(members))
        console.print(
            ", ".join(f"{member.name} {share:.3g}" for member, share in zip(members, shares)),
            markup=False,
            highlight=False,
        )

    def set_number(self, name: str, kind: Callable[[str], float], text: str) -> None:
        """Show or set an option that is a number."""
        if text:
            self.change(**{name: _number(kind, text, name)})
        plan = self.ensemble.plan(self.options)
        value = getattr(plan.step if name == "k" else plan.generation, name)
        console.print(f"{name} {value}", highlight=False)

    def set_temperature(self, text: str) -> None:
        """Show or set the temperature; 0 for greedy decoding."""
        if text:
            value = _number(float, text, "temperature")
            self.change(do_sample=value != 0, temperature=value or 1.0)
        generation = self.ensemble.plan(self.options).generation
        console.print(f"temperature {generation.temperature if generation.do_sample else 0}", highlight=False)

    def set_system(self, text: str) -> None:
        """Show or set the system message."""
        self.system = text or self.system
        console.print(f"system message: {self.system or 'none'}", markup=False, highlight=False)

    def show_trace(self, _: str) -> None:
        """Show who decided each token of the last answer."""
        from ..trace.terminal import print_trace

        if not self.traces:
            raise ValueError("/trace needs an answer that was not stopped, got none yet")
        print_trace(self.traces[-1], console)

    def retry(self, _: str) -> None:
        """Answer the last message again."""
        if len(self.messages) < 2:
            raise ValueError("/retry needs a message, got none yet")
        last = self.messages.pop()
        try:
            self.answer()
        except BaseException:
            self.messages.append(last)
            raise

    def clear(self, _: str) -> None:
        """Forget the chat; the system message and the options stay."""
        self.messages.clear()
        self.traces.clear()

    def save(self, text: str) -> None:
        """Write the chat or its traces into a file."""
        path = Path(text)
        if path.suffix.lower() == ".html":
            if not self.traces:
                raise ValueError("/save needs an answer that was not stopped, got none yet")
            save_and_say(self.traces, path)
        elif path.suffix.lower() == ".json":
            data = json.dumps({"messages": self.prompt()}, ensure_ascii=False)
            path.write_text(data + "\n", encoding="utf-8", errors="backslashreplace")
            errors.print(f"chat: {path} (--load goes on with it)", markup=False, highlight=False, soft_wrap=True)
        else:
            raise ValueError(f"/save must be given a .json file for the chat or .html for its traces, got {text!r}")


def chat(
    model: OptionalModels = None,
    demo: Annotated[bool, typer.Option("--demo", help="Talk with the models that ship with the package.")] = False,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    load: Annotated[Path | None, typer.Option(help="Go on with a chat that /save wrote.")] = None,
    k: Proposals = 10,
    primary: Primary = 0,
    weight: Weights = None,
    boundaries: Boundaries = "plain",
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token, above it samples.")] = 0.0,
    speculate: Annotated[str | None, typer.Option(help="Draft, as in `unite generate`; greedy answers only.")] = None,
    chat_template: ChatTemplates = None,
    chat_template_kwargs: ChatTemplateKwargs = None,
    dtype: Dtype = "auto",
    device: Devices = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Talk with several models that answer together. /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends.

    Examples:

        unite chat --demo

        unite chat --model A --model B --system "Be brief."
    """
    try:
        refuse_ranks("chat")
        from ..options import parse_speculate

        system, messages = _read_chat(load, system)
        options: dict[str, Any] = {
            "max_new_tokens": max_new_tokens, "do_sample": temperature != 0, "temperature": temperature or 1.0,
            "speculate": parse_speculate(speculate),
        }  # fmt: skip
        ensemble = load_ensemble(
            model, demo, prompts=[SAMPLE_CHAT], chat_template=chat_template, chat_template_kwargs=chat_template_kwargs,
            device=device, dtype=dtype, trust_remote_code=trust_remote_code, k=k, primary=primary, weights=weight,
            boundaries=boundaries,
        )  # fmt: skip
        session = Session(ensemble, {}, system, messages)
        session.change(**options)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise fail(error) from None
    names = " + ".join(member.name for member in ensemble.members)
    errors.print(f"{plain(names)}; /help lists the commands", style="dim", highlight=False, soft_wrap=True)
    session.run(_reader())


def _reader() -> Callable[[], str]:
    """What reads a line: with a prompt, editing and earlier lines where somebody types."""
    if not sys.stdin.isatty():
        return input
    with contextlib.suppress(ImportError):  # not on Windows
        import readline  # noqa: F401  # `input` uses it
    return lambda: input("> ")


def _read_chat(path: Path | None, system: str | None) -> tuple[str | None, list[dict[str, str]]]:
    """The system message and the messages of a file that /save wrote."""
    from ..members.prompts import check_prompt

    if path is None:
        return system, []
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))["messages"]
        if messages:
            check_prompt(messages)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--load must be a file that /save wrote, got {path}: {error}") from error
    if messages and messages[0]["role"] == "system":
        own = messages.pop(0)["content"]
        system = own if system is None else system
    return system, messages


def _number(kind: Callable[[str], float], text: str, name: str) -> float:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name} must be a number, got {text!r}") from None


def _shown(piece: str) -> str:
    """Text of a model for a terminal, which it must not command."""
    return "".join(c if c.isprintable() or c in "\n\t" else visible(c) for c in piece)
