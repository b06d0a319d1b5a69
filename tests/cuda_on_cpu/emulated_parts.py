"""The CUDA kernels of the step's parts, called like `unite_ext.step_parts`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from cuda_on_cpu.emulator import (
    COUNTER_BYTES,
    DTYPES,
    POLICIES,
    Emulator,
    MemberLogits,
    Schedule,
    StepParams,
    launch_config,
    poisoned,
)
from torch import Tensor

from unite_ext._checks import step_weights
from unite_ext.exchange import UnionSlots
from unite_ext.reference import StepResult
from unite_ext.vocab.alignment import VocabAlignment

SCORES, DUPLICATES, COMBINES = ["logits", "probs"], ["repeat", "drop"], ["mean", "product"]


class Matrix(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("row_stride", ctypes.c_int64), ("stride", ctypes.c_int64)]

    @staticmethod
    def of(tensor: Tensor) -> Matrix:
        return Matrix(tensor.data_ptr(), *tensor.stride())


def pointers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_void_p) for name in names]


def integers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_int32) for name in names]


class TopKeysPart(ctypes.Structure):
    """csrc/core/part_params.h, field by field; so are the next."""

    _fields_ = [("step", StepParams), *pointers("keys", "log_sums")]


class UnionPart(ctypes.Structure):
    _fields_ = [("step", StepParams), *pointers("keys", "slots", "slot_classes", "key_slots")]


class GatherPart(ctypes.Structure):
    _fields_ = [
        ("logits", MemberLogits),
        *integers("batch", "num_slots"),
        ("ids", Matrix),
        ("wide_ids", Matrix),
        *pointers("values"),
    ]


class ScorePart(ctypes.Structure):
    _fields_ = [
        *integers("batch", "num_slots", "k", "score", "duplicates", "combine"),
        ("values", Matrix),
        ("slots", Matrix),
        *pointers("union_size"),
        ("keys", Matrix),
        ("key_slots", Matrix),
        *pointers("log_sums", "scores"),
    ]


class CombinePart(ctypes.Structure):
    _fields_ = [("step", StepParams), *pointers("member_scores", "slots", "slot_classes", "union_size", "status")]


@dataclass
class EmulatedParts:
    """The five kernels on the CPU; `threads` and `slices` shape the launch of the first."""

    emulator: Emulator
    threads: int = 64
    slices: int = 2
    schedule: Schedule = field(default_factory=Schedule)
    workspace: Tensor | None = None

    def __post_init__(self) -> None:
        parts = (TopKeysPart, UnionPart, GatherPart, ScorePart, CombinePart)
        size_of = self.emulator.lib.emu_part_bytes
        size_of.restype = ctypes.c_size_t
        assert [size_of(i) for i in range(len(parts))] == [ctypes.sizeof(part) for part in parts]

    def top_k_keys(
        self, logits: Tensor, alignment: VocabAlignment, member: int, *, k: int, score: str
    ) -> tuple[Tensor, Tensor]:
        """As `step_parts.top_k_keys`."""
        batch = logits.shape[0]
        keys = poisoned(torch.int64, logits.device, batch, k)
        log_sums = poisoned(torch.float32, logits.device, batch)
        step = StepParams(batch, 1, k, 0, k, SCORES.index(score))
        eligible = alignment.eligible.data_ptr() + 4 * alignment.eligible_offsets[member]
        size = alignment.vocab_sizes[member]
        step.logits[0] = MemberLogits(logits.data_ptr(), logits.stride(0), eligible, size, DTYPES[logits.dtype])
        part = TopKeysPart(step, keys.data_ptr(), log_sums.data_ptr())

        self._start({"keys": keys, "log_sums": log_sums}, {"eligible": alignment.eligible})
        for row in logits:  # what lies between the rows is nobody's
            self.emulator.announce("logits", row.data_ptr(), row.nbytes)
        config = launch_config(step, self.threads, self.slices)
        workspace = self.workspace
        if workspace is None:
            workspace = torch.zeros(self.emulator.workspace_bytes(step, config), dtype=torch.uint8)
        start, records = workspace.data_ptr(), workspace.nbytes - COUNTER_BYTES
        self.emulator.announce("arrivals", start, COUNTER_BYTES, writable=True)
        self.emulator.announce("records", start + COUNTER_BYTES, records, initialised=False, writable=True)
        given = (ctypes.c_void_p(start), ctypes.c_size_t(workspace.nbytes), ctypes.byref(config))
        self.emulator.call("emu_top_k_keys", ctypes.byref(part), *given)
        return keys, log_sums

    def unite_keys(
        self,
        keys: Tensor,
        alignment: VocabAlignment,
        *,
        primary: int = 0,
        weights: Sequence[float] | None = None,
        combine: str = "mean",
        include: Tensor | None = None,
    ) -> UnionSlots:
        """As `step_parts.unite_keys`."""
        batch, members, k = keys.shape
        width = members * k + (include is not None)
        shapes = ((width, members), (width,), (), (), (members, k))
        union = UnionSlots(*[poisoned(torch.int32, keys.device, batch, *shape) for shape in shapes])
        step = StepParams(batch, members, k, primary, width, combine=COMBINES.index(combine))
        for m, size in enumerate(alignment.vocab_sizes):
            step.logits[m].vocab_size = size
            step.weights[m] = 1.0 if weights is None else weights[m]
        step.map, step.log2_capacity = alignment.table.data_ptr(), alignment.log2_capacity
        step.class_ids = alignment.class_ids.data_ptr()
        step.include = None if include is None else include.data_ptr()
        step.union_size, step.status = union.union_size.data_ptr(), union.status.data_ptr()
        outputs = (union.slots, union.slot_classes, union.key_slots)
        part = UnionPart(step, keys.data_ptr(), *[tensor.data_ptr() for tensor in outputs])

        inputs = {"keys": keys, "table": alignment.table, "class_ids": alignment.class_ids}
        self._start(union._asdict(), inputs | ({} if include is None else {"include": include}))
        self.emulator.call("emu_unite_keys", ctypes.byref(part))
        return union

    def gather_logits(self, logits: Tensor, ids: Tensor) -> Tensor:
        """As `step_parts.gather_logits`."""
        values = poisoned(torch.float32, logits.device, *ids.shape)
        rows = MemberLogits(logits.data_ptr(), logits.stride(0), None, logits.shape[1], DTYPES[logits.dtype])
        part = GatherPart(rows, *ids.shape, values=values.data_ptr())
        setattr(part, "ids" if ids.dtype == torch.int32 else "wide_ids", Matrix.of(ids))

        self._start({"values": values}, {"ids": ids})
        for row in logits:
            self.emulator.announce("logits", row.data_ptr(), row.nbytes)
        self.emulator.call("emu_gather_logits", ctypes.byref(part))
        return values

    def score_slots(
        self,
        values: Tensor,
        slots: Tensor,
        union_size: Tensor,
        keys: Tensor,
        key_slots: Tensor,
        log_sums: Tensor,
        *,
        score: str,
        duplicates: str,
        combine: str = "mean",
    ) -> Tensor:
        """As `step_parts.score_slots`."""
        scores = poisoned(torch.float32, values.device, *values.shape)
        rules = (SCORES.index(score), DUPLICATES.index(duplicates), COMBINES.index(combine))
        part = ScorePart(*values.shape, keys.shape[1], *rules)
        part.values, part.slots, part.keys = Matrix.of(values), Matrix.of(slots), Matrix.of(keys)
        part.key_slots = Matrix.of(key_slots)
        part.union_size, part.log_sums = union_size.data_ptr(), log_sums.data_ptr()
        part.scores = scores.data_ptr()

        inputs = {"values": values, "slots": slots, "union_size": union_size, "keys": keys, "key_slots": key_slots}
        self._start({"scores": scores}, inputs | {"log_sums": log_sums})
        self.emulator.call("emu_score_slots", ctypes.byref(part))
        return scores

    def combine_slots(
        self,
        member_scores: Tensor,
        union: UnionSlots,
        *,
        primary: int = 0,
        weights: Sequence[float] | None = None,
        combine: str = "mean",
    ) -> StepResult:
        """As `step_parts.combine_slots`."""
        batch, width, members = member_scores.shape
        device = member_scores.device
        result = StepResult(
            next_ids=poisoned(torch.int64, device, batch, members),
            union_ids=poisoned(torch.int64, device, batch, width, members),
            union_size=poisoned(torch.int32, device, batch),
            winner=poisoned(torch.int32, device, batch),
            union_probs=poisoned(torch.float32, device, batch, width),
            member_probs=poisoned(torch.float32, device, batch, width, members),
            status=poisoned(torch.int32, device, batch),
        )
        step = StepParams(batch, members, 0, primary, width, combine=COMBINES.index(combine))
        for m, weight in enumerate(step_weights(weights, members, combine, primary)):
            step.weights[m] = weight
        for name, tensor in result._asdict().items():
            setattr(step, name, tensor.data_ptr())
        used = {name: tensor for name, tensor in union._asdict().items() if name != "key_slots"}
        part = CombinePart(step, member_scores.data_ptr(), *[tensor.data_ptr() for tensor in used.values()])

        inputs = {f"given {name}": tensor for name, tensor in used.items()}
        self._start(result._asdict(), inputs | {"given member_scores": member_scores})
        self.emulator.call("emu_combine_slots", ctypes.byref(part))
        return result

    def _start(self, outputs: dict[str, Tensor], inputs: dict[str, Tensor]) -> None:
        """Announces every buffer to the race checker, and the schedule."""
        self.emulator.lib.emu_forget_buffers()
        for name, tensor in outputs.items():
            self.emulator.announce(name, tensor.data_ptr(), tensor.nbytes, initialised=False, writable=True)
        for name, tensor in inputs.items():
            reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride())) + 1
            self.emulator.announce(name, tensor.data_ptr(), reach * tensor.element_size())
        s = self.schedule
        self.emulator.lib.emu_options(s.seed, POLICIES[s.policy], s.resident, s.preempt, s.preempt_access)
