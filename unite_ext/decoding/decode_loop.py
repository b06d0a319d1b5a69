"""The decode loop: forward passes, one step, and what it does to text and caches, until every row has ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..members.kv_cache import RaggedCache
from ..members.transformers import Prompt
from ..methods.registry import OUTPUT_METHODS
from ..ops import unite_step
from ..reference import StepResult
from ..vocab.text_sync import TextSync, append_all
from .config import STEP_DEFAULTS, take_step_options
from .generation import GenerationOptions, Row, StepTrace, sample

if TYPE_CHECKING:
    from .ensemble import UniteEnsemble


class DecodeLoop:
    """One call of `generate`: its options, and the loop."""

    def __init__(self, ensemble: UniteEnsemble, options: dict[str, Any], trace: bool) -> None:
        self.members = ensemble.members
        self.step_options = take_step_options(options, ensemble.step_options, len(self.members))
        unknown = options.keys() - GenerationOptions.__dataclass_fields__.keys()
        if unknown:
            known = sorted([*GenerationOptions.__dataclass_fields__, *STEP_DEFAULTS])
            raise TypeError(f"unknown option {sorted(unknown)[0]!r}; the options are {', '.join(known)}")
        self.options = GenerationOptions(**options)
        if self.step_options["method"] in OUTPUT_METHODS:
            raise ValueError(
                f"method {self.step_options['method']!r} chooses among whole answers, which cannot be streamed: use "
                "generate"
            )
        self.method = ensemble.method_for(self.step_options)
        if self.method is not None and self.options.do_sample and not self.method.samples:
            raise ValueError(f"do_sample must be False with method {self.method.name!r}, which takes the best token")
        self.trace = trace
        self.compile = ensemble.compile
        self.unite_options = {n: v for n, v in self.step_options.items() if not n.startswith("method")}
        self.primary = self.step_options["primary"]
        self.alignment = ensemble.alignment.to(self.members[self.primary].device)
        self.seed = self.options.seed or 0
        if self.options.do_sample and self.options.seed is None:
            self.seed = int(torch.randint(2**31, ()))
        prints = self.alignment.fingerprints
        self.shares_ids = [p == prints[self.primary] for p in prints]
        self.processors = _processors(self.options, len(self.members))
        self.eos = [list(v.eos_token_ids) for v in self.alignment.vocabularies]
        self.eos_index = [torch.tensor(e, device=m.device).long() for e, m in zip(self.eos, self.members)]

    def encode(self, prompt: Prompt) -> list[list[int]]:
        """A prompt's ids in every member."""
        return [member.encode_prompt(prompt) for member in self.members]

    @torch.no_grad()
    def decode(self, prompts: list[list[list[int]]], indices: Sequence[int]) -> Iterator[tuple[list[Row], list[Row]]]:
        """Run a batch to its end; after every step yield the rows that go on and those that have just finished."""
        rows = [self._new_row(i) for i in indices]
        caches = []
        for m, member in enumerate(self.members):
            length = max(len(ids[m]) for ids in prompts) + self.options.max_new_tokens
            cache = member.new_cache(len(rows), compiled=self.compile, expected_length=length)
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
        for r, row in enumerate(rows):
            row.num_steps += 1
            if gated is not None and (sure := gated[r]) is not None:
                row.gated_steps += 1
                if self.trace and len(row.traces) < row.num_steps:
                    row.traces.append(self._gated_trace(sure))
        self._emit(rows, chosen, caches)

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
            logits.index_fill_(1, self.eos_index[m].to(logits.device), -torch.inf)
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

    def _gated_trace(self, token_id: int) -> StepTrace:
        ids = [token_id if m == self.primary else -1 for m in range(len(self.members))]
        return StepTrace([ids], [1.0], [[1.0 if i == token_id else 0.0 for i in ids]], 0, gated=True)

    def _emit(self, rows: list[Row], chosen: list[int | None], caches: list[RaggedCache]) -> None:
        """Take every row's token into its text and into the members' contexts."""
        token_bytes = self.alignment.vocabularies[self.primary].token_bytes
        going: dict[int, int] = {}
        for r, (row, token_id) in enumerate(zip(rows, chosen)):
            if token_id is None or token_id in self.eos[self.primary]:
                row.finish_reason = "eos"
            else:
                row.emit(token_id, token_bytes[token_id])
                going[r] = token_id
        pieces = [token_bytes[token_id] for token_id in going.values()]
        for m, cache in enumerate(caches):
            if self.shares_ids[m]:
                edits = [(0, [token_id]) for token_id in going.values()]
            else:
                edits = append_all([rows[r].syncs[m] for r in going], pieces)
            for r, (drop, append) in zip(going, edits):
                cache.edit(r, drop, append)
        for r in going:
            row = rows[r]
            if row.finish_reason:
                continue
            if len(row.ids) >= self.options.max_new_tokens or any(
                member.context_length is not None and len(cache.ids[r]) >= member.context_length
                for member, cache in zip(self.members, caches)
            ):
                row.finish_reason = "length"


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
