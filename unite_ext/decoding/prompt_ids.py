"""A prompt in every member's ids, and which members write a space behind it that is no part of the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..members.base import BaseMember, Prompt, Variables
from ..vocab.start_state import ANSWER, in_start_state
from ..vocab.vocabulary import Vocabulary


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as an engine takes it. Get it with `encode_prompt` or `ids_as_prompt`."""

    ids: list[list[int]]
    """Per member."""
    starts: tuple[bool, ...]
    """Per member whether it is in the start state, see `unite_ext.vocab.start_state`."""


def encode_prompt(
    members: Sequence[BaseMember],
    vocabularies: Sequence[Vocabulary],
    prompt: Prompt,
    variables: Sequence[Variables | None] | None = None,
) -> EncodedPrompt:
    """A prompt in every member, with each member's further variables for its chat template.

    Raises
    ------
    TypeError, ValueError
        Some member cannot take it.
    """
    each = [None] * len(members) if variables is None else variables
    ids = [
        member.encode_prompt(prompt) if own is None else member.encode_with(prompt, own)
        for member, own in zip(members, each)
    ]
    answers = [None] * len(members) if isinstance(prompt, str) else [
        member.answer_ids(prompt, ids[m], ANSWER, own) for m, (member, own) in enumerate(zip(members, each))
    ]  # fmt: skip
    return EncodedPrompt(ids, tuple(map(in_start_state, vocabularies, ids, answers)))


def ids_as_prompt(vocabularies: Sequence[Vocabulary], ids: Sequence[Sequence[int]]) -> EncodedPrompt:
    """A prompt that is given in every member's ids."""
    return EncodedPrompt([list(own) for own in ids], tuple(map(in_start_state, vocabularies, ids)))
