"""The step on a GPU beside its rivals and its controls; bench_step.py --device cuda is the command line.

    python benchmarks/bench_step_cuda.py      a few steps and no timing: something small for a profiler to look at

How it is measured: a *graph* call is timed as the replay of a CUDA graph that holds many calls, an *eager* one as
Python issues it. *Cold*: calls go in turn through input sets that together exceed five times the L2, so that no logit
is in the cache. *Warm*: all calls on one set. A sample is the mean of such a row of calls; all calls of a case are
sampled in turn, so that a drifting clock hits all alike. Results are compared with the reference before anything is
timed, that of a graph's last call after its first replay.

Calls, besides unite_step:
    amax                the largest logit of every row: the same bytes, nothing else
    topk                torch.topk per member
    empty               an empty kernel
    hash_map            the launcher without the operator around it
    plain_array         the same with an array indexed by id in the hash map's place
    reference           unite_ext/reference.py, eager and in a graph
    reference_compiled  the same through torch.compile
    dictionary          the step with Python dictionaries
    flashinfer_topk     FlashInfer's top-k per member, where it is installed
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from cuda_on_cpu.emulator import step_params  # noqa: E402
from lib import cuda_cases  # noqa: E402
from lib.cuda_backend import GRAPH, CudaBackend  # noqa: E402
from lib.cuda_cases import COMPILED, PEAKS, Case  # noqa: E402
from lib.dictionary_step import DictionaryStep, assert_same_winners  # noqa: E402
from lib.measure import machine, percentiles  # noqa: E402
from lib.vocabularies import Family, load_family  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from unite_ext import reference, step_workspace, unite_step  # noqa: E402
from unite_ext.testing import assert_same_step  # noqa: E402
from unite_ext.vocab.alignment import ID_BITS, ID_MASK  # noqa: E402

TARGETS_US = {1: 8, 64: 15, 256: 40}  # two members, bfloat16, k = 10, graph, cold, on an H200
COLD_L2S = 5
WARM_CALLS = 60
ATOL = 1e-5
MIN_SAMPLES, MAX_SAMPLES = 7, 100
COMPILE_SECONDS = 60  # what torch.compile may take
LOG2_STRETCH = 18  # plain_array.cu


def input_sets(case: Case, family: Family, sets: int, device: str) -> list[torch.Tensor]:
    """[sets, batch, width] logits per member."""
    generator = torch.Generator(device).manual_seed(sets + case.batch)
    shape = (sets, case.batch)
    shared = family.shared_ids.to(device)
    chosen = shared[torch.randint(len(shared), (*shape, PEAKS), generator=generator, device=device)]
    result = []
    for m, width in enumerate(family.widths):
        x = torch.randn(*shape, width, generator=generator, device=device)
        if case.logits == "peaked":
            noise = torch.randn(*shape, PEAKS, generator=generator, device=device)
            x.scatter_add_(2, chosen[..., m], 10 + 2 * noise)
        elif case.logits == "equal":
            x.fill_(1.5)
        elif case.logits in ("ascending", "descending"):
            ramp = torch.arange(width, device=device) / 64 - 7
            x[:] = ramp if case.logits == "ascending" else -ramp
        elif case.logits == "sparse":
            x[torch.rand(x.shape, generator=generator, device=device) < 0.999] = -torch.inf
            x.scatter_(2, chosen[..., :1, m], 2)  # no row without any
        elif case.logits == "clustered":
            x[..., width // 3 : width // 3 + PEAKS] += 30
        elif case.logits != "gaussian":
            raise ValueError(f"unknown logits {case.logits!r}")
        result.append(x.to(case.dtype))
    return result


class Missing(Exception):
    """A rival that is not to be had here, or makes no sense for a case."""


class Calls:
    """The calls of one case: functions of the number of the input set, and checks of their results."""

    def __init__(self, case: Case, family: Family, backend: Any, launchers: dict[str, Any]) -> None:
        self.case, self.family, self.backend, self.launchers = case, family, backend, launchers
        self.alignment = family.alignment.to(backend.device)
        itemsize = torch.empty((), dtype=case.dtype).element_size()
        self.set_bytes = case.batch * sum(family.widths) * itemsize
        self.sets = max(2, COLD_L2S * backend.l2_bytes // self.set_bytes + 1)
        self.inputs = input_sets(case, family, self.sets, backend.device)
        self.expected = functools.lru_cache(maxsize=2)(self._expected)
        self.workspaces: list[torch.Tensor] = []

    def logits(self, i: int) -> list[torch.Tensor]:
        return [x[i] for x in self.inputs]

    def _expected(self, i: int) -> reference.StepResult:
        return reference.unite_step(self.logits(i), self.alignment, k=self.case.k)

    def function(self, name: str, mode: str) -> Callable[[int], Any]:
        """Raises Missing."""
        k, alignment, logits = self.case.k, self.alignment, self.logits
        if name == "unite_step" and mode == GRAPH:
            workspace = step_workspace(logits(0), alignment, k=k)
            self.workspaces.append(workspace)
            return lambda i: unite_step(logits(i), alignment, k=k, workspace=workspace)
        if name == "unite_step":
            return lambda i: unite_step(logits(i), alignment, k=k)
        if name == "amax":
            return lambda i: [x.amax(dim=1) for x in logits(i)]
        if name == "topk":
            return lambda i: [x.topk(k).values for x in logits(i)]
        if name == "reference":
            return lambda i: reference.unite_step(logits(i), alignment, k=k)
        if name == "reference_compiled":
            return lambda i: self.compiled(*logits(i))
        return {
            "dictionary": self._dictionary,
            "flashinfer_topk": self._flashinfer,
            "empty": self._empty,
            "hash_map": lambda: self._launcher("hash_map", alignment.table),
            "plain_array": lambda: self._launcher("plain_array", plain_array(alignment)),
        }[name]()

    @functools.cached_property
    def compiled(self) -> Callable[..., Any]:
        alignment, k = self.alignment, self.case.k
        alignment.classes  # noqa: B018 (made on first use)
        return torch.compile(lambda *x: reference.unite_step(list(x), alignment, k=k), dynamic=False)

    def _dictionary(self) -> Callable[[int], Any]:
        if (
            self.case.batch > cuda_cases.DICTIONARY_MAX_BATCH
            or self.case.k > cuda_cases.DICTIONARY_MAX_K
            or self.case.members != 2
        ):
            raise Missing("takes seconds, or is wrong there")
        step = DictionaryStep(self.family.tokenizers)
        return lambda i: step(self.logits(i), self.case.k)

    def _flashinfer(self) -> Callable[[int], Any]:
        try:
            from flashinfer import top_k
        except ImportError as error:
            raise Missing(str(error)) from error
        return lambda i: [top_k(x, self.case.k)[0] for x in self.logits(i)]

    def _empty(self) -> Callable[[int], Any]:
        if "plain_array" not in self.launchers:
            raise Missing("needs nvcc")
        launch = self.launchers["plain_array"].lib.gpu_empty_launch
        launch.argtypes = [ctypes.c_void_p]

        def call(i: int) -> None:
            if launch(torch.cuda.current_stream().cuda_stream) != 0:
                raise RuntimeError("the launch was refused")

        return call

    def _launcher(self, name: str, table: torch.Tensor) -> Callable[[int], Any]:
        if name not in self.launchers:
            raise Missing("needs nvcc")
        driver = self.launchers[name]
        steps = [step_params(self.logits(i), self.alignment, k=self.case.k) for i in range(self.sets)]
        for params, _ in steps:
            params.map = table.data_ptr()
        config = driver.chosen(steps[0][0])
        workspace = step_workspace(self.logits(0), self.alignment, k=self.case.k)
        self.workspaces += [workspace, table]

        def call(i: int) -> Any:
            params, result = steps[i]
            if driver.launch(params, workspace, config) != 0:
                raise RuntimeError("the launch was refused")
            return result

        return call

    def check(self, name: str, result: Any, i: int) -> None:
        """AssertionError if the result is not that of the reference on input set i."""
        if name == "empty":
            return
        expected = self.expected(i)
        if name == "amax":
            for x, largest in zip(self.logits(i), result, strict=True):
                assert torch.equal(largest, x.sort(dim=1, descending=True).values[:, 0])
        elif name in ("topk", "flashinfer_topk"):
            for x, values in zip(self.logits(i), result, strict=True):
                best = x.sort(dim=1, descending=True).values[:, : self.case.k]
                assert torch.equal(values.sort(dim=1, descending=True).values, best)
        elif name == "dictionary":
            assert_same_winners(result, expected)
        else:
            assert_same_step(result, expected, atol=ATOL)

    def action(self, name: str, mode: str, function: Callable[[int], Any], cache: str) -> tuple[Callable, int]:
        """What one sample does, and how many calls that is."""
        order = list(range(self.sets)) if cache == "cold" else [0] * WARM_CALLS
        if mode == GRAPH:
            replay, result = self.backend.capture([functools.partial(function, i) for i in order])
            poison(result)
            replay()
            self.check(name, result, order[-1])
            return replay, len(order)
        turns = itertools.cycle(order)
        once = self.backend.seconds(lambda: function(next(turns)), mode)
        calls = max(1, min(WARM_CALLS, int(0.02 / max(once, 1e-6))))

        def issue() -> None:
            for _ in range(calls):
                function(next(turns))

        return issue, calls


def plain_array(alignment: Any) -> torch.Tensor:
    """The hash map's entries where plain_array.cu looks for them."""
    if max(alignment.vocab_sizes) > 1 << LOG2_STRETCH:
        raise Missing(f"stretches hold {1 << LOG2_STRETCH} ids")
    table = alignment.table
    array = torch.full((alignment.num_members << LOG2_STRETCH, 4), -1, dtype=table.dtype, device=table.device)
    held = table[table[:, 0] != -1]
    key = held[:, 0].long()
    array[(key >> ID_BITS << LOG2_STRETCH) | (key & ID_MASK)] = held
    return array


def poison(result: Any) -> None:
    """Wrong values in every tensor, so that what a replay leaves unwritten shows."""
    for value in tree_leaves(result):
        if isinstance(value, torch.Tensor):
            value.fill_(77)


def sample_in_turn(
    backend: Any, actions: dict[Any, tuple[Callable[[], None], int]], modes: dict[Any, str], seconds: float
) -> dict[Any, list[float]]:
    """Seconds per call of each action. Each is sampled for about `seconds`, a slow one a few times at least."""
    for key, (action, _) in actions.items():
        backend.seconds(action, modes[key])
    samples: dict[Any, list[float]] = {key: [] for key in actions}
    spent = dict.fromkeys(actions, 0.0)
    while waiting := [
        key
        for key, values in samples.items()
        if len(values) < MIN_SAMPLES or (spent[key] < seconds and len(values) < MAX_SAMPLES)
    ]:
        for key in waiting:
            action, calls = actions[key]
            once = backend.seconds(action, modes[key])
            spent[key] += once
            samples[key].append(once / calls)
    return samples


def measure_case(
    case: Case, facts: dict, backend: Any, launchers: dict[str, Any], seconds: float, failures: list[str]
) -> list[dict]:
    """One row per call and cache; what goes wrong is printed and, unless it may be missing, noted as a failure."""
    family = load_family(case.members)
    calls = Calls(case, family, backend, launchers)
    actions, modes = {}, {}
    for name, mode in case.calls:
        try:
            function = calls.function(name, mode)
            for i in (0, calls.sets - 1):
                calls.check(name, function(i), i)
            for cache in ("cold", "warm"):
                actions[name, mode, cache] = calls.action(name, mode, function, cache)
                modes[name, mode, cache] = mode
        except Missing as error:
            print(f"{case} {name} {mode}: not measured: {error}", flush=True)
        except Exception as error:
            actions = {key: action for key, action in actions.items() if key[:2] != (name, mode)}
            words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            print(f"{case} {name} {mode}: FAILED: {words}", flush=True)
            if (name, mode) not in cuda_cases.MAY_BE_MISSING or isinstance(error, AssertionError):
                failures.append(f"{case} {name} {mode}")

    samples = sample_in_turn(backend, actions, modes, seconds)
    times = {key: percentiles(values) for key, values in samples.items()}
    rows = []
    for (name, mode, cache), percentile in times.items():
        p50 = percentile["p50_us"]
        floor = times.get(("amax", GRAPH, cache))
        rows.append(
            facts
            | {"members": case.members, "vocabularies": family.source, "batch": case.batch, "k": case.k}
            | {"dtype": str(case.dtype).removeprefix("torch."), "logits": case.logits}
            | {"call": name, "cache": cache, "mode": mode, "sets": calls.sets if cache == "cold" else 1}
            | {"calls": actions[name, mode, cache][1], "samples": len(samples[name, mode, cache])}
            | percentile
            | {"gb_per_s": "" if name == "empty" else round(calls.set_bytes / max(p50, 1e-3) / 1e3, 1)}
            | {"over_amax": round(p50 / max(floor["p50_us"], 1e-3), 3) if floor else ""}
        )
        print(f"{case!s:38} {name:18} {mode:5} {cache} {p50:>11.2f} µs {rows[-1]['gb_per_s']:>8} GB/s", flush=True)
    return rows


def measure_cuda(
    *,
    quick: bool = False,
    budget: float | None = None,
    seconds: float = 0.1,
    save: Callable[[list[dict]], None] | None = None,
    backend: Any = None,
    cases: list[Case] | None = None,
) -> list[dict]:
    """One row per case, call and cache.

    Parameters
    ----------
    quick : bool
        Only the most telling cases.
    budget : float, optional
        No case is started after this many seconds.
    seconds : float
        Device time per call, cache and case.
    save : callable, optional
        Gets the rows of each case as soon as they are measured.

    Raises
    ------
    RuntimeError
        At the end, if some call went wrong; the rows of the others have been saved.
    """
    start = time.perf_counter()
    if backend is None:
        if not torch.cuda.is_available():
            raise SystemExit("needs a CUDA device and a CUDA build of torch")
        backend = CudaBackend()
    facts = machine(backend.device)
    launchers = backend.build_launchers()
    backend.warm_up()
    rows: list[dict] = []
    failures: list[str] = []
    for case in cuda_cases.all_cases(quick) if cases is None else cases:
        reserve = COMPILE_SECONDS if case.calls == COMPILED else 0
        if budget is not None and time.perf_counter() - start + reserve > budget:
            print(f"{case}: not measured, out of time", flush=True)
            continue
        try:
            measured = measure_case(case, facts, backend, launchers, seconds, failures)
        except Exception as error:
            print(f"{case}: FAILED: {type(error).__name__}: {error}", flush=True)
            failures.append(str(case))
            continue
        finally:
            gc.collect()  # graphs and inputs of the case; must not happen during the next one's captures
        rows += measured
        if save is not None and measured:
            save(measured)
    print_targets(rows)
    print(f"{len(rows)} rows in {time.perf_counter() - start:.0f} s", flush=True)
    if failures:
        raise RuntimeError(f"{len(failures)} went wrong: {'; '.join(failures)}")
    return rows


def print_targets(rows: list[dict]) -> None:
    """The figures that the step was designed for, last."""
    wanted = {"members": 2, "k": 10, "dtype": "bfloat16", "logits": "peaked"}
    wanted |= {"call": "unite_step", "cache": "cold", "mode": GRAPH}
    seen = set()
    for row in rows:
        if wanted.items() <= row.items() and row["batch"] not in seen:
            seen.add(row["batch"])
            target = TARGETS_US.get(row["batch"], "-")
            print(f"B={row['batch']:<3} {row['p50_us']:>8.2f} µs  target {target:>2}  {row['over_amax']} x amax")


def show_to_profiler() -> None:
    """Two steps each of the batches that have a target."""
    family = load_family(2)
    alignment = family.alignment.to("cuda")
    for batch in TARGETS_US:
        inputs = input_sets(Case(batch), family, 2, "cuda")
        for i in range(2):
            unite_step([x[i] for x in inputs], alignment)
    torch.cuda.synchronize()


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    show_to_profiler()
