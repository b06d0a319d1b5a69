"""What members have in common that encode prompts with a tokenizer of transformers, wherever their model runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from .base import BaseMember, Prompt, Variables
from .prompts import PromptEncoder


class TokenizedMember(BaseMember):
    """A member whose prompts a `PromptEncoder` turns into ids."""

    @property
    @abstractmethod
    def prompts(self) -> PromptEncoder:
        """How prompts become ids, with tokenizer and embedding as they are now."""

    def encode_prompt(self, prompt: Prompt, *, chat_template_kwargs: Variables | None = None) -> list[int]:
        """Ids of a prompt: text as the tokenizer encodes it (its own BOS included), or messages by its chat template.

        A last message of the assistant is continued. `chat_template_kwargs` are further variables for the template.

        Raises
        ------
        TypeError, ValueError
            Messages without a chat template or that it refuses, a prompt without any id, one longer than the model's
            context, or with ids that the model has no embedding for.
        """
        return self.prompts.encode(prompt, chat_template_kwargs)

    def encode_with(self, prompt: Prompt, variables: Variables) -> list[int]:
        """See `BaseMember.encode_with`."""
        return self.encode_prompt(prompt, chat_template_kwargs=variables)

    def check_ids(self, ids: Sequence[int]) -> None:
        """See `BaseMember.check_ids`."""
        self.prompts.check_rows(ids)

    @property
    def chat_template(self) -> str | None:
        """See `BaseMember.chat_template`."""
        return self.prompts.template

    def start_ids(self) -> list[int]:
        """See `BaseMember.start_ids`."""
        for start in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, *sorted(self.eos_token_ids)):
            if start is not None:
                return [start]
        return []

    def token_name(self, token_id: int) -> str:
        """See `BaseMember.token_name`."""
        return str(self.tokenizer.convert_ids_to_tokens(token_id))
