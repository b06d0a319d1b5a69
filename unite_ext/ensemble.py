"""Several Hugging Face models generate one text together: the decode loop around `unite_step`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ._arguments import MAX_MEMBERS, check_integer, check_step_options, normalize_weights
from .alignment import VocabAlignment
from .baselines import (
    OUTPUT_METHODS, TOKEN_METHODS, UNITE, check_loadable, check_method, choose_rows, make_method,
)  # fmt: skip
from .baselines.method import Method
from .generation import GenerateOutput, GenerationOptions, Row, StepTrace, TextPieces, sample
from .kv_cache import RaggedCache
from .member import Member, Prompt
from .ops import unite_step
from .reference import StepResult
from .text_sync import TextSync

logger = logging.getLogger(__name__)

_STEP_DEFAULTS = {
    "k": 10, "primary": 0, "weights": None, "score": "logits", "duplicates": "repeat", "method": UNITE,
    "method_options": None,
}  # fmt: skip


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
    ) -> None:
        if isinstance(models, str) or not isinstance(models, Sequence):
            raise TypeError(f"models must be a list of loaded models, got {type(models).__name__}")
        if not 1 <= len(models) <= MAX_MEMBERS:
            raise ValueError(f"models must hold 1 to {MAX_MEMBERS} members, got {len(models)}")
        if tokenizers is not None and len(tokenizers) != len(models):
            raise ValueError(f"tokenizers must hold one per model, {len(models)}, got {len(tokenizers)}")
        self._step = {
            "k": k, "primary": primary, "weights": weights, "score": score, "duplicates": duplicates, "method": method,
            "method_options": method_options,
        }  # fmt: skip
        _take_step_options({}, self._step, len(models))
        self.members = []
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
        self.alignment = alignment.to(self.members[primary].device)
        for member, size in zip(self.members, alignment.vocab_sizes):
            if member.num_logits < size:
                raise ValueError(
                    f"{member.name} has {member.num_logits} logits, but its tokenizer's highest eligible id is "
                    f"{size - 1}: is this the model's own tokenizer?"
                )

        self._alone: dict[int, UniteEnsemble] = {}
        self._made: tuple[str, Any] = ("", None)
        self._method(self._step)

    @classmethod
    def from_pretrained(cls, names: Sequence[str], *, lossy: bool = False, **options: Any) -> UniteEnsemble:
        """Load the members by Hugging Face name or local folder.

        `k`, `primary`, `weights`, `score`, `duplicates` and `method` are the ensemble's. Every other option goes
        to `Member.from_pretrained` (`dtype`, `device`, `device_map`, `quantization_config`, `attn_implementation`,
        `trust_remote_code`, `revision`, `tokenizer`, ...); a list gives each member its own.

        Examples
        --------
        >>> ens = UniteEnsemble.from_pretrained([a, b], dtype=torch.bfloat16, device=["cuda:0", "cuda:1"])
        """
        if isinstance(names, str):
            raise TypeError(f"names must be a list of model names, got the string {names!r}")
        if not 1 <= len(names) <= MAX_MEMBERS:
            raise ValueError(f"names must hold 1 to {MAX_MEMBERS} models, got {len(names)}")
        step = _take_step_options(options, _STEP_DEFAULTS, len(names))
        for name, value in options.items():
            if isinstance(value, (list, tuple)) and len(value) != len(names):
                raise ValueError(f"{name} must be one value or one per member, {len(names)}, got {len(value)}")
        own = [
            {o: v[m] if isinstance(v, (list, tuple)) else v for o, v in options.items()} for m in range(len(names))
        ]
        check_loadable(names, step, own, lossy)
        members = [Member.from_pretrained(name, **member_options) for name, member_options in zip(names, own)]
        return cls(members, lossy=lossy, **step)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        return_dict: bool = False,
        batch_size: int | None = None,
        progress: bool = False,
        **options: Any,
    ) -> Any:
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
        single = _is_single(prompts)
        batch = [prompts] if single else prompts
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
        step = _take_step_options(options, self._step, len(self.members))
        if step["method"] in OUTPUT_METHODS:
            return choose_rows(
                self, step, prompts, indices, batch_size=batch_size, progress=progress, trace=trace, **options
            )
        run = _Run(self, {**options, **step}, trace)
        return self._generate_each(run, [run.encode(p) for p in prompts], indices, batch_size, progress)

    def _generate_each(
        self, run: _Run, encoded: list[list[list[int]]], indices: Sequence[int], batch_size: int | None, progress: bool
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

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """Yield the text of one prompt piece by piece, never half a character."""
        run = _Run(self, options, trace=False)
        encoded = run.encode(prompt)

        def pieces() -> Iterator[str]:
            decoder = TextPieces()
            for rows, finished in run.decode([encoded], [0]):
                for row in (*rows, *finished):
                    if piece := decoder.next(row):
                        yield piece

        return pieces()

    def alone(self, m: int) -> UniteEnsemble:
        """Member m by itself, which then generates as it would without the others."""
        if m not in self._alone:
            self._alone[m] = UniteEnsemble([self.members[m]], lossy=True)
        return self._alone[m]

    def _method(self, step: Mapping[str, Any]) -> Any:
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
        return f"UniteEnsemble({members}; primary {self.members[self._step['primary']].name}, k={self._step['k']})"


class _Run:
    """One call of `generate`: its options, and the loop."""

    def __init__(self, ensemble: UniteEnsemble, options: dict[str, Any], trace: bool) -> None:
        self.members = ensemble.members
        self.step_options = _take_step_options(options, ensemble._step, len(self.members))
        unknown = options.keys() - GenerationOptions.__dataclass_fields__.keys()
        if unknown:
            known = sorted([*GenerationOptions.__dataclass_fields__, *_STEP_DEFAULTS])
            raise TypeError(f"unknown option {sorted(unknown)[0]!r}; the options are {', '.join(known)}")
        self.options = GenerationOptions(**options)
        if self.step_options["method"] in OUTPUT_METHODS:
            raise ValueError(
                f"method {self.step_options['method']!r} chooses among whole answers, which cannot be streamed: use "
                "generate"
            )
        self.method = ensemble._method(self.step_options)
        if self.method is not None and self.options.do_sample and not self.method.samples:
            raise ValueError(f"do_sample must be False with method {self.method.name!r}, which takes the best token")
        self.trace = trace
        self.unite_options = {n: v for n, v in self.step_options.items() if not n.startswith("method")}
        self.primary = self.step_options["primary"]
        self.alignment = ensemble.alignment.to(self.members[self.primary].device)
        self.seed = self.options.seed
        if self.options.do_sample and self.seed is None:
            self.seed = int(torch.randint(2**31, ()))
        prints = self.alignment.fingerprints
        self.shares_ids = [p == prints[self.primary] for p in prints]
        self.processors = _processors(self.options, len(self.members))
        self.eos = [list(v.eos_token_ids) for v in self.alignment.vocabularies]

    def encode(self, prompt: Prompt) -> list[list[int]]:
        """A prompt's ids in every member."""
        return [member.encode_prompt(prompt) for member in self.members]

    @torch.no_grad()
    def decode(self, prompts: list[list[list[int]]], indices: Sequence[int]) -> Iterator[tuple[list[Row], list[Row]]]:
        """Run a batch to its end; after every step yield the rows that go on and those that have just finished."""
        rows = [self._new_row(i) for i in indices]
        caches = []
        for m, member in enumerate(self.members):
            cache = RaggedCache(member.model, len(rows), reuse=member.cache_reuse)
            for r, ids in enumerate(prompts):
                cache.edit(r, 0, list(ids[m]))
            caches.append(cache)
        if self.method is not None:
            self.method.start(rows, prompts)

        while rows:
            self._step(rows, caches)
            finished = [row for row in rows if row.finish_reason]
            if finished:
                going = [r for r, row in enumerate(rows) if not row.finish_reason]
                rows = [rows[r] for r in going]
                if rows:
                    for cache in caches:
                        cache.select(going)
            yield rows, finished

    def _new_row(self, index: int) -> Row:
        generator = None
        if self.options.do_sample:
            generator = torch.Generator().manual_seed((self.seed + index) % 2**63)
        syncs = [None if shares else TextSync(v) for shares, v in zip(self.shares_ids, self.alignment.vocabularies)]
        return Row(index, syncs, tuple(s.encode() for s in self.options.stop), generator)

    def _step(self, rows: list[Row], caches: list[RaggedCache]) -> None:
        """One step of every row: forward passes, choice, and the consequences for text and caches."""
        first = self._logits(self.primary, rows, caches)
        gated = self._gated(first)
        chosen: list[int | None]
        if gated is not None and all(i is not None for i in gated):
            chosen = gated
        else:
            logits = [first if m == self.primary else self._logits(m, rows, caches) for m in range(len(self.members))]
            logits = [x.to(self.alignment.device) for x in logits]
            if self.method is None:
                step = unite_step(logits, self.alignment, **self.unite_options)
            else:
                step = self.method.step(logits, rows)
            chosen = self._choose(rows, step, gated)
        for r, (row, token_id) in enumerate(zip(rows, chosen)):
            row.num_steps += 1
            if gated is not None and gated[r] is not None:
                row.gated_steps += 1
                if self.trace and len(row.traces) < row.num_steps:
                    row.traces.append(self._gated_trace(token_id))
            self._emit(r, row, token_id, caches)

    def _logits(self, m: int, rows: list[Row], caches: list[RaggedCache]) -> Tensor:
        """[B, V_m]: a member's next logits after its processors."""
        member = self.members[m]
        try:
            logits = caches[m].next_logits()
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                f"{member.name} is out of memory on {member.device} with {len(rows)} rows of up to "
                f"{max(map(len, caches[m].ids))} ids: try a smaller batch_size, shorter prompts, a 16-bit dtype, "
                "quantization_config, or another device for this member"
            ) from error
        if logits.dtype == torch.float64:
            logits = logits.float()
        if self.processors[m]:
            scores = logits.float()
            for r, ids in enumerate(caches[m].ids):
                context = torch.tensor([ids], device=logits.device)
                for processor in self.processors[m]:
                    scores[r : r + 1] = processor(context, scores[r : r + 1])
            logits = scores
        if self.eos[m] and any(row.num_steps < self.options.min_new_tokens for row in rows):
            logits[:, self.eos[m]] = -torch.inf
        return logits

    def _gated(self, logits: Tensor) -> list[int | None] | None:
        """Per row the primary's token where it is sure enough of it; None without a gate."""
        if self.options.gate is None:
            return None
        eligible = self.alignment.classes[self.primary][: self.alignment.vocab_sizes[self.primary]] >= 0
        values = logits[:, : len(eligible)].float().nan_to_num(nan=-torch.inf).masked_fill(~eligible, -torch.inf)
        top, ids = values.softmax(dim=1).max(dim=1)
        pairs = torch.stack([top.double(), ids.double()]).tolist()
        return [int(i) if p > self.options.gate else None for p, i in zip(*pairs)]

    def _choose(self, rows: list[Row], step: StepResult, gated: list[int | None] | None) -> list[int | None]:
        """The primary's id of every row's slot, None for EOS without an id. The step's one wait for the device."""
        packed = torch.stack([step.next_ids[:, self.primary], step.winner.long(), step.status.long()]).cpu()
        if packed[2].any():
            step.check()
        ids, winners = packed[0].tolist(), packed[1].tolist()
        open_rows = [r for r in range(len(rows)) if gated is None or gated[r] is None]
        if self.options.do_sample:
            emits = self._emits(step).cpu()
            probs = step.union_probs.cpu().double()
            union = step.union_ids[:, :, self.primary].cpu()
            for r in open_rows:
                winners[r] = sample(probs[r] * emits[r], self.options, rows[r].generator)
                ids[r] = int(union[r, winners[r]])
        if self.trace:
            union_ids, averages, members = (t.tolist() for t in (step.union_ids, step.union_probs, step.member_probs))
            sizes = step.union_size.tolist()
            for r in open_rows:
                n = sizes[r]
                rows[r].traces.append(StepTrace(union_ids[r][:n], averages[r][:n], members[r][:n], winners[r]))
        for r in range(len(rows)):
            if gated is not None and gated[r] is not None:
                ids[r] = gated[r]
        return [None if i < 0 else i for i in ids]

    def _emits(self, step: StepResult) -> Tensor:
        """[B, U] bool: slots the primary can emit, and EOS."""
        emits = step.union_ids[:, :, self.primary] >= 0
        if not self.eos[self.primary]:
            for m, eos in enumerate(self.eos):
                emits = emits | torch.isin(step.union_ids[:, :, m], torch.tensor(eos, device=emits.device).long())
        return emits

    def _gated_trace(self, token_id: int | None) -> StepTrace:
        ids = [token_id if m == self.primary else -1 for m in range(len(self.members))]
        return StepTrace([ids], [1.0], [[1.0 if i == token_id else 0.0 for i in ids]], 0, gated=True)

    def _emit(self, r: int, row: Row, token_id: int | None, caches: list[RaggedCache]) -> None:
        """Take a token into the row's text and into every member's context."""
        if token_id is None or token_id in self.eos[self.primary]:
            row.finish_reason = "eos"
            return
        data = self.alignment.vocabularies[self.primary].token_bytes[token_id]
        row.emit(token_id, data)
        for m, sync in enumerate(row.syncs):
            drop, append = (0, [token_id]) if sync is None else sync.append(data)
            caches[m].edit(r, drop, append)
        if row.finish_reason:
            return
        if len(row.ids) >= self.options.max_new_tokens:
            row.finish_reason = "length"
        for member, cache in zip(self.members, caches):
            if member.context_length is not None and len(cache.ids[r]) >= member.context_length:
                row.finish_reason = "length"


def _take_step_options(options: dict[str, Any], defaults: dict[str, Any], members: int) -> dict[str, Any]:
    """The options of a step, taken out of `options` and checked."""
    step = {name: options.pop(name, default) for name, default in defaults.items()}
    check_step_options(members, step["k"], step["primary"], step["score"], step["duplicates"])
    normalize_weights(step["weights"], members)
    check_method(step["method"], step["method_options"], members)
    return step


def _is_single(prompts: Any) -> bool:
    """One prompt: a string, or a list of messages."""
    if isinstance(prompts, str):
        return True
    if not isinstance(prompts, Sequence):
        raise TypeError(f"prompts must be text, chat messages, or a list of these, got {type(prompts).__name__}")
    return bool(prompts) and isinstance(prompts[0], dict)


def _processors(options: GenerationOptions, members: int) -> list[list[Any]]:
    """Per member its logits processors, the repetition penalty first."""
    given = options.logits_processor
    if given is not None and len(given) != members:
        raise ValueError(f"logits_processor must have one entry per member, {members}, got {len(given)}")
    result: list[list[Any]] = []
    for m in range(members):
        own = given[m] if given is not None else None
        result.append([] if own is None else list(own) if isinstance(own, (list, tuple)) else [own])
        if options.repetition_penalty != 1.0:
            from transformers import RepetitionPenaltyLogitsProcessor

            result[m].insert(0, RepetitionPenaltyLogitsProcessor(penalty=options.repetition_penalty))
    return result
