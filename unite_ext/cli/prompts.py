"""The prompts of a command line: read from arguments, files or standard input, and tried before any model is loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._jsonl import decode, read_lines, read_records
from .engines import Engines

if TYPE_CHECKING:
    from ..members.base import BaseMember, Prompt
    from ..members.loading import MemberSource

_RECORD = "a JSON object with 'prompt' or 'messages'"


def read_prompts(prompt: list[str] | None, file: Path | None, chat: bool, system: str | None) -> list[Prompt]:
    """The prompts that --prompt, --file or standard input give; with `chat` as messages."""
    if prompt and file:
        raise ValueError("give --prompt or --file, not both")
    if system is not None and not chat:
        raise ValueError("--system needs --chat")
    prompts: list[Prompt]
    if prompt:
        prompts = list(prompt)
    elif file:
        prompts = read_file(file)
    elif not sys.stdin.isatty():
        prompts = [_read_stdin()]
    else:
        raise ValueError("no prompt: give --prompt, --file, or text on standard input")
    if not prompts or prompts == [""]:
        raise ValueError("no prompt: the input is empty")
    if chat:
        first = [] if system is None else [{"role": "system", "content": system}]
        prompts = [[*first, {"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
    return prompts


def read_file(file: Path) -> list[Prompt]:
    """The prompts of a file: one on each line that is not blank, as text or as JSON by the file's ending."""
    from ..members.prompts import check_prompt

    if file.suffix not in (".jsonl", ".json"):
        return [line for _, line in read_lines(file)]
    prompts: list[Prompt] = []
    for number, record in read_records(file, expected=_RECORD):
        place = f"{file}, line {number}"
        if isinstance(record, dict) and record.get("messages") is not None:
            found: Any = record["messages"]
            if not isinstance(found, list):
                raise ValueError(f"{place}: 'messages' must be a list of chat messages, got {type(found).__name__}")
        else:
            found = record.get("prompt") if isinstance(record, dict) else record
            if not isinstance(found, str):
                raise ValueError(f"{place}: must be {_RECORD}, got {json.dumps(record)[:60]}")
        try:
            check_prompt(found)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{place}: {error}") from error
        prompts.append(found)
    return prompts


def prepare_members(
    models: Sequence[str],
    prompts: Sequence[Prompt],
    *,
    chat_template: Sequence[str] | None,
    chat_template_kwargs: Sequence[str] | None,
    device: Sequence[str] | None,
    tokenizer: Sequence[str] | None = None,
    engines: Engines | None = None,
    in_ranks: bool = False,
    **options: Any,
) -> list[MemberSource | BaseMember]:
    """Members that can be loaded, or run elsewhere, and take all prompts: what they refuse is said now.

    Servers are asked when everything that needs none is known to be right.

    `in_ranks`: they may live in several processes, if a launcher has started these.

    Raises
    ------
    TypeError, ValueError
        Names the option, the member or the prompt.
    """
    from ..members.loading import MemberSource, prepare_all
    from ..members.prompts import OWN
    from ..members.rank_group import layout
    from ..members.tokenized import TokenizedMember

    if not any(isinstance(prompt, list) for prompt in prompts):
        for option, value in (("--chat-template", chat_template), ("--chat-template-kwargs", chat_template_kwargs)):
            if value:
                raise ValueError(f"{option} needs --chat, or messages in --file")
    templates = per_member("--chat-template", chat_template, models)
    variables = [_variables(text) for text in per_member("--chat-template-kwargs", chat_template_kwargs, models)]
    devices = per_member("--device", device, models)
    tokenizers = [None if name == OWN else name for name in per_member("--tokenizer", tokenizer, models)]
    engines = engines or Engines()
    elsewhere = engines.places(models)
    here = [m for m in range(len(models)) if m not in elsewhere]
    loaded = prepare_all(
        [models[m] for m in here],
        [
            {
                **options, "chat_template": templates[m], "chat_template_kwargs": variables[m], "device": devices[m],
                **({"tokenizer": tokenizers[m]} if tokenizers[m] else {}),
            }
            for m in here
        ],
        places=layout(len(models)) if in_ranks else None,
    )  # fmt: skip
    found: dict[int, MemberSource | BaseMember] = dict(zip(here, loaded))
    for m in elsewhere:
        found[m] = engines.make(
            models, m, tokenizer=tokenizers[m], chat_template=templates[m], chat_template_kwargs=variables[m]
        )
    sources = [found[m] for m in range(len(models))]
    encoders = [source.prompts for source in sources if isinstance(source, (MemberSource, TokenizedMember))]
    for i, prompt in enumerate(prompts):
        for encoder in encoders:
            try:
                encoder.encode(prompt)
            except (TypeError, ValueError) as error:
                raise ValueError(f"prompt {i}: {error}" if len(prompts) > 1 else str(error)) from error
    return sources


def read_templates(named: Sequence[str]) -> list[str]:
    """What --chat-template names: "own", "plain", or the content of a file."""
    from ..members.prompts import read_chat_template

    return [read_chat_template(name) or name for name in named]


def per_member(option: str, values: Sequence[str] | None, models: Sequence[str]) -> list[str | None]:
    """An option that is given for all members or once per member."""
    if not values:
        return [None] * len(models)
    if len(values) not in (1, len(models)):
        raise ValueError(f"{option} must be given once, or once per --model, {len(models)}; got {len(values)}")
    return [*values] * (len(models) if len(values) == 1 else 1)


def _variables(text: str | None) -> dict[str, object] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"--chat-template-kwargs must be a JSON object, got {text}")
    return found


def _read_stdin() -> str:
    return decode(sys.stdin.buffer.read(), place="standard input").replace("\r\n", "\n").removesuffix("\n")
