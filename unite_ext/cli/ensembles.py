"""The ensemble that a command keeps: named models, or those of the demo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .engines import Engines
from .prompts import prepare_members

if TYPE_CHECKING:
    from ..decoding.ensemble import UniteEnsemble
    from ..members.base import Prompt

SAMPLE_CHAT: Prompt = [{"role": "user", "content": "Hello"}]
"""What a chat template is tried with before any model is loaded."""


def load_ensemble(
    model: Sequence[str] | None,
    demo: bool,
    *,
    prompts: Sequence[Prompt],
    chat_template: Sequence[str] | None,
    chat_template_kwargs: Sequence[str] | None,
    device: Sequence[str] | None,
    dtype: str,
    trust_remote_code: bool,
    tokenizer: Sequence[str] | None = None,
    engines: Engines | None = None,
    in_ranks: bool = False,
    **options: Any,
) -> UniteEnsemble:
    """Load the members of --model, or the demo's three comparable ones.

    `prompts` are tried on every member first; `options` are those of `UniteEnsemble.from_pretrained`. With `in_ranks`
    the members may live in several processes, if a launcher has started these; this one leads them.

    Raises
    ------
    TypeError, ValueError
        Names the option, the member or the prompt.
    """
    from ..decoding.ensemble import UniteEnsemble

    if demo == bool(model):
        raise ValueError("give --model once per member, or --demo for the models that ship with the package")
    if demo:
        import torch

        from ..demo import CHAT_TEMPLATE, COMPARABLE, load_member

        given = {"--chat-template": chat_template, "--chat-template-kwargs": chat_template_kwargs, "--device": device}
        given |= {"--tokenizer": tokenizer, "--member-engine": engines.member_engine if engines else None}
        if wrong := [name for name, value in given.items() if value]:
            raise ValueError(f"{wrong[0]} must come with --model, got --demo")
        torch.set_num_threads(1)  # models this small gain nothing from a second thread
        options.pop("rank_timeout", None)
        return UniteEnsemble([load_member(name, chat_template=CHAT_TEMPLATE) for name in COMPARABLE], **options)
    sources = prepare_members(
        model or (), prompts, chat_template=chat_template, chat_template_kwargs=chat_template_kwargs, device=device,
        dtype=dtype, trust_remote_code=trust_remote_code, tokenizer=tokenizer, engines=engines, in_ranks=in_ranks,
    )  # fmt: skip
    return UniteEnsemble.from_pretrained(sources, ranks="led" if in_ranks else None, **options)
