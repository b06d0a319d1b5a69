"""The step in parts: together the fused step bit for bit, each what the reference says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_step import AXES, DTYPES, SIZES, drawn_weights, name_of, pairwise_cover
from test_step_laws import cases

from unite_ext import exchange, reference, step_parts, unite_step
from unite_ext._checks import step_weights
from unite_ext._core import BAD_INCLUDE, FIRST_SUB_TOKEN, ID_MASK, NO_CLASS, NO_ID
from unite_ext.ops import cpu_instruction_set
from unite_ext.testing import (
    ATOL,
    LOGIT_KINDS,
    assert_bitwise_equal,
    assert_same_step,
    make_logits,
    step_in_parts,
    synthetic_alignment,
)


def options_of(case, alignment, seed=0):
    """The options of a case of `AXES`; now and then an `include` that is not eligible."""
    rng = np.random.default_rng(seed)
    members, batch = alignment.num_members, case["batch"]
    options = {name: case[name] for name in ("k", "score", "duplicates", "combine")}
    options["primary"] = int(rng.integers(members))
    options["weights"] = drawn_weights(rng, members, options["primary"], options["combine"])
    if case["with_include"]:
        options["include"] = torch.from_numpy(rng.integers(-1, alignment.vocab_sizes[options["primary"]], batch))
    return options


def fused(logits, alignment, **options):
    """The fused step without its check of failed rows."""
    combine = options.get("combine", "mean")
    weights = step_weights(options.get("weights"), len(logits), combine, options.get("primary", 0))
    return reference.StepResult(
        *torch.ops.unite_ext.fused_step(
            logits, alignment.table, alignment.class_ids, alignment.eligible, alignment.eligible_offsets,
            alignment.vocab_sizes, options.get("k", 10), options.get("primary", 0),
            weights, options.get("score", "logits"), options.get("duplicates", "repeat"), combine,
            options.get("include"),
        )
    )  # fmt: skip


@pytest.mark.parametrize("case", pairwise_cover(AXES, seed=1), ids=name_of)
def test_parts_are_the_fused_step(case):
    alignment = synthetic_alignment(SIZES[case["members"]])
    logits = make_logits(alignment, case["batch"], kind=case["kind"], dtype=case["dtype"], strided=case["strided"])
    options = options_of(case, alignment)
    got = step_in_parts(step_parts, logits, alignment, **options)
    assert_bitwise_equal(got, fused(logits, alignment, **options))
    assert_same_step(got, reference.unite_step(logits, alignment, **options))


@settings(max_examples=150, deadline=None)
@given(cases(), st.data())
def test_parts_are_the_fused_step_by_law(case, data):
    alignment, logits, options = case
    batch = logits[0].shape[0]
    for x in logits:  # a member may bring nothing to a row
        x[data.draw(st.sets(st.integers(0, batch - 1), max_size=1).map(list))] = -torch.inf
    include = st.integers(-1, alignment.vocab_sizes[options["primary"]])
    options["include"] = torch.tensor(data.draw(st.lists(include, min_size=batch, max_size=batch)))
    got = step_in_parts(step_parts, logits, alignment, **options)
    assert_bitwise_equal(got, fused(logits, alignment, **options))
    assert_same_step(got, reference.unite_step(logits, alignment, **options))


@pytest.mark.parametrize("score", ["logits", "probs"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wide_rows_threads_and_instruction_sets(score, dtype):
    """A member's keys do not depend on how work is split between threads, or on the other members."""
    alignment = synthetic_alignment((32000, 40001))
    logits = make_logits(alignment, 3, dtype=dtype, strided=True)
    want = unite_step(logits, alignment, k=32, score=score)
    threads, isa = torch.get_num_threads(), cpu_instruction_set()
    try:
        for count, name in ((1, "scalar"), (2, isa), (5, isa)):
            torch.set_num_threads(count)
            cpu_instruction_set(name)
            assert_bitwise_equal(step_in_parts(step_parts, logits, alignment, k=32, score=score), want)
    finally:
        torch.set_num_threads(threads)
        cpu_instruction_set(isa)


@pytest.mark.parametrize("score", ["logits", "probs"])
@pytest.mark.parametrize("kind", LOGIT_KINDS)
@pytest.mark.parametrize("k", [1, 10, 256])
def test_top_k_keys(kind, k, score):
    alignment = synthetic_alignment((1023, 501))
    logits = make_logits(alignment, 3, kind=kind, dtype=DTYPES[k % 3])
    logits[1][1] = -torch.inf
    for m, x in enumerate(logits):
        keys, log_sums = step_parts.top_k_keys(x, alignment, m, k=k, score=score)
        want, want_sums = reference.top_k_keys(x, alignment, m, k=k, score=score)
        assert torch.equal(keys, want)
        torch.testing.assert_close(log_sums, want_sums, rtol=1e-6, atol=1e-6)
        assert keys.shape == (3, k)
        assert score == "probs" or not log_sums.any()


def test_keys_order_by_logit_then_id_and_keep_both():
    values = torch.tensor([3.5, 3.5, 0.0, -0.0, -1e-45, -2.0, -3.4e38])
    ids = torch.tensor([4, 7, 1, 2, 0, 2**28 - 1, 9])
    keys = exchange.make_keys(values, ids)
    assert torch.equal(exchange.key_ids(keys), ids)
    assert torch.equal(exchange.key_values(keys), values)
    unsigned = [key % 2**64 for key in keys.tolist()]
    assert unsigned == sorted(unsigned, reverse=True)
    assert len({*unsigned}) == len(unsigned)
    assert min(unsigned) > exchange.NO_KEY
    none = torch.tensor([exchange.NO_KEY])
    assert exchange.key_ids(none).item() == NO_ID
    assert exchange.key_values(none).item() == -torch.inf


def test_the_flag_stays_on_first_sub_tokens_only():
    alignment = synthetic_alignment((300, 200))
    logits = make_logits(alignment, 8)
    keys = torch.stack([step_parts.top_k_keys(x, alignment, m)[0] for m, x in enumerate(logits)], dim=1)
    union = step_parts.unite_keys(keys, alignment)
    assert isinstance(union, exchange.UnionSlots)
    own = exchange.key_ids(keys)
    flagged = 0
    for row, slot, m in np.ndindex(*union.slots.shape):
        tagged, cls = int(union.slots[row, slot, m]), int(union.slot_classes[row, slot])
        if slot >= union.union_size[row]:
            assert (tagged, cls) == (NO_ID, NO_CLASS)
        elif tagged >= FIRST_SUB_TOKEN:
            flagged += 1
            assert tagged == alignment.class_ids[cls, m]
        elif tagged >= 0 and tagged not in own[row, m].tolist():
            assert tagged == alignment.class_ids[cls, m]
    assert flagged > 0


def test_keys_that_no_member_could_have_made_count_as_none():
    """Bad keys, as a network might send, cause no bad memory access and never open a slot."""
    alignment = synthetic_alignment((40, 60, 50))
    logits = make_logits(alignment, 6)
    keys = torch.stack([step_parts.top_k_keys(x, alignment, m, k=4)[0] for m, x in enumerate(logits)], dim=1)
    special = int((alignment.classes[0] < 0).nonzero()[0, 0])
    one = torch.ones(1)
    for row, bad in enumerate([special, 40, 2**28 + 1, 2**31 - 1, 2**32 - 2]):
        keys[row, 0, 0] = exchange.make_keys(one, torch.tensor([bad]))
        assert exchange.key_ids(keys)[row, 0, 0] == bad
    keys[0, 0, 1] = exchange.make_keys(one * torch.inf * 0, torch.tensor([1]))  # NaN
    keys[1, 0, 1] = exchange.make_keys(-one * torch.inf, torch.tensor([1]))
    keys[5, 1] = exchange.make_keys(one, torch.arange(60, 64))
    got = step_parts.unite_keys(keys, alignment)
    for a, b in zip(got, reference.unite_keys(keys, alignment)):
        assert torch.equal(a, b)
    assert got.status.tolist() == [0, 0, 0, 0, 0, 2]
    assert (got.slots[5] == NO_ID).all()
    assert got.union_size[5] == 0


def test_gather_logits_is_clean_and_stays_in_its_row():
    for dtype in DTYPES:
        x = torch.tensor([[1.5, torch.inf, torch.nan, -torch.inf, -0.0], [2.0, 3.0, -torch.nan, 4.0, 5.0]]).to(dtype)
        ids = torch.tensor([[0, 1, 2, 3, 4, -1, 5], [4 | FIRST_SUB_TOKEN, 2**28 - 1, -7, 2**29, 1, 2, 3]])
        largest = torch.finfo(dtype).max
        inf = torch.inf
        want = torch.tensor([[1.5, largest, -inf, -inf, 0.0, -inf, -inf], [5.0, -inf, -inf, -inf, 3.0, -inf, 4.0]])
        for given_ids in (ids, ids.int(), ids.repeat_interleave(2, dim=1)[:, ::2], ids.T.contiguous().T):
            got = step_parts.gather_logits(x, given_ids)
            assert got.dtype == torch.float32
            assert torch.equal(got, want)
            assert not torch.signbit(got[0, 4])
            assert torch.equal(got, reference.gather_logits(x, given_ids))


@pytest.mark.parametrize("score", ["logits", "probs"])
@pytest.mark.parametrize("duplicates", ["repeat", "drop"])
def test_values_of_own_proposals_come_from_the_keys(score, duplicates):
    """A member behind a server therefore need not request them again."""
    alignment = synthetic_alignment((300, 200))
    logits = make_logits(alignment, 5, kind="ties")
    tops = [step_parts.top_k_keys(x, alignment, m, score=score) for m, x in enumerate(logits)]
    union = step_parts.unite_keys(torch.stack([keys for keys, _ in tops], dim=1), alignment)
    for m, (keys, log_sums) in enumerate(tops):
        slots = union.slots[:, :, m]
        values = step_parts.gather_logits(logits[m], slots)
        in_keys = ((slots & ID_MASK)[:, :, None] == exchange.key_ids(keys)[:, None]).any(dim=2) & (slots >= 0)
        assert in_keys.any()
        rules = {"score": score, "duplicates": duplicates}
        given_keys = (slots, union.union_size, keys, union.key_slots[:, m], log_sums)
        want = step_parts.score_slots(values, *given_keys, **rules)
        for wrong in (torch.nan, 1e9, -torch.inf):
            got = step_parts.score_slots(values.masked_fill(in_keys, wrong), *given_keys, **rules)
            assert torch.equal(got, want)
        told = reference.score_slots(values, *given_keys, **rules)
        torch.testing.assert_close(got, told, rtol=0, atol=ATOL)


def test_failed_rows():
    alignment = synthetic_alignment((40, 60))
    logits = make_logits(alignment, 3)
    logits[1][1] = -torch.inf
    special = int((alignment.classes[0] < 0).nonzero()[0, 0])
    step = step_in_parts(step_parts, logits, alignment, include=torch.tensor([-1, -1, special]))
    assert step.status.tolist() == [0, 2, BAD_INCLUDE]
    assert not step.member_probs[1:].any()
    assert (step.next_ids[1:] == -1).all()
    with pytest.raises(ValueError, match=r"logits\[1\] has no eligible logit above -inf in row 1"):
        step.check()


def test_combining_what_no_union_gives_is_safe():
    """Sizes past the slots are clamped, and a row whose slots the primary cannot emit fails."""
    slots = torch.tensor([[[NO_ID, 5], [NO_ID, 6]]] * 2).int()
    union = exchange.UnionSlots(
        slots, torch.tensor([[3, 4]] * 2).int(), torch.tensor([9, -9]).int(), torch.zeros(2).int(),
        torch.zeros(2, 2, 1).int(),
    )  # fmt: skip
    step = step_parts.combine_slots(torch.full((2, 2, 2), 0.5), union)
    assert step.winner.tolist() == [-1, -1]
    assert step.status.tolist() == [1, 1]
    assert step.union_size.tolist() == [2, 0]
    assert (step.next_ids == -1).all()


def test_empty_batch():
    alignment = synthetic_alignment((7, 1023))
    step = step_in_parts(step_parts, [torch.empty(0, size) for size in alignment.vocab_sizes], alignment, k=4)
    assert step.union_ids.shape == (0, 8, 2)


def test_strided_arguments():
    """Columns, transposed batches and what a collective leaves behind need no copy by the caller."""
    alignment = synthetic_alignment((300, 200))
    logits = make_logits(alignment, 5)
    want = unite_step(logits, alignment)
    tops = [step_parts.top_k_keys(x, alignment, m) for m, x in enumerate(logits)]
    gathered = torch.stack([keys for keys, _ in tops])  # [M, B, k]
    union = step_parts.unite_keys(gathered.transpose(0, 1), alignment)
    columns = torch.stack(
        [
            step_parts.score_slots(
                step_parts.gather_logits(x, union.slots[:, :, m]).T.contiguous().T, union.slots[:, :, m],
                union.union_size, gathered.transpose(0, 1)[:, m], union.key_slots[:, m], tops[m][1],
                score="logits", duplicates="repeat",
            )
            for m, x in enumerate(logits)
        ]
    )  # fmt: skip
    assert_bitwise_equal(step_parts.combine_slots(columns.permute(1, 2, 0), union), want)


def test_compiles_as_one_graph():
    alignment = synthetic_alignment((1023, 501))
    logits = make_logits(alignment, 3)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(logits):
        return step_in_parts(step_parts, logits, alignment, k=7, weights=[0.25, 0.75], score="probs")

    assert_bitwise_equal(compiled(logits), unite_step(logits, alignment, k=7, weights=[0.25, 0.75], score="probs"))


def operator_calls(device="cpu"):
    """Every operator with arguments of a real step, by name."""
    alignment = synthetic_alignment((1023, 501))
    logits = [x.to(device) for x in make_logits(alignment, 3, dtype=torch.bfloat16)]
    alignment = alignment.to(device)
    first = (logits[0], alignment.eligible, alignment.eligible_offsets[0], alignment.vocab_sizes[0], 10, "probs")
    tops = [step_parts.top_k_keys(x, alignment, m, score="probs") for m, x in enumerate(logits)]
    keys = torch.stack([keys for keys, _ in tops], dim=1)
    tables = (alignment.table, alignment.class_ids, alignment.vocab_sizes)
    union = step_parts.unite_keys(keys, alignment)
    column = union.slots[:, :, 0]
    values, sums = step_parts.gather_logits(logits[0], column), tops[0][1]
    include = torch.full((3,), -1, device=device)
    return {
        "top_k_keys": [first],
        "unite_keys": [(keys, *tables, 0, [0.5, 0.5], "mean"), (keys, *tables, 1, [-1.0, 2.0], "product", include)],
        "gather_logits": [(logits[0], column), (logits[0], column.long())],
        "score_slots": [
            (values, column, union.union_size, keys[:, 0], union.key_slots[:, 0], sums, "probs", "drop", combine)
            for combine in ("mean", "product")
        ],
        "combine_slots": [
            (torch.rand(union.slots.shape, device=device), *union[:4], 0, weights, combine)
            for weights, combine in (([0.5, 0.5], "mean"), ([1.5, -0.5], "product"))
        ],
    }


@pytest.mark.parametrize("name", ["top_k_keys", "unite_keys", "gather_logits", "score_slots", "combine_slots"])
def test_opcheck(name):
    for arguments in operator_calls()[name]:
        torch.library.opcheck(getattr(torch.ops.unite_ext, name).default, arguments)
