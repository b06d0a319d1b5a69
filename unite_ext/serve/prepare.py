"""From a body to a job: options checked, prompts encoded, limits kept. Runs beside the event loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .._checks import check_choice
from ..decoding.ensemble import UniteEnsemble
from ..decoding.plan import Plan
from ..decoding.prompt_ids import EncodedPrompt, encode_prompt
from ..members.base import Prompt
from ..members.prompts import PromptTooLong
from .errors import ApiError
from .options import ServeOptions
from .schema import ChatBody, CompletionBody, Sampling, UniteFields

COMPLETION_TOKENS = 16
"""New tokens of a completion that does not say how many, as OpenAI has it."""

_FIELDS = {
    "max_new_tokens": "max_tokens",
    "k": "unite.k",
    "members": "unite.k",  # members * k
    "weights": "unite.weights",
    "boundaries": "unite.boundaries",
    "method": "unite.method",
    "do_sample": "temperature",
    "json_schema": "response_format",
    "json_schema:": "response_format",
    "regex": "unite.regex",
    "grammar": "unite.grammar",
    **{name: name for name in ("max_tokens", "temperature", "top_p", "stop", "seed", "n", "logprobs")},
}
"""The first word of a message to the field that it is about."""


class Preparer:
    """Makes plans of bodies and ids of prompts, for one server.

    Parameters
    ----------
    ensemble : UniteEnsemble
    options : ServeOptions

    Raises
    ------
    TypeError, ValueError
        A method of the options is unknown, or cannot be served with these members.
    """

    def __init__(self, ensemble: UniteEnsemble, options: ServeOptions) -> None:
        self._ensemble = ensemble
        self._options = options
        self.plans = {name: self._own_plan(name) for name in options.methods}
        """Every method that requests may choose, made once."""
        self._most_bytes = min(
            (
                member.context_length * max(map(len, vocabulary.token_bytes))
                for member, vocabulary in zip(ensemble.members, ensemble.alignment.vocabularies)
                if member.context_length is not None
            ),
            default=None,
        )

    @property
    def default(self) -> Plan:
        """The plan of requests that ask for nothing."""
        return self.plans[self._options.methods[0]]

    def _own_plan(self, method: str) -> Plan:
        given = {} if method == self._ensemble.method else {"method": method}
        plan = self._ensemble.plan(given)
        plan.token_method  # noqa: B018  # raises for a method that has no steps
        if self._options.temperature and not plan.token_method.samples:
            raise ValueError(f"temperature must be 0 with method {method!r}, which takes the best token")
        return plan

    def plan(self, body: Sampling) -> Plan:
        """What a body asks for.

        Raises
        ------
        ApiError
        """
        try:
            step = self._with_step(body.unite)
            generation = self._generation(body, exact=step.step.boundaries == "exact")
            plan = self._ensemble.plan({**generation, "method": step.method, "boundaries": step.step.boundaries})
        except (TypeError, ValueError) as error:
            raise _bad_request(error) from error
        return replace(step, generation=plan.generation)

    def _with_step(self, asked: UniteFields) -> Plan:
        """The method and the step's options that are asked for."""
        name = self._options.methods[0] if asked.method is None else asked.method
        check_choice("method", name, self._options.methods)
        plan = self.plans[name]
        fields = ("k", "weights", "boundaries")
        step = {field: value for field in fields if (value := getattr(asked, field)) is not None}
        if not step:
            return plan
        if plan.method.is_large:
            raise ValueError(f"{next(iter(step))} must be the server's with method {name!r}, which is made once")
        given: dict[str, object] = {} if name == self._ensemble.method else {"method": name}
        return self._ensemble.plan({**given, **step})

    def _generation(self, body: Sampling, *, exact: bool) -> dict[str, object]:
        """The options of a generation that a body asks for; `exact` is said of its boundaries."""
        limit = self._options.max_tokens
        if isinstance(body, ChatBody):
            asked = body.max_completion_tokens or body.max_tokens or limit
        else:
            asked = body.max_tokens or min(COMPLETION_TOKENS, limit)
        if asked > limit:
            raise ApiError(400, f"max_tokens must be from 1 to {limit}, got {asked}", param="max_tokens")
        temperature = self._options.temperature if body.temperature is None else body.temperature
        samples = temperature > 0
        speculate = self._options.speculate
        if exact and (speculate is True or speculate == "auto"):
            speculate = False
        return {
            "max_new_tokens": asked,
            "stop": body.stop,
            "seed": body.seed,
            "do_sample": samples,
            "temperature": temperature if samples else 1.0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "speculate": False if samples and not exact else speculate,
            "json_schema": None if body.response_format is None else body.response_format.json_schema_asked,
            "regex": body.unite.regex,
            "grammar": body.unite.grammar,
        }

    def encode(self, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
        """Every prompt's ids in every member.

        Raises
        ------
        ApiError
            A prompt is too long, or some member cannot take it.
        """
        encoded = []
        for prompt in prompts:
            self._check_size(prompt)
            try:
                own = encode_prompt(self._ensemble.members, self._ensemble.alignment.vocabularies, prompt)
            except PromptTooLong as error:
                raise ApiError(400, str(error), param="prompt", code="context_length_exceeded") from error
            except (TypeError, ValueError) as error:
                raise ApiError(400, str(error), param="prompt") from error
            limit, longest = self._options.max_prompt_tokens, max(map(len, own.ids))
            if limit is not None and longest > limit:
                raise ApiError(
                    400, f"a prompt must have at most {limit} tokens, got {longest}", param="prompt",
                    code="context_length_exceeded",
                )  # fmt: skip
            encoded.append(own)
        return encoded

    def _check_size(self, prompt: Prompt) -> None:
        """Refuse what cannot fit, however long its tokens are: encoding it would take much memory."""
        texts = [prompt] if isinstance(prompt, str) else [str(message["content"]) for message in prompt]
        size = sum(map(len, texts))  # characters, of which none has less than a byte
        if self._most_bytes is not None and size > self._most_bytes:
            raise ApiError(
                400, f"a prompt must have at most {self._most_bytes} characters to fit into the members' contexts, got "
                f"{size}", param="prompt", code="context_length_exceeded",
            )  # fmt: skip


def prompts_of(body: Sampling) -> list[Prompt]:
    """The prompts of a body: one or several texts, or one chat."""
    if isinstance(body, ChatBody):
        return [[message.plain() for message in body.messages]]
    assert isinstance(body, CompletionBody)
    return [body.prompt] if isinstance(body.prompt, str) else list(body.prompt)


def num_texts(body: Sampling, options: ServeOptions) -> int:
    """How many texts a body asks for. ApiError if it is too many, or none."""
    prompts = 1 if isinstance(body, ChatBody) or isinstance(getattr(body, "prompt", ""), str) else len(prompts_of(body))
    if not prompts:
        raise ApiError(400, "prompt must hold at least one text, got none", param="prompt")
    limit = options.max_choices
    if body.n * prompts > limit:
        message = f"n must be such that all prompts together have at most {limit} texts, got {body.n * prompts}"
        raise ApiError(400, message, param="n")
    return body.n * prompts


def _bad_request(error: Exception) -> ApiError:
    """What one of our checks says, with the field that it is about."""
    message = str(error)
    return ApiError(400, message, param=_FIELDS.get(message.split(" ")[0]))
