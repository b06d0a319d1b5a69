"""The CPU kernel does what the reference does: slots exactly, probabilities to float32 rounding."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
import torch

from unite_ext import reference, unite_step
from unite_ext.ops import cpu_instruction_set
from unite_ext.testing import LOGIT_KINDS, assert_same_step, make_logits, synthetic_alignment

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = {1: (1023,), 2: (7, 1023), 3: (1023, 7, 501), 8: (63, 7, 1023, 64, 65, 1, 300, 129)}
WIDE = {1: (32000,), 2: (32000, 151646), 3: (32000, 1023, 32001)}
INSTRUCTION_SETS = ("scalar", "avx2", "avx512")
AXES = {
    "members": (1, 2, 3, 8),
    "k": (1, 10, 64, 256),
    "batch": (1, 2, 17, 64),
    "dtype": DTYPES,
    "kind": LOGIT_KINDS,
    "score": ("logits", "probs"),
    "duplicates": ("repeat", "drop"),
    "combine": ("mean", "product"),
    "strided": (False, True),
    "with_include": (False, True),
}


def pairwise_cover(axes: dict[str, tuple], seed: int = 0) -> list[dict]:
    """Cases in which every two values of every two axes meet, found greedily; members * k stays within 1024."""
    rng = np.random.default_rng(seed)
    names = list(axes)
    missing = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(names, 2)
        for i in range(len(axes[a]))
        for j in range(len(axes[b]))
        if {a, b} != {"members", "k"}
        or axes["members"][i if a == "members" else j] * axes["k"][j if a == "members" else i] <= 1024
    }
    cases = []
    while missing:
        best, gain = None, set()
        for _ in range(40):
            pick = {name: int(rng.integers(len(axes[name]))) for name in names}
            (a, i), (b, j) = sorted(missing)[int(rng.integers(len(missing)))]
            pick[a], pick[b] = i, j
            if axes["members"][pick["members"]] * axes["k"][pick["k"]] > 1024:
                continue
            covers = {pair for pair in itertools.combinations(pick.items(), 2) if pair in missing}
            if len(covers) > len(gain):
                best, gain = pick, covers
        if best is not None:
            missing -= gain
            cases.append({name: axes[name][i] for name, i in best.items()})
    return cases


def drawn_weights(rng: np.random.Generator, members: int, primary: int, combine: str) -> list[float]:
    """Weights that a step takes; those of a product are of both signs, and now and then 0."""
    if combine == "mean":
        return (rng.random(members) + 0.1).tolist()
    weights = np.where(rng.random(members) < 0.2, 0.0, rng.normal(size=members) * 1.5)
    weights[primary] = abs(weights[primary]) + 0.1
    return weights.tolist()


def run_case(sizes, *, k, batch, dtype, kind, score, duplicates, strided, with_include, combine="mean", seed=0, **_):
    alignment = synthetic_alignment(sizes, seed)
    logits = make_logits(alignment, batch, kind=kind, dtype=dtype, seed=seed, strided=strided)
    rng = np.random.default_rng(seed)
    members, primary = len(sizes), int(rng.integers(len(sizes)))
    include = None
    if with_include:
        eligible = np.flatnonzero(alignment.classes[primary].numpy() >= 0)
        include = torch.from_numpy(np.where(rng.random(batch) < 0.3, -1, rng.choice(eligible, batch)))
    options = {
        "k": k,
        "primary": primary,
        "weights": drawn_weights(rng, members, primary, combine),
        "score": score,
        "duplicates": duplicates,
        "combine": combine,
        "include": include,
    }
    got = unite_step(logits, alignment, **options)
    assert_same_step(got, reference.unite_step(logits, alignment, **options))


def name_of(case: dict) -> str:
    return "-".join(str(value).removeprefix("torch.") for value in case.values())


@pytest.mark.parametrize("case", pairwise_cover(AXES), ids=name_of)
def test_kernel_equals_reference(case):
    run_case(SIZES[case["members"]], **case)


@pytest.mark.parametrize("members", WIDE)
@pytest.mark.parametrize("kind", LOGIT_KINDS)
def test_kernel_equals_reference_on_wide_rows(members, kind):
    dtype = DTYPES[(members + LOGIT_KINDS.index(kind)) % 3]
    run_case(
        WIDE[members], k=(10, 64, 256)[LOGIT_KINDS.index(kind) % 3], batch=1 + 2 * (members == 1), dtype=dtype,
        kind=kind, score="logits", duplicates="repeat", strided=True, with_include=False,
    )  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("kind", LOGIT_KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", AXES["k"])
@pytest.mark.parametrize("members", AXES["members"])
def test_whole_matrix(members, k, dtype, kind, wide):
    sizes = (WIDE if wide else SIZES).get(members)
    if sizes is None or members * k > 1024:
        pytest.skip("not a case: members * k over 1024, or no such width")
    fixed = {"members": members, "k": k, "dtype": dtype, "kind": kind}
    others = {name: values for name, values in AXES.items() if name not in fixed}
    for values in itertools.product(*others.values()):
        case = fixed | dict(zip(others, values))
        try:
            run_case(sizes, **case)
        except AssertionError as error:
            raise AssertionError(name_of(case)) from error


@pytest.fixture
def instruction_set(request):
    before = cpu_instruction_set()
    try:
        cpu_instruction_set(request.param)
    except ValueError:
        pytest.skip(f"this machine has no {request.param}")
    yield request.param
    cpu_instruction_set(before)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", LOGIT_KINDS)
def test_every_instruction_set(instruction_set, dtype, kind):
    assert cpu_instruction_set() == instruction_set
    for score in ("logits", "probs"):
        run_case(
            (1023, 4099), k=17, batch=3, dtype=dtype, kind=kind, score=score, duplicates="repeat", strided=True,
            with_include=False,
        )  # fmt: skip


@pytest.mark.parametrize("score", ["logits", "probs"])
def test_results_do_not_depend_on_the_number_of_threads(score):
    alignment = synthetic_alignment((32000, 151646))
    before = torch.get_num_threads()
    try:
        for batch, dtype in ((1, torch.float32), (3, torch.bfloat16), (17, torch.float16)):
            logits = make_logits(alignment, batch, kind="ties" if batch == 3 else "gaussian", dtype=dtype)
            results = []
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                results.append(unite_step(logits, alignment, k=32, score=score))
            for result in results[1:]:
                for a, b in zip(result, results[0]):
                    assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)


def test_mixed_dtypes_of_members():
    alignment = synthetic_alignment(SIZES[3])
    logits = [x.to(d) for x, d in zip(make_logits(alignment, 4), DTYPES)]
    assert_same_step(unite_step(logits, alignment), reference.unite_step(logits, alignment))


def test_reference_in_float64_agrees():
    alignment = synthetic_alignment(SIZES[3])
    logits = make_logits(alignment, 9)
    double = reference.unite_step([x.double() for x in logits], alignment, k=64)
    assert_same_step(unite_step(logits, alignment, k=64), double, atol=2e-7)


def test_empty_batch():
    alignment = synthetic_alignment(SIZES[2])
    step = unite_step([torch.empty(0, size) for size in alignment.vocab_sizes], alignment, k=4)
    assert step.next_ids.shape == (0, 2)
    assert step.union_ids.shape == (0, 8, 2)


def test_rows_expanded_from_one():
    alignment = synthetic_alignment(SIZES[2])
    logits = make_logits(alignment, 1)
    many = unite_step([x.expand(5, -1) for x in logits], alignment)
    one = unite_step(logits, alignment)
    for a, b in zip(many, one):
        assert torch.equal(a, b.expand_as(a))


def test_opcheck():
    alignment = synthetic_alignment((1023, 501))
    logits = make_logits(alignment, 3, dtype=torch.bfloat16)
    args = (
        logits, alignment.table, alignment.class_ids, alignment.eligible, alignment.eligible_offsets,
        alignment.vocab_sizes, 10, 0, [0.5, 0.5], "logits", "repeat", "mean",
    )  # fmt: skip
    torch.library.opcheck(torch.ops.unite_ext.fused_step.default, args)
    product = (*args[:-4], [1.5, -0.5], *args[-3:-1], "product")
    torch.library.opcheck(torch.ops.unite_ext.fused_step.default, product)
    torch.library.opcheck(torch.ops.unite_ext.fused_step.default, (*args, torch.tensor([-1, -1, -1])))


def test_compiles_as_one_graph():
    alignment = synthetic_alignment((1023, 501))

    @torch.compile(fullgraph=True, backend=os.environ.get("UNITE_TEST_COMPILE_BACKEND", "inductor"))
    def compiled(logits):
        step = unite_step([x * 0.5 for x in logits], alignment, k=7, weights=[0.25, 0.75])
        return step.next_ids + 1, step.union_probs, step.status, step.is_eos(alignment)

    logits = make_logits(alignment, 3)
    step = unite_step([x * 0.5 for x in logits], alignment, k=7, weights=[0.25, 0.75])
    next_ids, probs, status, is_eos = compiled(logits)
    assert torch.equal(next_ids, step.next_ids + 1)
    assert torch.equal(probs, step.union_probs)
    assert torch.equal(status, step.status)
    assert torch.equal(is_eos, step.is_eos(alignment))


def test_real_vocabularies(real_alignment):
    for batch, dtype in ((1, torch.float32), (17, torch.bfloat16)):
        logits = make_logits(real_alignment, batch, dtype=dtype, padding=418)
        for k in (10, 256):
            assert_same_step(unite_step(logits, real_alignment, k=k), reference.unite_step(logits, real_alignment, k=k))
