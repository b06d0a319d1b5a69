"""A member whose model runs behind a server: vLLM, SGLang, llama.cpp, or one that speaks OpenAI's interface.

Only token ids and log-probabilities travel. docs/members.md says what each server can and cannot give.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .._checks import check_choice, check_integer
from .base import Variables
from .http_client import HttpClient, Refused
from .prompts import SAMPLE
from .remote import AnswerError
from .remote_member import RemoteMember
from .servers.base import Facts, Server
from .servers.llama_cpp import LlamaCppServer
from .servers.openai import OpenAIServer
from .servers.sglang import SglangServer
from .servers.vllm import VllmServer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SERVERS: Mapping[str, type[Server]] = {
    kind.protocol: kind for kind in (VllmServer, SglangServer, LlamaCppServer, OpenAIServer)
}
"""Protocol to what speaks it."""
TEXT_TO_CHECK = f"{SAMPLE}.\n\tif (x != 1024): return 'done'"
"""What a server is asked to tokenize before any work."""


class HttpMember(RemoteMember):
    """A member behind a server.

    The server is asked about its model when the member is made: its context length, and the ids of a sample text.

    Parameters
    ----------
    url : str
        Where the server is, such as http://127.0.0.1:8000.
    protocol : str
        "vllm", "sglang", "llama.cpp" or "openai".
    tokenizer : str or transformers.PreTrainedTokenizerFast
        The model's tokenizer: a name, a folder, a .gguf file, or loaded.
    model : str, optional
        What the server calls the model; by default the only one that it has.
    name : str, optional
        What messages call the member; by default the server's name of the model.
    approximate : bool
        Accept a protocol that does not give all that a step asks for: "openai".
    api_key_env : str, optional
        The environment variable with the key that the server wants.
    eos_token_ids : sequence of int, optional
        The ids that end a text beside the tokenizer's own; by default those of the generation config beside the
        tokenizer, if there is one.
    context_length : int, optional
        The longest text, where the server does not say.
    max_logprobs : int, optional
        The most ids that the server lists: 20 of vLLM (its --max-logprobs) and OpenAI by default.
    timeout : float
        Seconds that one call may wait for an answer.
    retries : int
        How often a call is tried again when the server is away, too busy (429) or broken (5xx).
    concurrency : int
        How many calls may be under way.
    chat_template, chat_template_kwargs
        As `Member`.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong, or the tokenizer is not that of the server's model.
    ConnectionError
        The server cannot be asked.
    """

    def __init__(
        self,
        url: str,
        *,
        protocol: str,
        tokenizer: str | PreTrainedTokenizerBase,
        model: str | None = None,
        name: str | None = None,
        approximate: bool = False,
        api_key_env: str | None = None,
        eos_token_ids: Sequence[int] | None = None,
        context_length: int | None = None,
        max_logprobs: int | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        concurrency: int = 32,
        chat_template: str | Path | None = None,
        chat_template_kwargs: Variables | None = None,
    ) -> None:
        check_choice("protocol", protocol, tuple(SERVERS))
        if SERVERS[protocol].approximate and not approximate:
            raise ValueError(
                f"approximate must be True with protocol {protocol!r}, whose servers do not give all that steps ask for"
            )
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
            raise ValueError(f"timeout must be seconds above 0, got {timeout!r}")
        check_integer("retries", retries, 0, 100)
        check_integer("concurrency", concurrency, 1, 4096)
        if max_logprobs is not None:
            check_integer("max_logprobs", max_logprobs, 1, 2**31)
        client = HttpClient(
            url, api_key_env=api_key_env, timeout=timeout, retries=retries, connections=concurrency
        )  # it sends nothing yet
        super().__init__(
            tokenizer,
            name=name or model or url,
            eos_token_ids=eos_token_ids,
            concurrency=concurrency,
            chat_template=chat_template,
            chat_template_kwargs=chat_template_kwargs,
        )
        self.backend: Server = SERVERS[protocol](client, self.tokenizer, model)
        if max_logprobs is not None:
            self.backend.most = max_logprobs
            self.backend.usual = min(self.backend.usual, max_logprobs)
        facts = self._connect()
        self.name = name or facts.model or url
        self.context_length = context_length or facts.context_length

    def _connect(self) -> Facts:
        """What the server tells, checked against the tokenizer."""
        try:
            facts = self.backend.connect(TEXT_TO_CHECK)
        except Refused as error:
            if error.status in (401, 403):
                raise ValueError(
                    f"{self.name}: api_key_env must name a variable with the server's key ({error})"
                ) from None
            raise ConnectionError(f"{self.name}: {error}") from error
        except AnswerError as error:
            raise ConnectionError(f"{self.name}: {error}") from error
        own = list(self.tokenizer(TEXT_TO_CHECK, add_special_tokens=False).input_ids)
        if facts.tokenized is not None and list(facts.tokenized) != own:
            raise ValueError(
                f"tokenizer must be that of {self.name}'s model: it makes {own[:8]}... of a sample text, the server "
                f"{list(facts.tokenized)[:8]}..."
            )
        if facts.num_tokens is not None and facts.num_tokens - len(own) not in (0, 1):  # perhaps with BOS
            raise ValueError(
                f"tokenizer must be that of {self.name}'s model: it makes {len(own)} ids of a sample text, the server "
                f"{facts.num_tokens}"
            )
        if facts.num_ids is not None and facts.num_ids < self.num_logits:
            raise ValueError(
                f"tokenizer must be that of {self.name}'s model: it has {self.num_logits} ids, the server "
                f"{facts.num_ids}"
            )
        if facts.tokenized is None and not self.backend.approximate:
            warnings.warn(
                f"{self.name}: the server does not say how it tokenizes, so that the tokenizer is not checked",
                stacklevel=4,
            )
        return facts

    def __repr__(self) -> str:
        return f"HttpMember({self.name}: {self.backend.protocol} at {self.backend.client.url})"
