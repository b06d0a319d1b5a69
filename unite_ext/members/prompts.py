"""A member's prompts: text or chat messages to ids, with what is wrong said before any model runs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from .base import Message, Prompt, Variables

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OWN, PLAIN = "own", "plain"
"""Chat templates by name: the tokenizer's, and "Role: content" for models that have none."""

SAMPLE = "Seven cats sat on 12 mats and then ran home"
"""Letters, digits and single spaces: every tokenizer that works gives these back, but perhaps their case."""

_NOTHING = {"role": "assistant", "content": ""}


class PromptTooLong(ValueError):
    """A prompt does not fit into a member's context."""


@dataclass(frozen=True)
class PromptEncoder:
    """How one member turns prompts into ids.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerFast
    name : str
        What messages call the member.
    rows : int, optional
        How many ids the model has an embedding for; not checked where it is not known.
    context_length : int, optional
        The longest text the model was made for.
    chat_template : str, optional
        "plain", or a Jinja template in place of the tokenizer's own.
    chat_template_kwargs : mapping
        Variables for the template (`enable_thinking`, `tools`, ...).
    """

    tokenizer: PreTrainedTokenizerBase
    name: str
    rows: int | None = None
    context_length: int | None = None
    chat_template: str | None = None
    chat_template_kwargs: Variables = field(default_factory=dict)

    @property
    def template(self) -> str | None:
        """What chat messages are written by, None without anything."""
        return self.chat_template or getattr(self.tokenizer, "chat_template", None)

    def encode(self, prompt: Prompt, variables: Variables | None = None) -> list[int]:
        """Ids of a prompt: text as the tokenizer encodes it (its own BOS included), or messages by the chat template.

        Raises
        ------
        PromptTooLong
            It does not fit into the member's context.
        TypeError, ValueError
            What the prompt or the template does wrong; names the member where it matters.
        """
        check_prompt(prompt)
        if isinstance(prompt, str):
            ids = self._encode_text(prompt)
        elif self.chat_template == PLAIN:
            ids = self._encode_text(plain_chat(prompt))
        else:
            text = self.render(prompt, variables)
            check_unicode(text)
            ids = list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        if not ids:
            bos = self.tokenizer.bos_token_id
            if bos is None:
                raise ValueError(f"prompts must not be empty: {self.name} has no BOS token to start from")
            ids = [bos]
        self._check_ids(ids)
        return ids

    def render(self, messages: Sequence[Message], variables: Variables | None = None) -> str:
        """Messages as text: the template's, up to where the assistant is to go on.

        A last message of the assistant is continued, not closed.
        """
        messages = list(messages)
        if self.chat_template == PLAIN:
            return plain_chat(messages)
        if not self.template:
            raise ValueError(
                f"{self.name} has no chat template: give its prompts as text, or chat_template='plain' "
                "(--chat-template plain) to write messages as 'User: ...'"
            )
        continued = _is_continued(messages)
        if messages[-1] == _NOTHING:
            messages.pop()  # nothing to continue
        settings: dict[str, Any] = {
            "add_generation_prompt": not continued,
            "continue_final_message": continued,
            **self.chat_template_kwargs,
            **(variables or {}),
            "tokenize": False,
        }
        if self.chat_template is not None:
            settings["chat_template"] = self.chat_template
        try:
            return str(self.tokenizer.apply_chat_template([dict(m) for m in messages], **settings))
        except Exception as error:  # Jinja's own, what templates raise for messages they do not know, missing packages
            raise ValueError(f"{self.name}'s chat template refuses the messages: {one_line(error)}") from error

    def answer_ids(
        self, messages: Sequence[Message], ids: Sequence[int], answer: str, variables: Variables | None = None
    ) -> list[int] | None:
        """See `BaseMember.answer_ids`; also None where a last message of the assistant is continued."""
        if _is_continued(messages):
            return None
        before = messages[:-1] if messages[-1] == _NOTHING else messages
        try:
            text = self.render([*before, {"role": "assistant", "content": answer}], variables)
        except ValueError:  # a template need not take two messages of the assistant, or a `developer` before one
            return None
        plain = self.chat_template == PLAIN
        whole = self._encode_text(text) if plain else self.tokenizer(text, add_special_tokens=False).input_ids
        return list(whole[len(ids) :]) if list(whole[: len(ids)]) == list(ids) else None

    def _encode_text(self, text: str) -> list[int]:
        check_unicode(text)
        ids = list(self.tokenizer(text, verbose=False).input_ids)  # too long is an error below, not a warning
        # A tokenizer may close what it encodes (T5, BERT); the model is to go on.
        return ids[:-1] if ids and ids[-1] in self._closing_ids() else ids

    def _closing_ids(self) -> set[int]:
        plain = self.tokenizer("", add_special_tokens=True).input_ids
        closing = {self.tokenizer.eos_token_id, getattr(self.tokenizer, "sep_token_id", None)}
        return {i for i in plain[-1:] if i in closing and i != self.tokenizer.bos_token_id}

    def _check_ids(self, ids: Sequence[int]) -> None:
        if self.context_length is not None and len(ids) >= self.context_length:
            raise PromptTooLong(
                f"a prompt takes {len(ids)} tokens in {self.name}, whose context holds {self.context_length}: "
                "shorten it, the new tokens need room as well"
            )
        self.check_rows(ids)

    def check_rows(self, ids: Sequence[int]) -> None:
        """Raise ValueError unless there are ids, and the model has an embedding for each."""
        if not ids or min(ids) < 0:
            raise ValueError(f"a prompt must have ids from 0 on in {self.name}, got {list(ids)[:8]}")
        if self.rows is not None and (highest := max(ids)) >= self.rows:
            raise ValueError(
                f"a prompt has id {highest} ({self.tokenizer.convert_ids_to_tokens(highest)!r}) in {self.name}, whose "
                f"model has embeddings for ids below {self.rows}: was a token added without "
                "model.resize_token_embeddings?"
            )


def check_prompt(prompt: object) -> None:
    """A prompt is text, or a list of messages with a role each."""
    if isinstance(prompt, str):
        return
    if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
        raise TypeError(f"a prompt must be text or a list of chat messages, got {type(prompt).__name__}")
    if not prompt:
        raise ValueError("a prompt must be text or at least one chat message, got an empty list")
    for message in prompt:
        if not isinstance(message, Mapping):
            raise TypeError(f"a chat message must map 'role' and 'content', got {type(message).__name__}")
        if not isinstance(message.get("role"), str):
            raise ValueError(f"a chat message must have a 'role', got {dict(message)!r}")


def check_unicode(text: str) -> None:
    """Text is made of whole characters: half of a surrogate pair has no bytes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a prompt must be whole Unicode characters, got the lone surrogate {text[error.start]!a} at character "
            f"{error.start}"
        ) from error


def plain_chat(messages: Sequence[Message]) -> str:
    """Messages as "Role: content" with a blank line between, for models without a chat template.

    >>> plain_chat([{"role": "user", "content": "Hi"}])
    'User: Hi\\n\\nAssistant:'
    """
    open_end = {"role": "assistant", "content": ""}
    texts = [
        (m["role"], _content(m)) for m in (messages if messages[-1]["role"] == "assistant" else [*messages, open_end])
    ]
    return "\n\n".join(f"{role.capitalize()}: {text}" if text else f"{role.capitalize()}:" for role, text in texts)


def read_chat_template(value: str | Path | None) -> str | None:
    """A chat template from what a user named: "own" (None), "plain", a template's text, or the path of a file."""
    if value is None or value == OWN:
        return None
    if value == PLAIN:
        return PLAIN
    if isinstance(value, str) and ("{" in value or "\n" in value):
        return value
    path = Path(value)
    if not path.is_file():
        raise ValueError(f"chat_template must be 'own', 'plain', a Jinja template or a file with one, got {value!s}")
    return path.read_text(encoding="utf-8-sig")


def check_spelling(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Warn when a tokenizer does not give back what it encodes, as when its class is not that of its file."""
    ids = tokenizer(SAMPLE, add_special_tokens=False).input_ids
    said = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if said.strip().casefold() != SAMPLE.casefold():
        warnings.warn(
            f"{name}'s tokenizer ({type(tokenizer).__name__}) encodes {SAMPLE!r} as ids that say {said!r}: its prompts "
            "will be wrong; is tokenizer_class in its tokenizer_config.json the class of its tokenizer.json?",
            stacklevel=3,
        )


def check_against_file(tokenizer: PreTrainedTokenizerBase, name: str, file: Path) -> None:
    """Warn when a tokenizer gives other ids than its tokenizer.json, as when its class is not that of the file.

    A class may replace the file's own parts. Only where it has is the file read as a tokenizer of its own.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not file.is_file():
        return
    text = file.read_text(encoding="utf-8")
    parts = json.loads(text)
    own = {part: getattr(backend, part) for part in ("normalizer", "pre_tokenizer")}
    if all((parts.get(p) or None) == (json.loads(found.__getstate__()) if found else None) for p, found in own.items()):
        return
    said = list(Tokenizer.from_str(text).encode(SAMPLE, add_special_tokens=False).ids)
    ids = list(tokenizer(SAMPLE, add_special_tokens=False).input_ids)
    if ids != said:
        warnings.warn(
            f"{name}'s tokenizer ({type(tokenizer).__name__}) encodes {SAMPLE!r} as {ids[:12]}, but its tokenizer.json "
            f"as {said[:12]}: its prompts will be wrong; is tokenizer_class in its tokenizer_config.json the class of "
            "its tokenizer.json?",
            stacklevel=3,
        )


def one_line(error: BaseException) -> str:
    """What an exception says first, on one line, for a message that has it as its cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _is_continued(messages: Sequence[Message]) -> bool:
    return messages[-1]["role"] == "assistant" and bool(messages[-1].get("content"))


def _content(message: Message) -> str:
    """A message's text; parts of text are joined."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and all(
        isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content
    ):
        return "".join(part["text"] for part in content)
    raise ValueError(f"a chat message must have text as its 'content', got {content!r}")
