"""Several Hugging Face models generate one text together: the decode loop around `unite_step`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, overload

from .._arguments import MAX_MEMBERS, check_integer
from ..members.transformers import Member, Prompt, load_members
from ..methods.registry import OUTPUT_METHODS, TOKEN_METHODS, UNITE, Method, check_loadable, choose_rows, make_method
from ..trace import Trace
from ..vocab.alignment import VocabAlignment
from .config import STEP_DEFAULTS, take_step_options
from .decode_loop import DecodeLoop
from .generation import GenerateOutput, Row, TextStream


class UniteEnsemble:
    """Language models of different families that choose every next token together.

    Parameters
    ----------
    models : sequence
        1 to 8 loaded causal language models, or `Member`s.
    tokenizers : sequence, optional
        Their fast tokenizers; not with `Member`s, which have theirs.
    k, primary, weights, score, duplicates
        Of every step, see `unite_step`; `generate` can override them.
    method : str or Method
        What decides a step: "unite", another of `unite_ext.baselines.METHODS`, or an object of one's own.
    method_options : mapping, optional
        The method's own options.
    lossy : bool
        Accept tokenizers that lower-case or strip accents.
    alignment : VocabAlignment, optional
        Made from exactly these tokenizers; built (or read from the cache folder) by default.
    compile : bool
        Run the members through `torch.compile` on caches of fixed shape, and on CUDA devices as CUDA graphs. The first
        steps compile for a while; worth it for many or long texts. Needs transformers 5.

    Attributes
    ----------
    members : list of Member
    alignment : VocabAlignment
        On the primary's device, where the steps run.
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
        method: str | Method = UNITE,
        method_options: Mapping[str, Any] | None = None,
        lossy: bool = False,
        alignment: VocabAlignment | None = None,
        compile: bool = False,
    ) -> None:
        if isinstance(models, str) or not isinstance(models, Sequence):
            raise TypeError(f"models must be a list of loaded models, got {type(models).__name__}")
        if not 1 <= len(models) <= MAX_MEMBERS:
            raise ValueError(f"models must hold 1 to {MAX_MEMBERS} members, got {len(models)}")
        if tokenizers is not None and len(tokenizers) != len(models):
            raise ValueError(f"tokenizers must hold one per model, {len(models)}, got {len(tokenizers)}")
        self.step_options: dict[str, Any] = {
            "k": k, "primary": primary, "weights": weights, "score": score, "duplicates": duplicates, "method": method,
            "method_options": method_options,
        }  # fmt: skip
        take_step_options({}, self.step_options, len(models))
        self.compile = compile
        self.members: list[Member] = []
        for m, model in enumerate(models):
            if not isinstance(model, Member):
                if tokenizers is None:
                    raise ValueError("tokenizers must be given for models that are not Members")
                model = Member(model, tokenizers[m])
            self.members.append(model)
        if alignment is None:
            alignment = VocabAlignment.from_tokenizers(
                [member.tokenizer for member in self.members],
                eos_token_ids=[member.eos_token_ids for member in self.members],
                lossy=lossy,
            )
        elif alignment.num_members != len(self.members):
            raise ValueError(f"alignment must have {len(self.members)} members, got {alignment.num_members}")
        self.alignment: VocabAlignment = alignment.to(self.members[primary].device)
        for member, size in zip(self.members, alignment.vocab_sizes):
            if member.num_logits < size:
                raise ValueError(
                    f"{member.name} has {member.num_logits} logits, but its tokenizer's highest eligible id is "
                    f"{size - 1}: is this the model's own tokenizer?"
                )

        self._alone: dict[int, UniteEnsemble] = {}
        self._made: tuple[str, Any] = ("", None)
        self.method_for(self.step_options)

    @classmethod
    def from_pretrained(
        cls, names: Sequence[str], *, lossy: bool = False, compile: bool = False, **options: Any
    ) -> UniteEnsemble:
        """Load the members by Hugging Face name, local folder or .gguf file.

        `k`, `primary`, `weights`, `score`, `duplicates`, `method` and `compile` are the ensemble's. Every other option
        goes to `Member.from_pretrained` (`dtype`, `device`, `device_map`, `quantization_config`, `attn_implementation`,
        `trust_remote_code`, `revision`, `tokenizer`, `chat_template`, ...); a list gives each member its own.

        Examples
        --------
        >>> ens = UniteEnsemble.from_pretrained([a, b], dtype=torch.bfloat16, device=["cuda:0", "cuda:1"])
        """
        if isinstance(names, str):
            raise TypeError(f"names must be a list of model names, got the string {names!r}")
        if not 1 <= len(names) <= MAX_MEMBERS:
            raise ValueError(f"names must hold 1 to {MAX_MEMBERS} models, got {len(names)}")
        step = take_step_options(options, STEP_DEFAULTS, len(names))
        for name, value in options.items():
            if isinstance(value, (list, tuple)) and len(value) != len(names):
                raise ValueError(f"{name} must be one value or one per member, {len(names)}, got {len(value)}")
        own = [{o: v[m] if isinstance(v, (list, tuple)) else v for o, v in options.items()} for m in range(len(names))]
        check_loadable(names, step, own, lossy)
        members = load_members(names, own, known=(*STEP_DEFAULTS, "lossy", "compile"))
        return cls(members, lossy=lossy, compile=compile, **step)

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
            Of `GenerationOptions`, and `k`, `primary`, `weights`, `score`, `duplicates` for this call.

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
        batch, single = _as_batch(prompts)
        each = self.generate_each(batch, batch_size=batch_size, progress=progress, trace=return_dict, **options)
        rows = sorted(each, key=lambda row: row.index)
        if return_dict:
            return GenerateOutput(
                texts=[row.decoded() for row in rows],
                token_ids=[[row.ids if s is None else list(s.ids) for s in row.syncs] for row in rows],
                finish_reasons=[row.finish_reason for row in rows],
                num_steps=[row.num_steps for row in rows],
                gated_steps=[row.gated_steps for row in rows],
                traces=[row.traces for row in rows],
            )
        texts = [row.decoded() for row in rows]
        return texts[0] if single else texts

    def generate_each(
        self,
        prompts: Sequence[Prompt],
        *,
        batch_size: int | None = None,
        progress: bool = False,
        trace: bool = False,
        indices: Sequence[int] | None = None,
        **options: Any,
    ) -> Iterator[Row]:
        """Yield every prompt's `Row` as it finishes; `row.index` says whose it is, `row.decoded()` is its text.

        Arguments as `generate`; `trace` keeps the trace of every step. `indices` numbers the prompts, 0, 1, ... by
        default; sampling draws by it.
        """
        if batch_size is not None:
            check_integer("batch_size", batch_size, 1, 2**31)
        indices = range(len(prompts)) if indices is None else indices
        if len(indices) != len(prompts):
            raise ValueError(f"indices must hold one number per prompt, {len(prompts)}, got {len(indices)}")
        step = take_step_options(options, self.step_options, len(self.members))
        if step["method"] in OUTPUT_METHODS:
            return choose_rows(
                self, step, prompts, indices, batch_size=batch_size, progress=progress, trace=trace, **options
            )
        run = DecodeLoop(self, {**options, **step}, trace)
        return self._generate_each(run, [run.encode(p) for p in prompts], indices, batch_size, progress)

    def _generate_each(
        self,
        run: DecodeLoop,
        encoded: list[list[list[int]]],
        indices: Sequence[int],
        batch_size: int | None,
        progress: bool,
    ) -> Iterator[Row]:
        from tqdm import tqdm

        size = batch_size or max(1, len(encoded))
        with tqdm(total=len(encoded), desc="Generating", unit="prompt", disable=not progress) as bar:
            for start in range(0, len(encoded), size):
                stop = start + size
                for _, finished in run.decode(encoded[start:stop], indices[start:stop]):
                    for row in finished:
                        bar.update()
                        yield row

    def stream(self, prompt: Prompt, *, trace: bool = False, **options: Any) -> TextStream:
        """Yield the text of one prompt piece by piece, never half a character.

        `trace` keeps the trace of every step in the `row` of what this returns.
        """
        run = DecodeLoop(self, options, trace)
        encoded = run.encode(prompt)
        batches = run.decode([encoded], [0])
        return TextStream(row for rows, finished in batches for row in (*rows, *finished))

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
        method = options.get("method", self.step_options["method"])
        if method in OUTPUT_METHODS:
            raise ValueError(f"method {method!r} chooses among whole answers: it has no steps to trace")
        batch, single = _as_batch(prompts)
        rows = self.generate_each(batch, batch_size=batch_size, progress=progress, trace=True, **options)
        traces = {row.index: Trace.from_row(self, row, batch[row.index], options) for row in rows}
        return traces[0] if single else [traces[i] for i in range(len(batch))]

    def alone(self, m: int) -> UniteEnsemble:
        """Member m by itself, which then generates as it would without the others."""
        if m not in self._alone:
            self._alone[m] = UniteEnsemble([self.members[m]], lossy=True)
        return self._alone[m]

    def method_for(self, step: Mapping[str, Any]) -> Any:
        """The token-level method of these step options, if it is one; the last is kept, as some take long."""
        if isinstance(step["method"], Method) or step["method"] not in TOKEN_METHODS:
            return step["method"] if isinstance(step["method"], Method) else None
        key = repr(sorted(step.items()))
        if self._made[0] != key:
            self._made = ("", None)  # some are large: let go of the last one first
            self._made = (key, make_method(step["method"], self, step))
        return self._made[1]

    def __repr__(self) -> str:
        members = ", ".join(member.name for member in self.members)
        step = self.step_options
        return f"UniteEnsemble({members}; primary {self.members[step['primary']].name}, k={step['k']})"


def _as_batch(prompts: Any) -> tuple[Sequence[Prompt], bool]:
    """The prompts, and whether there was a single one: a string, or a list of messages."""
    if not isinstance(prompts, Sequence):
        raise TypeError(f"prompts must be text, chat messages, or a list of these, got {type(prompts).__name__}")
    single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], dict))
    return ([prompts] if single else prompts), single
