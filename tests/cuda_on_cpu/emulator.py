"""The CUDA step's own source, compiled for the CPU and called like `unite_step`.

`build` makes two libraries: "plain", and "checked" with the race checker and the undefined-behaviour sanitizer.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from cuda_on_cpu import faults

from unite_ext._checks import step_weights
from unite_ext._core import MAX_MEMBERS
from unite_ext.reference import StepResult
from unite_ext.vocab.alignment import VocabAlignment

HERE = Path(__file__).resolve().parent
FLAGS = [
    *("-std=c++17", "-g", "-fPIC", "-DCUDA_EMU", f"-I{HERE}", "-fvisibility=hidden"),
    *("-include", "cuda_emu.h"),  # before every file, as nvcc includes its own header
    *("-fno-strict-aliasing", "-ffp-contract=off"),  # as nvcc compiles
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-attributes"),
]
CHECKED = [
    *("-O1", "-fsanitize=thread,undefined", "-fno-sanitize-recover=undefined", "-fno-sanitize=vptr"),
    "-fno-tree-loop-distribute-patterns",  # no memset or memcpy calls that the checker would not see
]
POLICIES = {"in order": 0, "reverse": 1, "random": 2}
COUNTER_BYTES = 16384 * 4
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
POISON = 0x5A


def unavailable() -> str | None:
    """Why kernels cannot run here; None when they can."""
    if platform.machine() != "x86_64":
        return f"the fibers of tests/cuda_on_cpu need an x86-64 processor, this is {platform.machine()}"
    if compiler() is None:
        return "tests/cuda_on_cpu needs g++ (its sanitizer hooks and flags), which is not on the PATH"
    return None


def compiler() -> str | None:
    return shutil.which("g++")


def run(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


_folder = tempfile.TemporaryDirectory(prefix="cuda_on_cpu-")


def build_folder() -> Path:
    """Where this session's objects lie."""
    return Path(_folder.name)


def compile_object(source: Path, *flags: str) -> Path:
    target = build_folder() / f"{source.stem}-{abs(hash(flags)):x}.o"
    if not target.exists():
        run(*[compiler()], *FLAGS, *flags, "-x", "c++", "-c", source, "-o", target)
    return target


def build(source: Path, checked: bool, *link_flags: str, goes_on: bool = False) -> Path:
    """Links `source` with the emulator, and with the race checker if `checked`.

    The sanitizer ends the process at undefined behaviour, unless it `goes_on`.
    """
    target = build_folder() / f"{source.stem}-{'checked' if checked else 'plain'}"
    objects = [compile_object(HERE / "cuda_emu.cpp", "-O2")]
    if checked:
        recover = ["-fsanitize-recover=undefined"] if goes_on else []
        objects += [compile_object(source, *CHECKED, *recover, "-DEMU_CHECKED")]
        objects += [compile_object(HERE / "race_checker.cpp", "-O2"), "-fsanitize=undefined", "-ldl"]
    else:
        objects += [compile_object(source, "-O2")]
    run(*[compiler()], *link_flags, *objects, "-o", target)
    return target


@functools.cache
def built(kind: str) -> Emulator:
    """The kernels, built once per session.

    "checked": every access goes through the race checker. "plain": several times faster, and blind. "faulty": checked,
    with the faults of faults.py in it. Where buffers lie low in memory, a fault is undefined behaviour before it is
    what the race checker reports.
    """
    driver = HERE / "driver.cpp"
    if kind == "faulty":
        driver = faults.faulty_source(build_folder() / "faulty", driver)
    return Emulator(build(driver, kind != "plain", "-shared", goes_on=kind == "faulty"))


class MemberLogits(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("row_stride", ctypes.c_int64),
        ("eligible", ctypes.c_void_p),
        ("vocab_size", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
    ]


class StepParams(ctypes.Structure):
    """csrc/core/step_params.h, field by field."""

    _fields_ = [
        *[(name, ctypes.c_int32) for name in ("batch", "members", "k", "primary", "num_slots")],
        *[(name, ctypes.c_int32) for name in ("score", "duplicates", "combine")],
        ("weights", ctypes.c_float * MAX_MEMBERS),
        ("logits", MemberLogits * MAX_MEMBERS),
        ("map", ctypes.c_void_p),
        ("class_ids", ctypes.c_void_p),
        ("log2_capacity", ctypes.c_int32),
        ("include", ctypes.c_void_p),
        *[(name, ctypes.c_void_p) for name in ("next_ids", "union_ids", "union_probs", "member_probs")],
        *[(name, ctypes.c_void_p) for name in ("union_size", "winner", "status")],
    ]


class LaunchConfig(ctypes.Structure):
    _fields_ = [("threads", ctypes.c_int), ("slices", ctypes.c_int * MAX_MEMBERS)]


@dataclass
class Schedule:
    """Which thread runs next, and how many blocks run interleaved."""

    policy: str = "in order"
    resident: int = 1
    seed: int = 0
    preempt: float = 0.0
    preempt_access: float = 0.0


class EmulationError(RuntimeError):
    """A run that went wrong: a race, an access out of bounds, a deadlock, a refused launch."""


class Emulator:
    """The kernel and its launcher on the CPU."""

    def __init__(self, library: Path) -> None:
        lib = self.lib = ctypes.CDLL(str(library))
        lib.emu_error.restype = ctypes.c_char_p
        lib.emu_params_bytes.restype = lib.emu_workspace_bytes.restype = ctypes.c_size_t
        lib.emu_options.argtypes = [ctypes.c_uint64, ctypes.c_int, ctypes.c_int, ctypes.c_double, ctypes.c_double]
        lib.emu_buffer.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
        lib.emu_fused_step.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        assert lib.emu_params_bytes() == ctypes.sizeof(StepParams)

    def plant(self, fault: str | None) -> None:
        """Switches one fault of a faulty build on, or all off."""
        self.lib.emu_plant(0 if fault is None else faults.NUMBERS[fault])

    def choose_launch(self, params: StepParams, sm_count: int) -> LaunchConfig:
        config = LaunchConfig()
        self.lib.emu_choose_launch(ctypes.byref(params), sm_count, ctypes.byref(config))
        return config

    def workspace_bytes(self, params: StepParams, config: LaunchConfig) -> int:
        return self.lib.emu_workspace_bytes(ctypes.byref(params), ctypes.byref(config))

    def unite_step(
        self,
        logits: Sequence[torch.Tensor],
        alignment: VocabAlignment,
        *,
        workspace: torch.Tensor | None = None,
        threads: int = 64,
        slices: int | Sequence[int] = 2,
        sm_count: int | None = None,
        schedule: Schedule = Schedule(),  # noqa: B008 (never changed)
        **options,
    ) -> StepResult:
        """As `unite_ext.unite_step`, with the launch's shape: `threads` and `slices`, or what `sm_count` gives."""
        p, result = step_params(logits, alignment, **options)
        self.lib.emu_forget_buffers()
        for name, tensor in result._asdict().items():
            self.announce(name, tensor.data_ptr(), tensor.nbytes, initialised=False, writable=True)
        for m, x in enumerate(logits):
            for row in x:  # what lies between the rows is nobody's
                self.announce(f"logits[{m}]", row.data_ptr(), row.nbytes)
        for name in ("table", "class_ids", "eligible"):
            tensor = getattr(alignment, name)
            self.announce(name, tensor.data_ptr(), tensor.nbytes)
        if p.include:
            self.announce("include", p.include, 8 * p.batch)

        config = self.choose_launch(p, sm_count) if sm_count is not None else launch_config(p, threads, slices)
        if workspace is None:
            workspace = torch.zeros(self.workspace_bytes(p, config), dtype=torch.uint8)
        start = workspace.data_ptr()
        self.announce("arrivals", start, COUNTER_BYTES, writable=True)
        records = max(0, workspace.nbytes - COUNTER_BYTES)
        self.announce("records", start + COUNTER_BYTES, records, initialised=False, writable=True)

        s = schedule
        self.lib.emu_options(s.seed, POLICIES[s.policy], s.resident, s.preempt, s.preempt_access)
        self.call("emu_fused_step", ctypes.byref(p), start, workspace.nbytes, ctypes.byref(config))
        return result

    def call(self, function: str, *arguments: object) -> None:
        """Run one launcher of the driver, which must succeed."""
        error = getattr(self.lib, function)(*arguments)
        if error == -1:
            raise EmulationError(self.lib.emu_error().decode())
        if error != 0:
            raise EmulationError(f"{function} returned error {error}")

    def announce(self, name: str, address: int, size: int, initialised: bool = True, writable: bool = False) -> None:
        self.lib.emu_buffer(address, size, name.encode(), initialised, writable)


def launch_config(params: StepParams, threads: int, slices: int | Sequence[int]) -> LaunchConfig:
    per_member = [slices] * params.members if isinstance(slices, int) else slices
    return LaunchConfig(threads, (ctypes.c_int * MAX_MEMBERS)(*per_member))


def step_params(
    logits: Sequence[torch.Tensor],
    alignment: VocabAlignment,
    *,
    k: int = 10,
    primary: int = 0,
    weights: Sequence[float] | None = None,
    score: str = "logits",
    duplicates: str = "repeat",
    combine: str = "mean",
    include: torch.Tensor | None = None,
) -> tuple[StepParams, StepResult]:
    """What a launch takes, and the poisoned outputs it will fill, on the logits' device."""
    batch, members = logits[0].shape[0], len(logits)
    slots = members * k + (include is not None)
    device = logits[0].device
    result = StepResult(
        next_ids=poisoned(torch.int64, device, batch, members),
        union_ids=poisoned(torch.int64, device, batch, slots, members),
        union_size=poisoned(torch.int32, device, batch),
        winner=poisoned(torch.int32, device, batch),
        union_probs=poisoned(torch.float32, device, batch, slots),
        member_probs=poisoned(torch.float32, device, batch, slots, members),
        status=poisoned(torch.int32, device, batch),
    )
    p = StepParams(batch, members, k, primary, slots, ["logits", "probs"].index(score))
    p.duplicates = ["repeat", "drop"].index(duplicates)
    p.combine = ["mean", "product"].index(combine)
    p.map, p.log2_capacity = alignment.table.data_ptr(), alignment.log2_capacity
    p.class_ids = alignment.class_ids.data_ptr()
    p.include = None if include is None else include.data_ptr()
    for name, tensor in result._asdict().items():
        setattr(p, name, tensor.data_ptr())
    scaled = step_weights(weights, members, combine, primary)
    for m, x in enumerate(logits):
        p.weights[m] = scaled[m]
        eligible = alignment.eligible.data_ptr() + 4 * alignment.eligible_offsets[m]
        p.logits[m] = MemberLogits(x.data_ptr(), x.stride(0), eligible, alignment.vocab_sizes[m], DTYPES[x.dtype])
    return p, result


def poisoned(dtype: torch.dtype, device: torch.device, *shape: int) -> torch.Tensor:
    """A tensor whose bytes are all wrong, so that what a kernel leaves unwritten shows."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    if tensor.numel() > 0:
        tensor.view(torch.uint8).fill_(POISON)
    return tensor
