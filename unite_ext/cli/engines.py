"""Which members run elsewhere than in this process: --member-engine and what belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..members.base import BaseMember, Variables

IN_PROCESS = "vllm"
"""The engine that needs no address."""

MemberEngine = Annotated[
    list[str] | None,
    typer.Option(
        help="Where a member runs: NAME=KIND:URL with vllm, sglang, llama.cpp or openai, or NAME=vllm for vLLM in this "
        "process. NAME is the --model, its last part, or its number from 0. May be repeated; see docs/members.md."
    ),
]
MemberTokenizer = Annotated[
    list[str] | None,
    typer.Option("--tokenizer", help="A tokenizer by name or folder, or own; for all or once per member."),
]
MemberKey = Annotated[
    list[str] | None,
    typer.Option(
        "--member-api-key-env", help="NAME=VARIABLE: the environment variable with the key of a member's server."
    ),
]
MemberTimeout = Annotated[
    float, typer.Option("--member-timeout", help="Seconds that a call of a member's server may take.")
]
Approximate = Annotated[
    bool, typer.Option("--approximate", help="Accept servers that do not give all that a step asks for (openai).")
]


@dataclass(frozen=True)
class Engines:
    """Where members run, as the command line says."""

    member_engine: Sequence[str] | None = None
    api_key_env: Sequence[str] | None = None
    timeout: float = 60.0
    approximate: bool = False

    def places(self, models: Sequence[str]) -> dict[int, str]:
        """Per member that runs elsewhere KIND or KIND:URL. ValueError names what is wrong."""
        return _by_member("--member-engine", "KIND:URL", self.member_engine, models)

    def make(
        self,
        models: Sequence[str],
        m: int,
        *,
        tokenizer: str | None,
        chat_template: str | None,
        chat_template_kwargs: Variables | None,
    ) -> BaseMember:
        """A member that runs elsewhere, which is asked about its model now."""
        kind, _, url = self.places(models)[m].partition(":")
        keys = _by_member("--member-api-key-env", "VARIABLE", self.api_key_env, models)
        if not url:
            if kind != IN_PROCESS:
                raise ValueError(f"--member-engine must be NAME=KIND:URL, got {models[m]}={kind}")
            from ..members.vllm import VllmMember

            return VllmMember(
                models[m], tokenizer=tokenizer, chat_template=chat_template, chat_template_kwargs=chat_template_kwargs
            )
        from ..members.http import HttpMember

        return HttpMember(
            url,
            protocol=kind,
            tokenizer=tokenizer or models[m],
            name=models[m],
            approximate=self.approximate,
            api_key_env=keys.get(m),
            timeout=self.timeout,
            chat_template=chat_template,
            chat_template_kwargs=chat_template_kwargs,
        )


def _by_member(option: str, form: str, given: Sequence[str] | None, models: Sequence[str]) -> dict[int, str]:
    """What an option NAME=... says, by the member's number."""
    from ..members.names import short_names

    found: dict[int, str] = {}
    short = short_names(models)
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise ValueError(f"{option} must be NAME={form}, got {text!r}")
        named = [m for m, model in enumerate(models) if name in (model, short[m], str(m))]
        if len(named) != 1:
            raise ValueError(f"{option} must name one of the members {', '.join(short)} or a number, got {name!r}")
        if named[0] in found:
            raise ValueError(f"{option} must be given once for {short[named[0]]}")
        found[named[0]] = value
    return found
