"""An ensemble of loaded models: what people call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, overload

from .._checks import check_integer
from .._core import MAX_MEMBERS
from ..members.base import BaseMember, Prompt
from ..members.rank_group import RANK_TIMEOUT
from ..members.static_cache import check_static_cache
from ..members.transformers import Member
from ..methods.base import AnswerMethod, Method
from ..methods.registry import UNITE, check_method
from ..options import STEP_FIELDS, StepOptions, step_options
from ..trace import Trace
from ..vocab.alignment import VocabAlignment
from .answers import choose_answers
from .ensemble_engines import EnsembleEngines
from .load import Loadable, TemplateVariables, as_batch, load_members, variables_of_members
from .plan import METHOD_FIELDS
from .prompt_ids import encode_prompt
from .rank_calls import Ranks
from .request import GenerateOutput, Request
from .text_stream import TextStream
from .tracing import check_traced, make_trace


class UniteEnsemble(EnsembleEngines):
    """Language models of different families that choose every next token together.

    Parameters
    ----------
    models : sequence
        1 to 8 loaded causal language models, or members (`Member`, or another kind of `BaseMember`).
    tokenizers : sequence, optional
        Their fast tokenizers; not with members, which have theirs.
    k, primary, weights, score, duplicates, combine, boundaries
        Of every step, see `StepOptions`; `generate` can override them.
    method : str or Method
        What decides a step: "unite", another of `unite_ext.methods.registry.METHODS`, or an object of one's own.
    method_options : mapping, optional
        The method's own options.
    lossy : bool
        Accept tokenizers that lower-case or strip accents.
    alignment : VocabAlignment, optional
        Made from exactly these tokenizers; built (or read from the cache folder) by default.
    compile : bool
        Run the members through `torch.compile` on caches of fixed shape, and on CUDA devices as CUDA graphs. The first
        steps compile for a while; worth it for many or long texts. Needs transformers 5.4.
    ranks : Ranks, optional
        Where the members live, if in several processes; `from_pretrained` fills it in.

    Attributes
    ----------
    members : list of BaseMember
    alignment : VocabAlignment
        On the primary's device, where the steps run.
    step_options : StepOptions
    """

    def __init__(
        self,
        models: Sequence[Any],
        tokenizers: Sequence[Any] | None = None,
        *,
        k: int = 10,
        primary: int = 0,
        weights: Sequence[float] | None = None,
        score: str = "logits",
        duplicates: str = "repeat",
        combine: str = "mean",
        boundaries: str = "plain",
        method: str | Method = UNITE,
        method_options: Mapping[str, Any] | None = None,
        lossy: bool = False,
        alignment: VocabAlignment | None = None,
        compile: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        if isinstance(models, str) or not isinstance(models, Sequence):
            raise TypeError(f"models must be a list of loaded models, got {type(models).__name__}")
        if not 1 <= len(models) <= MAX_MEMBERS:
            raise ValueError(f"models must hold 1 to {MAX_MEMBERS} members, got {len(models)}")
        if tokenizers is not None and len(tokenizers) != len(models):
            raise ValueError(f"tokenizers must hold one per model, {len(models)}, got {len(tokenizers)}")
        given = {"k": k, "primary": primary, "weights": weights, "score": score, "duplicates": duplicates}
        given |= {"combine": combine, "boundaries": boundaries}
        step = step_options(given, StepOptions()).check(len(models))
        check_method(method, method_options, len(models))
        if compile:
            check_static_cache()
        members: list[BaseMember] = []
        for m, model in enumerate(models):
            if not isinstance(model, BaseMember):
                if tokenizers is None:
                    raise ValueError("tokenizers must be given for models that are not Members")
                model = Member(model, tokenizers[m])
            members.append(model)
        if alignment is None:
            alignment = VocabAlignment.from_tokenizers(
                [member.tokenizer for member in members],
                eos_token_ids=[member.eos_token_ids for member in members],
                lossy=lossy,
            )
        elif alignment.num_members != len(members):
            raise ValueError(f"alignment must have {len(members)} members, got {alignment.num_members}")
        for member, size in zip(members, alignment.vocab_sizes):
            if member.num_logits < size:
                raise ValueError(
                    f"{member.name} has {member.num_logits} logits, but its tokenizer's highest eligible id is "
                    f"{size - 1}: is this the model's own tokenizer?"
                )
        self._alone: dict[int, UniteEnsemble] = {}
        super().__init__(
            members, alignment, step, method=method, method_options=method_options, compile=compile, ranks=ranks
        )

    @classmethod
    def from_pretrained(
        cls,
        names: Sequence[Loadable],
        *,
        lossy: bool = False,
        compile: bool = False,
        ranks: str | None = None,
        rank_timeout: float = RANK_TIMEOUT,
        **options: Any,
    ) -> UniteEnsemble:
        """Load the members by Hugging Face name, folder or .gguf file; those that are members already stay as they are.

        `k`, `primary`, `weights`, `score`, `duplicates`, `combine`, `method` and `compile` are the ensemble's. Every
        other option goes to `Member.from_pretrained` (`dtype`, `device`, `device_map`, `quantization_config`,
        `attn_implementation`, `trust_remote_code`, `revision`, `tokenizer`, `chat_template`, ...); a list gives each
        member its own.

        With `ranks` the members live in the processes that torchrun has started, each in one of them, and a step
        exchanges a few hundred bytes; see docs/members.md. "auto": every process runs the same script and makes the
        same calls. "led": the others than rank 0 call `follow`. Without torchrun there is one process. One that does
        not answer for `rank_timeout` seconds ends the others with a `RankError` that names it and its member.

        Examples
        --------
        >>> ens = UniteEnsemble.from_pretrained([a, b], dtype=torch.bfloat16, device=["cuda:0", "cuda:1"])
        """
        if compile:
            check_static_cache()
        members, ours, found = load_members(names, options, lossy=lossy, ranks=ranks, rank_timeout=rank_timeout)
        return cls(members, lossy=lossy, compile=compile, ranks=found, **ours)

    def alone(self, m: int) -> UniteEnsemble:
        """Member m by itself, which then generates as it would without the others."""
        if m not in self._alone:
            ranks = None if self.ranks is None else self.ranks.of_member(m)
            self._alone[m] = UniteEnsemble([self.members[m]], lossy=True, ranks=ranks)
        return self._alone[m]

    # A string is a sequence of strings as well: the first overload that fits counts.
    @overload
    def generate(  # pyright: ignore[reportOverlappingOverload]
        self,
        prompts: Prompt,
        *,
        return_dict: Literal[False] = False,
        batch_size: int | None = None,
        progress: bool = False,
        **options: Any,
    ) -> str: ...
    @overload
    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        return_dict: Literal[False] = False,
        batch_size: int | None = None,
        progress: bool = False,
        **options: Any,
    ) -> list[str]: ...
    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        return_dict: Literal[True],
        batch_size: int | None = None,
        progress: bool = False,
        **options: Any,
    ) -> GenerateOutput: ...
    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        return_dict: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
        **options: Any,
    ) -> str | list[str] | GenerateOutput: ...

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        return_dict: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
        **options: Any,
    ) -> str | list[str] | GenerateOutput:
        """Generate text for one prompt or several.

        Parameters
        ----------
        prompts : str, messages, or a list of these
            Text, or chat messages ({"role": ..., "content": ...}) for every member's own chat template.
        return_dict : bool
            Return a `GenerateOutput` with ids, finish reasons and the trace of every step.
        batch_size : int, optional
            How many prompts run side by side; all by default. What a row gives does not depend on it.
        progress : bool
            Show a progress bar over the prompts.
        **options
            Of `GenerationOptions` and `StepOptions`, for this call; and `chat_template_kwargs`, see `generate_each`.

        Returns
        -------
        str or list of str or GenerateOutput
            A string for a single prompt; a list for a list.

        Raises
        ------
        TypeError, ValueError
            An option or a prompt is wrong; no model has run.
        RuntimeError
            A member is out of memory; says which and what to try.
        """
        batch, single = as_batch(prompts)
        each = self.generate_each(batch, batch_size=batch_size, progress=progress, trace=return_dict, **options)
        requests = sorted(each, key=lambda request: request.index)
        texts = [request.decoded() for request in requests]
        if not return_dict:
            return texts[0] if single else texts
        return GenerateOutput.of(requests)

    def generate_each(
        self,
        prompts: Sequence[Prompt],
        *,
        batch_size: int | None = None,
        progress: bool = False,
        trace: bool = False,
        indices: Sequence[int] | None = None,
        chat_template_kwargs: TemplateVariables = None,
        **options: Any,
    ) -> Iterator[Request]:
        """Yield every prompt's `Request` as it finishes: `index` says whose it is, `decoded()` is its text.

        Arguments as `generate`; `trace` keeps a record of every step. `indices` numbers the prompts, 0, 1, ... by
        default; sampling draws by it. A prompt that fails raises its error when the others have finished.
        `chat_template_kwargs` are further variables for the members' chat templates, for all members or a list with one
        mapping (or None) per member.
        """
        if batch_size is not None:
            check_integer("batch_size", batch_size, 1, 2**31)
        variables = variables_of_members(chat_template_kwargs, len(self.members))
        indices = range(len(prompts)) if indices is None else indices
        if len(indices) != len(prompts):
            raise ValueError(f"indices must hold one number per prompt, {len(prompts)}, got {len(indices)}")
        plan = self.plan(options)
        if isinstance(plan.method, AnswerMethod):
            if plan.generation.speculate:
                raise ValueError(f"speculate must be False with method {plan.method.name!r}: it has no steps")
            others = {name: value for name, value in options.items() if name not in (*STEP_FIELDS, *METHOD_FIELDS)}
            order = [plan.step.primary, *(m for m in range(len(self.members)) if m != plan.step.primary)]
            # Every member takes all prompts before any of them runs: what one of them refuses is found out at once.
            runs = [
                self.alone(m).generate_each(
                    prompts,
                    indices=indices,
                    batch_size=batch_size,
                    progress=progress,
                    trace=trace,
                    chat_template_kwargs=variables[m],
                    **others,
                )
                for m in order
            ]
            return choose_answers(plan.method, runs, prompts, indices)
        vocabularies = self.alignment.vocabularies
        encoded = [encode_prompt(self.members, vocabularies, prompt, variables) for prompt in prompts]
        longest = max((len(ids) for own in encoded for ids in own.ids), default=0)
        engine = self.new_engine(
            plan,
            max_requests=batch_size or max(1, len(prompts)),
            expected_length=longest + plan.generation.max_new_tokens,
        )
        seed = self.draw_seed(plan)
        for own, index in zip(encoded, indices):
            engine.submit(own, plan.token_method, plan.generation, index=index, seed=seed, keeps_records=trace)
        return engine.run(progress=progress)

    def stream(
        self, prompt: Prompt, *, trace: bool = False, chat_template_kwargs: TemplateVariables = None, **options: Any
    ) -> TextStream:
        """Yield the text of one prompt piece by piece, never half a character.

        `trace` keeps the record of every step in the `request` of what this returns. `chat_template_kwargs` as
        `generate_each`.
        """
        plan = self.plan(options)
        if isinstance(plan.method, AnswerMethod):
            raise ValueError(
                f"method {plan.method.name!r} chooses among whole answers, which cannot be streamed: use generate"
            )
        variables = variables_of_members(chat_template_kwargs, len(self.members))
        encoded = encode_prompt(self.members, self.alignment.vocabularies, prompt, variables)
        longest = max(map(len, encoded.ids)) + plan.generation.max_new_tokens
        engine = self.new_engine(plan, max_requests=1, expected_length=longest)
        request = engine.submit(
            encoded, plan.token_method, plan.generation, index=0, seed=self.draw_seed(plan), keeps_records=trace
        )
        return TextStream(engine, request)

    @overload
    def trace(  # pyright: ignore[reportOverlappingOverload]
        self, prompts: Prompt, *, batch_size: int | None = None, progress: bool = False, **options: Any
    ) -> Trace: ...
    @overload
    def trace(
        self, prompts: Sequence[Prompt], *, batch_size: int | None = None, progress: bool = False, **options: Any
    ) -> list[Trace]: ...

    def trace(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        batch_size: int | None = None,
        progress: bool = False,
        **options: Any,
    ) -> Trace | list[Trace]:
        """Generate as `generate`, and return who decided each token and what every member thought.

        Returns
        -------
        Trace or list of Trace
            One for a single prompt; a list for a list.

        Examples
        --------
        >>> ens.trace("Once upon a time", max_new_tokens=64).save("trace.html")
        """
        check_traced(options.get("method", self.method))
        batch, single = as_batch(prompts)
        requests = self.generate_each(batch, batch_size=batch_size, progress=progress, trace=True, **options)
        options.pop("chat_template_kwargs", None)  # the requests have used it
        traces = {r.index: self.trace_of(r, batch[r.index], **options) for r in requests}
        return traces[0] if single else [traces[i] for i in range(len(batch))]

    def trace_of(self, request: Request, prompt: Prompt, **options: Any) -> Trace:
        """The trace of a finished request of `generate_each` or `stream` with `trace=True` and these options."""
        return make_trace(request, prompt, self.plan(options), self.members, self.alignment)
