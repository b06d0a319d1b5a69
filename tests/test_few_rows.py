"""Linear layers for few rows give what torch's give, row by row the same, and are what members on CPUs run."""

from __future__ import annotations

import copy
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import toy_tokenizers
from hypothesis import given
from hypothesis import strategies as st
from test_kv_cache import alone
from test_tree_cache import assert_close
from torch import nn
from toy_models import toy_model

from unite_ext import UniteEnsemble
from unite_ext.members import few_rows
from unite_ext.members.cache_probe import probe_reuse
from unite_ext.members.few_rows import MOST_ROWS, FewRowsLinear, leaving_out, use_few_rows_linear
from unite_ext.members.transformers import Member
from unite_ext.members.tree_cache import TreeCache

OPERATOR = torch.ops.unite_ext.few_rows_linear
BEST = torch.ops.unite_ext.cpu_instruction_set()


def drawn(count: int, width: int, outs: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Rows, weight and bias."""
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, generator=g).to(dtype) for shape in ((count, width), (outs, width), (outs,)))


@pytest.fixture(params=[BEST, "scalar"] if BEST != "scalar" else ["scalar"])
def instructions(request):
    """Every instruction set of this machine that has code of its own."""
    torch.ops.unite_ext.cpu_instruction_set(request.param)
    yield request.param
    torch.ops.unite_ext.cpu_instruction_set(BEST)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6, 7, 8, 11, MOST_ROWS])
@pytest.mark.parametrize(("width", "outs"), [(1, 1), (7, 13), (64, 24), (100, 257), (4864, 30)])
def test_it_is_a_linear_layer(instructions, count, width, outs, dtype):
    """Beside sums in float64: to 1e-6 of the summands' size in float32, the nearest or next to it in bfloat16."""
    rows, weight, bias = drawn(count, width, outs, dtype)
    for own in (bias, None):
        added = 0.0 if own is None else own.double()
        found = OPERATOR(rows, weight, own)
        expected = rows.double() @ weight.double().T + added
        assert found.dtype is dtype
        assert found.shape == (count, outs)
        size = rows.double().abs() @ weight.double().abs().T + abs(added)
        rounding = 1e-6 * size + (expected.abs() / 128 if dtype is torch.bfloat16 else 0)
        assert bool(((found.double() - expected).abs() <= rounding).all())


@given(count=st.integers(1, MOST_ROWS), width=st.integers(1, 70), outs=st.integers(1, 70), is_short=st.booleans())
def test_a_row_does_not_depend_on_those_beside_it(count, width, outs, is_short):
    rows, weight, bias = drawn(count, width, outs, torch.bfloat16 if is_short else torch.float32, seed=width)
    together = OPERATOR(rows, weight, bias)
    for at in range(count):
        assert torch.equal(together[at : at + 1], OPERATOR(rows[at : at + 1].clone(), weight, bias))


def test_threads_change_nothing():
    rows, weight, bias = drawn(5, 300, 1000, torch.float32)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(OPERATOR(rows, weight, bias))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_what_is_no_number_stays(instructions):
    for dtype in (torch.float32, torch.bfloat16):
        rows, weight, _ = drawn(3, 20, 5, dtype)
        rows[0, 3], rows[1, 4], weight[:, 4] = torch.nan, torch.inf, 1.0
        found = OPERATOR(rows, weight)
        assert bool(found[0].isnan().all())
        assert bool((found[1] == torch.inf).all())
        assert bool(found[2].isfinite().all())


def test_bfloat16_is_rounded_to_the_nearest_even(instructions):
    """257 lies between 256 and 258, 259 between 258 and 260: the even one of 8 bits is 256 and 260."""
    weight = torch.tensor([[256.0, 1.0], [256.0, 3.0], [256.0, 1.0078125]], dtype=torch.bfloat16)
    rows = torch.ones(1, 2, dtype=torch.bfloat16)
    assert OPERATOR(rows, weight)[0].tolist() == [256.0, 260.0, 258.0]


def test_opcheck():
    for arguments in (drawn(3, 20, 5, torch.float32), drawn(3, 20, 5, torch.bfloat16)[:2]):
        torch.library.opcheck(OPERATOR.default, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows, weight, bias: (rows.double(), weight, bias), "rows must be float32"),
        (lambda rows, weight, bias: (rows.half(), weight.half(), None), "rows must be float32 or bfloat16"),
        (lambda rows, weight, bias: (rows[0], weight, bias), "rows must have 2 dimensions, got 1"),
        (lambda rows, weight, bias: (rows.T.contiguous().T, weight, bias), "rows must be contiguous"),
        (lambda rows, weight, bias: (rows, weight.bfloat16(), bias), "weight has the wrong dtype"),
        (lambda rows, weight, bias: (rows, weight[:, :-1].clone(), bias), r"weight must be \[outs, 8\], got \[4, 7\]"),
        (lambda rows, weight, bias: (rows, weight, bias.double()), "bias has the wrong dtype"),
        (lambda rows, weight, bias: (rows, weight, bias[1:].clone()), "bias must have 4 entries, got 3"),
    ],
)
def test_direct_calls_are_checked(change, message):
    with pytest.raises(RuntimeError, match=message):
        OPERATOR(*change(*drawn(3, 8, 4, torch.float32)))


class Calls:
    """Counts what goes to the operator, and lets it through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        monkeypatch.setattr(few_rows.torch.ops.unite_ext, "few_rows_linear", self)

    def __call__(self, rows, weight, bias):
        self.rows.append(len(rows))
        return OPERATOR(rows, weight, bias)


def layer(width: int = 640, outs: int = 512, **options) -> nn.Linear:
    torch.manual_seed(0)
    found = nn.Linear(width, outs, **options)
    use_few_rows_linear(found)
    return found


needs_code = pytest.mark.skipif(BEST == "scalar", reason="the processor has no AVX2")


@needs_code
@torch.no_grad()
def test_layers_use_it_where_it_pays(monkeypatch):
    calls, own = Calls(monkeypatch), layer()
    assert type(own) is FewRowsLinear
    plain = nn.Linear(640, 512)
    plain.load_state_dict(own.state_dict())
    for shape in [(1, 1, 640), (2, 3, 640), (640,), (MOST_ROWS, 640), (0, 640)]:
        rows = torch.randn(shape)
        torch.testing.assert_close(own(rows), plain(rows), atol=1e-5, rtol=0)
    assert calls.rows == [1, 6, 1, MOST_ROWS, 0]
    across = torch.randn(640, 3).T
    torch.testing.assert_close(own(across), plain(across), atol=1e-5, rtol=0)
    assert calls.rows.pop() == 3
    assert torch.equal(own(torch.ones(MOST_ROWS + 1, 640)), plain(torch.ones(MOST_ROWS + 1, 640)))
    assert len(calls.rows) == 5


@needs_code
@torch.no_grad()
def test_narrow_layers_use_it_for_fewer_rows(monkeypatch):
    calls = Calls(monkeypatch)
    model = nn.ModuleList([nn.Linear(255, 2048), nn.Linear(256, 2048)])
    use_few_rows_linear(model)
    for own in model:
        for count in (16, 17):
            rows = torch.randn(count, own.in_features)
            torch.testing.assert_close(own(rows), nn.Linear.forward(own, rows), atol=1e-5, rtol=0)
    assert calls.rows == [16, 16, *([17] if MOST_ROWS > 16 else [])]


@needs_code
def test_layers_are_torch_s_elsewhere(monkeypatch):
    calls, own = Calls(monkeypatch), layer()
    own(torch.randn(2, 640)).sum().backward()
    assert own.weight.grad is not None
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert own(torch.randn(2, 640)).dtype is torch.bfloat16
        assert own.double()(torch.randn(2, 640).double()).dtype is torch.float64
        with pytest.raises(RuntimeError, match="dtype"):
            own(torch.randn(2, 640))
        with pytest.raises(RuntimeError, match="shapes"):
            own.float()(torch.randn(2, 320))
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            own(torch.randn(2, 640).double())
        assert torch.compile(own, backend="eager")(torch.randn(2, 640)).shape == (2, 512)
        own.weight.data = own.weight.data.T.contiguous().T
        own(torch.randn(2, 640))
    assert calls.rows == []


@needs_code
@torch.no_grad()
def test_bfloat16_goes_where_torch_has_no_instructions(monkeypatch):
    calls, own = Calls(monkeypatch), layer(dtype=torch.bfloat16)
    short, long = (torch.float32,), (torch.float32, torch.bfloat16)
    for dtypes, expected in ((short, []), (long, [3, 2 * MOST_ROWS])):
        monkeypatch.setattr(few_rows, "_DTYPES", dtypes)
        for count in (3, 2 * MOST_ROWS):
            rows = torch.randn(count, 640, dtype=torch.bfloat16)
            torch.testing.assert_close(own(rows), nn.Linear.forward(own, rows), atol=1e-2, rtol=1e-2)
        assert calls.rows == expected


@needs_code
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_nobody_uses_is_left_out(monkeypatch, dtype):
    monkeypatch.setattr(few_rows, "_DTYPES", (torch.float32, torch.bfloat16))
    calls, own = Calls(monkeypatch), layer(dtype=dtype)
    rows = torch.randn(3, 4, 640, dtype=dtype)
    used = np.array([[False, False, True, True], [True] * 4, [False] * 4])
    plain = own(rows)
    calls.rows.clear()
    with leaving_out(used):
        found = own(rows)
        assert calls.rows == [6]
        assert torch.equal(own(rows[:, :2]), plain[:, :2])  # another shape
        assert torch.equal(own(rows[0]), plain[0])
        with ThreadPoolExecutor(1) as pool:  # another pass
            assert torch.equal(pool.submit(torch.no_grad()(own), rows).result(), plain)
    assert torch.equal(found[used], plain[used])
    assert not found[~used].any()
    assert torch.equal(own(rows), plain)
    calls.rows.clear()
    with leaving_out(used[:, :2], used):
        own(rows[:, :2])
        own(rows)
    with pytest.raises(RuntimeError, match="shapes"), leaving_out(used):
        own(rows[..., 1:])
    own(rows)
    with leaving_out(np.ones((3, 4), dtype=np.bool_), used):  # of one shape: the first counts
        own(rows)
    assert calls.rows == [2, 6, 12, 12]


@needs_code
@torch.no_grad()
@pytest.mark.parametrize("count", [25, 90])
def test_many_rows_of_which_some_are_used(monkeypatch, count):
    """25 of 100 are few rows, 90 are torch's."""
    calls, own = Calls(monkeypatch), layer()
    rows, used = torch.randn(50, 2, 640), np.zeros((50, 2), dtype=np.bool_)
    used.flat[torch.randperm(100, generator=torch.Generator().manual_seed(3))[:count].numpy()] = True
    with leaving_out(used):
        found = own(rows)
    torch.testing.assert_close(found[used], nn.Linear.forward(own, rows)[used], atol=1e-5, rtol=0)
    assert not found[~used].any()
    assert calls.rows == ([count] if count <= MOST_ROWS else [])


@needs_code
@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "mistral-window", "gemma2"])
def test_passes_compute_what_is_asked_for(monkeypatch, kind):
    """Rows that feed less than others, in batches and trees: layers see what is fed, and the head what is asked."""
    monkeypatch.setattr(few_rows, "_LEAST_WEIGHT", 1)
    model = toy_model(kind, toy_tokenizers.byte_level(), seed=5)
    reuse = probe_reuse(model)
    plain = copy.deepcopy(model)
    use_few_rows_linear(model)
    calls, cache = Calls(monkeypatch), TreeCache(model, 3, reuse=reuse)
    texts = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 1, 2, 3]]
    for r, ids in enumerate(texts):
        cache.edit(r, 0, ids)
    cache.next_logits()
    rng = random.Random(7)
    for _ in range(6):
        for r, ids in enumerate(texts):
            new = [rng.randrange(1, 90) for _ in range([1, 1, 4][r])]
            cache.edit(r, 0, new)
            ids += new
        calls.rows.clear()
        for r, row in enumerate(cache.next_logits()):
            assert_close(row, alone(plain, texts[r]))
        assert set(calls.rows) == ({6, 3} if reuse == "holes" else {12, 3})
        calls.rows.clear()
        places = [(0, 0, [7]), (0, 0, [7, 8, 9]), (1, 0, [7]), (2, 1, [5])]
        for (r, drop, append), row in zip(places, cache.place_logits(places)):
            assert_close(row, alone(plain, texts[r][: len(texts[r]) - drop] + append))
        assert set(calls.rows) == {5, 4}
        calls.rows.clear()
        places = [(0, 0, [7]), (0, 0, [7, 8, 9, 4]), (1, 0, [7])]  # 7 again, 4, 7 again; the last row feeds nothing
        for (r, drop, append), row in zip(places, cache.place_logits(places)):
            assert_close(row, alone(plain, texts[r][: len(texts[r]) - drop] + append))
        assert set(calls.rows) == {3}


def test_other_layers_are_left_alone():
    class Own(nn.Linear):
        pass

    model = nn.ModuleList([Own(640, 512), nn.Linear(64, 64), nn.Conv1d(640, 512, 1)])
    before = [type(part) for part in model]
    use_few_rows_linear(model)
    assert [type(part) for part in model] == before


@needs_code
def test_members_run_it(monkeypatch):
    """With weights large enough, in ragged batches and with drafts; texts are those of torch's layers."""
    monkeypatch.setattr(few_rows, "_LEAST_WEIGHT", 1)
    loaders = [("llama", toy_tokenizers.byte_level), ("mistral-window", toy_tokenizers.sentencepiece)]
    prompts = ["Once upon a time", "2024 was", "A"]

    def ensemble() -> UniteEnsemble:
        models = [toy_model(kind, load(), seed=i) for i, (kind, load) in enumerate(loaders)]
        return UniteEnsemble([Member(model, load()) for model, (_, load) in zip(models, loaders)])

    ens = ensemble()
    assert any(type(part) is FewRowsLinear for member in ens.members for part in member.model.modules())
    calls = Calls(monkeypatch)
    found = ens.generate(prompts, max_new_tokens=12, speculate=4)
    assert set(calls.rows) & set(range(2, MOST_ROWS))
    monkeypatch.setattr(few_rows, "_LEAST_WEIGHT", 1 << 40)
    calls.rows.clear()
    assert ensemble().generate(prompts, max_new_tokens=12) == found
    assert calls.rows == []
