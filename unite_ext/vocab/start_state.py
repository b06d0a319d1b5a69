"""Which members write a space before their text that is no part of it: the start state.

A tokenizer with a dummy prefix (Mistral, Llama-2) reads a text as if a space stood before it, also behind a special
token. And a chat template may write a space before an answer. In both cases the member means by ` The` what others mean
by `The`. What a member really does is seen from ids: those that its template, or its tokenizer, gives an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from .tokenizer_kinds import unknown_id
from .vocabulary import SPACE, Vocabulary

ANSWER = "hello"
"""A text that answers begin with, to see how a member writes it."""

_known: WeakKeyDictionary[Vocabulary, dict[tuple[int, bool], bool]] = WeakKeyDictionary()


def in_start_state(vocabulary: Vocabulary, prompt_ids: Sequence[int], answer_ids: Sequence[int] | None = None) -> bool:
    """Whether a member writes a space before what follows its prompt.

    Parameters
    ----------
    vocabulary : Vocabulary
        The member's; without its tokenizer the answer is no.
    prompt_ids : sequence of int
    answer_ids : sequence of int, optional
        What follows the prompt's ids when the member's chat template writes the conversation with `ANSWER`. Without
        these, the member's tokenizer decides, by the ids of `ANSWER` behind the prompt's last token; only behind an
        added token (special ones, as BOS or `[/INST]`, among them), since no tokenizer puts a space inside a text.
    """
    if vocabulary.parts is None:
        return False
    plain, spaced = (vocabulary.encode_continuation(lead + ANSWER.encode()) for lead in (b"", SPACE))
    if answer_ids is not None and list(answer_ids) in (plain, spaced):
        return list(answer_ids) == spaced
    return bool(prompt_ids) and _prefixes_after(vocabulary, prompt_ids[-1], len(prompt_ids) == 1, plain, spaced)


def _prefixes_after(vocabulary: Vocabulary, last: int, alone: bool, plain: list[int], spaced: list[int]) -> bool:
    """Whether the tokenizer puts a space before a text behind an added token, which may be all that is before it."""
    known = _known.setdefault(vocabulary, {})
    key = last, alone
    if key not in known:
        known[key] = _begins(_ids_after(vocabulary, last, alone), plain, spaced)
    return known[key]


def _begins(ids: Sequence[int], plain: list[int], spaced: list[int]) -> bool:
    return list(ids[: len(spaced)]) == spaced != plain


def _ids_after(vocabulary: Vocabulary, last: int, alone: bool) -> list[int]:
    """The tokenizer's ids of `ANSWER` behind an added token; none behind another token."""
    parts = vocabulary.parts
    content = next((t["content"] for t in parts.added_tokens if t["id"] == last), None) if parts else None
    if parts is None or content is None or last == unknown_id(parts):  # an unknown word is text
        return []
    if alone:  # the beginning of a text, whoever writes the token there
        return list(parts.backend.encode(ANSWER, add_special_tokens=False).ids)
    ids = list(parts.backend.encode(content + ANSWER, add_special_tokens=False).ids)
    return ids[ids.index(last) + 1 :] if last in ids else []
