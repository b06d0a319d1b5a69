"""Deliberate faults, which show that the race checker would find real ones.

Each is an exact replacement in the source. All of them go into one copy, where a variable chooses between old and new,
so that one compilation serves them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from patched_source import copy_source, replace_once


@dataclass(frozen=True)
class Fault:
    """One replacement of statements or of an expression, and the message that reports it."""

    file: str
    old: str
    new: str
    found: str
    """A pattern for the message of the race checker, or of the comparison with the reference."""


FAULTS = {
    "no barrier after the maxima": Fault(
        "cuda/top_k.cuh",
        "s.maxima[block.thread_rank()] = mine;\n  block.sync();",
        "s.maxima[block.thread_rank()] = mine;",
        "RACE",
    ),
    "no barrier before the rescan": Fault(
        "cuda/top_k.cuh",
        "if (vector_order >= bound) s.owners[atomicAdd(s.num_owners, 1)] = block.thread_rank();\n  block.sync();",
        "if (vector_order >= bound) s.owners[atomicAdd(s.num_owners, 1)] = block.thread_rank();",
        "RACE",
    ),
    "plain candidate counter": Fault(
        "cuda/top_k.cuh", "atomicAdd(s.num_candidates, 1)", "(*s.num_candidates)++", "RACE"
    ),
    "no barrier before the digit": Fault(
        "cuda/top_k.cuh",
        "\n    if (run > 0) atomicAdd(s.histogram + run_bin, run);\n    block.sync();",
        "if (run > 0) atomicAdd(s.histogram + run_bin, run);",
        "RACE",
    ),
    "divergent barrier": Fault(
        "cuda/top_k.cuh",
        "block.sync();  // all candidates are in",
        "if (block.group_rank() == 0) {\nblock.sync();\n} else {\nblock.sync();\n}",
        "divergent",
    ),
    "read past the tail": Fault(
        "cuda/slice.cuh",
        "num_vectors = (length - head) / kPerVector;",
        "num_vectors = (length - head) / kPerVector + 1;",
        "out-of-bounds",
    ),
    "publish past the end": Fault(
        "cuda/row_top_k.cuh", "out[rank] = key;", "out[rank + 1] = key;", "RACE|UNINITIALISED|out-of-bounds"
    ),
    "no barrier before the ticket": Fault(
        "cuda/row_top_k.cuh", "block.sync();  // this slice is published", "", "RACE"
    ),
    "no release fence": Fault("cuda/row_top_k.cuh", "__threadfence();  // release", "", "RACE"),
    "narrow release fence": Fault(
        "cuda/row_top_k.cuh", "__threadfence();  // release", "__threadfence_block();", "RACE"
    ),
    "no acquire fence": Fault("cuda/row_top_k.cuh", "__threadfence();  // acquire", "", "RACE"),
    "ticket not reset": Fault(
        "cuda/row_top_k.cuh", "atomicInc(arrivals, last)", "atomicAdd(arrivals, 1u)", "second launch"
    ),
    "early return": Fault(
        "cuda/row_top_k.cuh",
        "block.sync();  // the ticket is known",
        "if (block.group_rank() == 1) return false;\nblock.sync();",
        "returned",
    ),
    "merge counts not cleared": Fault("cuda/merge.cuh", "s.counts[rank] = 0;", "", "UNINITIALISED"),
    "rank past the top": Fault(
        "cuda/merge.cuh", "top[place] = key;", "top[place + 1] = key;", "RACE|UNINITIALISED|out-of-bounds"
    ),
    "scan buffer reused": Fault("cuda/cuda_block.cuh", "warp_totals + kWarp * turn", "warp_totals", "RACE"),
    "shared classes not cleared": Fault("core/union.h", "*s.shared_class = 0;", "", "UNINITIALISED"),
    "no barrier after the keys of the union": Fault(
        "core/row_parts.h",
        "block.sync();  // s.top is complete",
        "",
        "RACE|UNINITIALISED",
    ),
    "no barrier before the softmax": Fault(
        "core/row_parts.h", "block.sync();  // all scores are there", "", "RACE|UNINITIALISED"
    ),
}
# Out of the race checker's sight, which would slow every choice down.
CHOICE = """
static int planted_fault = 0;
__attribute__((no_sanitize("thread"), noinline)) static bool is_planted(int fault) {
  return planted_fault == fault;
}
"""
NUMBERS = {name: number for number, name in enumerate(FAULTS, start=1)}


def faulty_source(folder: Path, driver: Path) -> Path:
    """A copy of the driver and of the source with every fault in it, and `emu_plant` to choose one; 0 is none."""
    copy_source(folder)
    for name, fault in FAULTS.items():
        planted = f"is_planted({NUMBERS[name]})"
        if ";" in fault.old:
            switch = f"if ({planted}) {{\n{fault.new}\n}} else {{\n{fault.old}\n}}\n"
        else:
            switch = f"({planted} ? ({fault.new}) : ({fault.old}))"
        assert (driver.parents[2] / "csrc" / fault.file).read_text().count(fault.old) == 1, name
        replace_once(folder / "csrc" / fault.file, fault.old, switch)
    copy = folder / "tests" / "cuda_on_cpu" / "faulty_driver.cpp"
    copy.parent.mkdir(parents=True)
    copy.write_text(CHOICE + driver.read_text() + "EXPORT void emu_plant(int fault) {\n  planted_fault = fault;\n}\n")
    return copy
