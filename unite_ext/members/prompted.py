"""What all members with a tokenizer share: prompts to ids, start ids, and names of ids."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

from .base import BaseMember, Prompt, Variables
from .prompts import PromptEncoder


class PromptedMember(BaseMember):
    """A member whose prompts its tokenizer encodes."""

    @property
    @abstractmethod
    def prompts(self) -> PromptEncoder:
        """How prompts become ids."""

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


def configured_eos(config: object) -> list[int]:
    """The EOS ids of a generation config: a number, a tensor, or several of these; none without a config."""
    eos = getattr(config, "eos_token_id", None)
    if eos is None:
        return []
    ids = eos.tolist() if hasattr(eos, "tolist") else eos
    return [int(i) for i in (ids if isinstance(ids, Iterable) else [ids])]
