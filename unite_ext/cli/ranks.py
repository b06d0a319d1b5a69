"""Commands in several processes: rank 0 reads and speaks, the others hold members and follow it."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._launch import is_launched, launched_rank
from .prompts import prepare_members

if TYPE_CHECKING:
    from ..decoding.ensemble import UniteEnsemble

RankTimeout = Annotated[
    float,
    typer.Option(help="Under torchrun: seconds after which a process that does not answer ends the others."),
]


def is_follower() -> bool:
    """Whether this process only holds members, and another one speaks."""
    return launched_rank() > 0


def refuse_ranks(command: str) -> None:
    """Raise ValueError if a command that runs in one process was started in several."""
    if is_launched():
        raise ValueError(
            f"unite {command} must run in one process; torchrun starts unite generate, unite eval and unite serve"
        )


def check_launched(member_engine: Sequence[str] | None, on_member_failure: str = "stop") -> None:
    """Raise ValueError for what a command in several processes cannot have: their members run in them."""
    if not is_launched():
        return
    if member_engine:
        raise ValueError(
            f"--member-engine must not be given under torchrun, whose processes run all members, got {member_engine[0]}"
        )
    if on_member_failure != "stop":
        raise ValueError(f"--on-member-failure must be stop under torchrun, got {on_member_failure!r}")


def follow_ranks(
    model: Sequence[str],
    *,
    method_options: str | None,
    device: Sequence[str] | None,
    dtype: str,
    trust_remote_code: bool,
    tokenizer: Sequence[str] | None = None,
    serves: bool = False,
    **options: Any,
) -> None:
    """Load this process's members, and do what rank 0 is asked for until it is done.

    `options` are those of `UniteEnsemble.from_pretrained`. With `serves` signals are left to rank 0, which lets what
    runs finish.
    """
    from ..decoding.ensemble import UniteEnsemble
    from ..methods.registry import parse_options

    sources = prepare_members(
        model, (), chat_template=None, chat_template_kwargs=None, device=device, dtype=dtype,
        trust_remote_code=trust_remote_code, tokenizer=tokenizer, in_ranks=True,
    )  # fmt: skip
    options["method_options"] = parse_options(method_options)
    with ending_ranks(UniteEnsemble.from_pretrained(sources, ranks="led", **options)) as ensemble:
        if serves:
            leave_signals()
        ensemble.follow()


def leave_signals() -> None:
    """Take no notice of the signals that a launcher, or a terminal, sends to all processes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def ending_ranks(ensemble: UniteEnsemble) -> Iterator[UniteEnsemble]:
    """Let go of the other processes at the end; after an error they are told of it."""
    try:
        yield ensemble
    except BaseException as error:
        if ensemble.ranks is not None:
            ensemble.ranks.fail("was stopped" if isinstance(error, (KeyboardInterrupt, typer.Exit)) else error)
        raise
    ensemble.close()


def name_the_culprit() -> None:
    """After the end of one process a launcher stops the others: let them say first whose end it was."""
    if is_launched():
        signal.signal(signal.SIGTERM, _stopped)


def _stopped(number: int, frame: FrameType | None) -> None:
    from ..members.rank_group import RankError, open_group

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    group = open_group()
    raise RankError("stopped by the launcher" if group is None else group.stopped())
