"""The bodies that clients send: what they may hold is checked here, whatever the members are."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

NEUTRAL: dict[str, tuple[object, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "functions": ([],),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_cache_key": (),
    "reasoning_effort": ("none",),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
"""OpenAI's fields that this server does not have, and the values with which they ask for nothing."""
MESSAGE_NEUTRAL: dict[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}
"""The same of a chat message, as clients send back what they were answered."""


class Body(BaseModel):
    """A JSON object: no field but its own, no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _without_nothing(given: object, neutral: dict[str, tuple[object, ...]]) -> object:
    """Leave out nulls and fields that ask for nothing; refuse by name those that ask for what there is not."""
    if not isinstance(given, dict):
        return given
    kept = {}
    for name, value in given.items():
        if value is None:
            continue
        if name in neutral:
            if any(value == asked and type(value) in (type(asked), float) for asked in neutral[name]):
                continue
            raise refused(name, f"{name} is not supported by this server")
        kept[name] = value
    return kept


def refused(field: str, message: str) -> PydanticCustomError:
    """The error of one field of a body."""
    return PydanticCustomError("refused", "{message}", {"message": message, "field": field})


def _texts(given: object) -> object:
    """One text, or several."""
    several = given if isinstance(given, list) else [given]
    if not all(isinstance(text, str) for text in several):
        raise refused(
            "prompt",
            "prompt must be text or a list of texts, got something else: ids would be those of one member's tokenizer",
        )
    return given


def _stops(given: object) -> object:
    several = given if isinstance(given, list) else [given]
    if len(several) > MAX_STOPS or not all(isinstance(text, str) and text for text in several):
        raise refused("stop", f"stop must be a text or up to {MAX_STOPS} texts, none of them empty")
    return given


MAX_STOPS = 16
MAX_LOGPROBS = 20

Texts = Annotated[str | list[str], BeforeValidator(_texts)]
Stops = Annotated[str | list[str], BeforeValidator(_stops)]


class StreamOptions(Body):
    """How a stream is sent."""

    include_usage: bool = False
    """Whether a last chunk tells how many tokens it was."""
    include_obfuscation: Literal[False] | None = None


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]

    @property
    def json_schema_asked(self) -> dict[str, Any] | None:
        """The schema that the text has to follow, None for any text."""
        return None


class JsonObjectFormat(Body):
    """A JSON object."""

    type: Literal["json_object"]

    @property
    def json_schema_asked(self) -> dict[str, Any] | None:
        """See `TextFormat`."""
        return {"type": "object"}


class NamedSchema(Body):
    """A JSON schema as OpenAI wraps it."""

    model_config = ConfigDict(serialize_by_alias=True)

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None
    """Texts follow the schema either way."""


class JsonSchemaFormat(Body):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema

    @property
    def json_schema_asked(self) -> dict[str, Any] | None:
        """See `TextFormat`."""
        return self.json_schema.schema_


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class UniteFields(Body):
    """What an ensemble has beyond OpenAI's interface; with the Python client in `extra_body={"unite": {...}}`."""

    k: int | None = Field(default=None, ge=1)
    """How many tokens every member proposes per step."""
    weights: list[float] | None = Field(default=None, min_length=1, max_length=64)
    """One per member."""
    boundaries: Literal["plain", "exact"] | None = None
    """Whether members vote on tokens or on bytes; logprobs and traces are then those of bytes."""
    method: str | None = None
    """What decides a step, one of those that the server was started with."""
    trace: bool = False
    """Return who decided each token."""
    regex: str | None = None
    """The whole text matches this regular expression."""
    grammar: str | None = None
    """The text follows this grammar, in GBNF."""


class Sampling(Body):
    """The fields that both kinds of request have."""

    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int = Field(default=1, ge=1)
    stop: Stops | None = Field(default=None)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    response_format: ResponseFormat | None = None
    """JSON that follows a schema, any JSON object, or text."""
    unite: UniteFields = Field(default_factory=UniteFields)

    @model_validator(mode="before")
    @classmethod
    def leave_out_nothing(cls, given: object) -> object:
        """Fields that ask for nothing may be there."""
        return _without_nothing(given, NEUTRAL)

    @model_validator(mode="after")
    def check_stream(self) -> Sampling:
        """Options of a stream belong to a stream."""
        if self.stream_options is not None and not self.stream:
            raise refused("stream_options", "stream_options must come with stream: true, got no stream")
        return self


class CompletionBody(Sampling):
    """The body of /v1/completions."""

    prompt: Texts
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    """How many alternatives every token has."""


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] = ""

    @model_validator(mode="before")
    @classmethod
    def leave_out_nothing(cls, given: object) -> object:
        """What an assistant's message holds beside its text must be empty."""
        return _without_nothing(given, MESSAGE_NEUTRAL)

    def plain(self) -> dict[str, str]:
        """The message for a member's chat template: templates know `system`, not its new name."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatBody(Sampling):
    """The body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def check_fields(self) -> ChatBody:
        """Fields that belong together."""
        if self.top_logprobs is not None and not self.logprobs:
            raise refused("top_logprobs", "top_logprobs must come with logprobs: true, got no logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise refused(
                "max_completion_tokens",
                "max_completion_tokens must be given without max_tokens, its older name, got both",
            )
        return self
