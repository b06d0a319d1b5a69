"""What clients are answered: the objects of OpenAI's interface, whole and in chunks."""

from __future__ import annotations

import codecs
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence

from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletion

from ..decoding.request import Request
from ..members.names import short_names
from ..trace import Trace
from ..trace.files import to_json
from .jobs import Choice, Job, Token
from .schema import ChatBody, CompletionBody
from .token_details import Logprob, TokenDetails

FINISH = {"eos": "stop", "stop": "stop", "length": "length"}
"""Our reasons to end a text, and OpenAI's."""


class Reply(ABC):
    """The answer to one client's request; a subclass for either kind.

    Parameters
    ----------
    job : Job
    details : TokenDetails
    model : str
        The name that the client used.
    """

    prefix: str
    whole_kind: str
    chunk_kind: str

    def __init__(self, job: Job, details: TokenDetails, model: str) -> None:
        self.job = job
        self.details = details
        self.head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    @staticmethod
    def finish_of(request: Request) -> str:
        """Why a text ended, in OpenAI's words."""
        return FINISH[request.finish_reason]

    def whole(self, traces: Sequence[Trace] | None) -> dict[str, object]:
        """The answer in one piece, when all texts are there; with their traces, if these were asked for."""
        choices = []
        for choice in self.job.choices:
            request = ended_request(choice)
            shown = self._choice(choice, request.decoded(), self.finish_of(request))
            shown["logprobs"] = self._logprobs(choice, self.details.of_request(request), request.text)
            if traces is not None:
                shown["unite"] = {"trace": to_json([traces[choice.index]])}
            choices.append(shown)
        return {**self.head, "object": self.whole_kind, "choices": choices, "usage": self.usage()}

    def chunk(
        self,
        choice: Choice,
        piece: str,
        tokens: Sequence[Token],
        finish: str | None,
        unite: dict[str, object] | None,
        usage: bool,
    ) -> dict[str, object]:
        """A piece of one text; with `usage` every chunk has that field, as the last one fills it."""
        shown = self._delta(choice, piece, finish)
        shown["logprobs"] = self._logprobs(choice, tokens, None)
        if unite is not None:
            shown["unite"] = unite
        return {**self.head, "object": self.chunk_kind, "choices": [shown], **({"usage": None} if usage else {})}

    def last_chunk(self) -> dict[str, object]:
        """The chunk that has no text and says how many tokens it was."""
        return {**self.head, "object": self.chunk_kind, "choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, object]:
        """Tokens as the primary counts them, and beside them every member's."""
        names = short_names(self.details.names)
        prompts = {choice.prompt: choice.encoded.ids for choice in self.job.choices}  # one of them has several texts
        requests = [ended_request(choice) for choice in self.job.choices]
        read = [sum(len(ids[m]) for ids in prompts.values()) for m in range(len(names))]
        written = [sum(len(request.token_ids(m)) for request in requests) for m in range(len(names))]
        prompt, completion = read[self.details.primary], written[self.details.primary]
        usage = CompletionUsage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)
        members = [
            {"name": name, "prompt_tokens": r, "completion_tokens": w} for name, r, w in zip(names, read, written)
        ]
        return {**usage.model_dump(exclude_none=True), "unite": {"members": members}}

    @abstractmethod
    def check(self, whole: dict[str, object]) -> None:
        """Raise unless this is what OpenAI's types take."""

    @abstractmethod
    def first_chunk(self, choice: Choice) -> dict[str, object] | None:
        """What is sent of a text before its first piece."""

    @abstractmethod
    def _choice(self, choice: Choice, text: str, finish: str) -> dict[str, object]: ...

    @abstractmethod
    def _delta(self, choice: Choice, piece: str, finish: str | None) -> dict[str, object]: ...

    @abstractmethod
    def _logprobs(self, choice: Choice, tokens: Sequence[Token], text: bytes | bytearray | None) -> object: ...


class ChatReply(Reply):
    """The answer to /v1/chat/completions."""

    prefix, whole_kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, job: Job, details: TokenDetails, model: str, body: ChatBody) -> None:
        super().__init__(job, details, model)
        self._top = (body.top_logprobs or 0) if body.logprobs else None

    def check(self, whole: dict[str, object]) -> None:
        """See `Reply.check`."""
        ChatCompletion.model_validate(whole)

    def first_chunk(self, choice: Choice) -> dict[str, object] | None:
        """See `Reply.first_chunk`: who speaks."""
        delta = {"role": "assistant", "content": ""}
        shown = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
        return {**self.head, "object": self.chunk_kind, "choices": [shown]}

    def _choice(self, choice: Choice, text: str, finish: str) -> dict[str, object]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": choice.index, "message": message, "finish_reason": finish}

    def _delta(self, choice: Choice, piece: str, finish: str | None) -> dict[str, object]:
        return {"index": choice.index, "delta": {"content": piece} if piece else {}, "finish_reason": finish}

    def _logprobs(self, choice: Choice, tokens: Sequence[Token], text: bytes | bytearray | None) -> object:
        if self._top is None:
            return None
        found = [self.details.logprobs(token, self._top) for token in tokens if token.token_id is not None]
        content = [
            {**_as_json(taken), "top_logprobs": [_as_json(other) for other in others]} for taken, others in found
        ]
        return {"content": content, "refusal": None}


class CompletionReply(Reply):
    """The answer to /v1/completions."""

    prefix, whole_kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, job: Job, details: TokenDetails, model: str, body: CompletionBody) -> None:
        super().__init__(job, details, model)
        self._top = body.logprobs
        self._offsets = [0] * len(job.choices)
        self._decoders = [codecs.getincrementaldecoder("utf-8")(errors="replace") for _ in job.choices]

    def check(self, whole: dict[str, object]) -> None:
        """See `Reply.check`."""
        Completion.model_validate(whole)

    def first_chunk(self, choice: Choice) -> dict[str, object] | None:
        """See `Reply.first_chunk`: nothing."""
        return None

    def _choice(self, choice: Choice, text: str, finish: str) -> dict[str, object]:
        return {"index": choice.index, "text": text, "finish_reason": finish}

    def _delta(self, choice: Choice, piece: str, finish: str | None) -> dict[str, object]:
        return {"index": choice.index, "text": piece, "finish_reason": finish}

    def _logprobs(self, choice: Choice, tokens: Sequence[Token], text: bytes | bytearray | None) -> object:
        if self._top is None:
            return None
        shown: dict[str, list[object]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            if token.token_id is None:
                continue
            taken, others = self.details.logprobs(token, self._top)
            shown["tokens"].append(taken.text)
            shown["token_logprobs"].append(taken.logprob)
            shown["top_logprobs"].append({other.text: other.logprob for other in others})
            shown["text_offset"].append(self._offsets[choice.index])
            # Characters that end here: what begins one counts it when it is whole, as the text does.
            self._offsets[choice.index] += len(self._decoders[choice.index].decode(token.data))
        return shown


def ended_request(choice: Choice) -> Request:
    """The engine's request of a text that is whole."""
    assert choice.request is not None
    return choice.request


def _as_json(entry: Logprob) -> dict[str, object]:
    return {
        "token": entry.text,
        "logprob": entry.logprob,
        "bytes": None if entry.data is None else list(entry.data),
    }
