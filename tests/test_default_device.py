"""A caller's default device is the caller's: with "meta", whose tensors hold nothing, everything gives what it gave."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
import toy_tokenizers
from toy_models import toy_model

import unite_ext
from unite_ext import Member, UniteEnsemble, VocabAlignment, reference, step_parts, step_workspace, unite_step
from unite_ext.decoding.likelihood import score_continuations
from unite_ext.members import kv_cache
from unite_ext.members.static_cache import StaticRaggedCache
from unite_ext.methods.mbr import MBR
from unite_ext.methods.registry import TOKEN_METHODS
from unite_ext.methods.voting import Voting
from unite_ext.testing import assert_bitwise_equal, assert_same_step, make_logits, step_in_parts, synthetic_alignment

PACKAGE = Path(unite_ext.__file__).parent
PROMPTS = ["James met the quick", "A"]


@pytest.fixture(scope="module")
def tokenizers():
    return [toy_tokenizers.byte_level(), toy_tokenizers.sentencepiece()]


@pytest.fixture(scope="module")
def models(tokenizers):
    return [toy_model(k, t, seed=i, padding=3) for i, (k, t) in enumerate(zip(("llama", "mistral"), tokenizers))]


@pytest.fixture(scope="module")
def alignment(tokenizers):
    return VocabAlignment.from_tokenizers(tokenizers, cache=False)


@pytest.fixture
def meta():
    """A context in which a tensor made without a device is on "meta"."""
    return torch.device("meta")


def test_every_tensor_is_made_with_its_device():
    makers = {"tensor", "as_tensor", "asarray", "zeros", "ones", "empty", "full", "arange", "linspace", "eye"}
    makers |= {"rand", "randn", "randint", "randperm", "Generator", "scalar_tensor", "frombuffer", "load"}
    found = [
        f"{path.relative_to(PACKAGE)}:{call.lineno}: {ast.unparse(call)}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in makers
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "torch"
        and "device" not in {keyword.arg for keyword in call.keywords}
    ]
    assert found == []


def make(models, tokenizers, alignment, **options):
    return UniteEnsemble(models, tokenizers, alignment=alignment, k=4, **options)


def test_alignments(tokenizers, alignment, tmp_path, meta):
    with meta:
        built = VocabAlignment.from_tokenizers(tokenizers, cache=tmp_path)
        cached = VocabAlignment.from_tokenizers(tokenizers, cache=tmp_path)
        built.save(tmp_path / "file")
        loaded = VocabAlignment.load(tmp_path / "file", tokenizers)
    for other in (built, cached, loaded):
        for name in ("table", "class_ids", "eligible"):
            assert torch.equal(getattr(other, name), getattr(alignment, name))
        assert all(torch.equal(a, b) for a, b in zip(other.classes, alignment.classes))


@pytest.mark.parametrize("options", [{}, {"score": "probs", "duplicates": "drop", "weights": [1.0, 3.0]}])
def test_steps(meta, options):
    alignment = synthetic_alignment((300, 400))
    logits = make_logits(alignment, 5)
    include = torch.full((5,), int((alignment.classes[0] >= 0).nonzero()[0]))
    wanted = unite_step(logits, alignment, include=include, **options)
    with meta:
        given = {"include": include, **options}
        assert_bitwise_equal(unite_step(logits, alignment, **given), wanted)
        assert_same_step(reference.unite_step(logits, alignment, **given), wanted)
        assert_bitwise_equal(step_in_parts(step_parts, logits, alignment, **given), wanted)
        assert step_workspace(logits, alignment).device.type == "cpu"
        assert all(torch.equal(a, b) for a, b in zip(make_logits(alignment, 5), logits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "mistral-window"])
def test_the_probe_of_a_cache(tokenizers, meta, kind, dtype):
    model = toy_model(kind, tokenizers[0]).to(dtype)
    wanted = Member(model, tokenizers[0]).cache_reuse
    with meta:
        assert Member(model, tokenizers[0]).cache_reuse == wanted


@pytest.mark.parametrize("method", TOKEN_METHODS)
def test_texts_and_likelihoods(models, tokenizers, alignment, meta, method):
    def found():
        weights = [1.0, 2.0] if method == "deepen-adapt" else None
        ensemble = make(models, tokenizers, alignment, method=method, weights=weights)
        requests = [(prompt, alignment.encode_continuation(0, b" the fox")) for prompt in PROMPTS]
        likelihoods = {f.index: (f.log_prob, f.is_greedy) for f in score_continuations(ensemble, requests)}
        return ensemble.generate(PROMPTS, max_new_tokens=6), likelihoods

    wanted = found()
    with meta:
        assert found() == wanted


@pytest.mark.parametrize("method", [Voting, MBR])
def test_answers(models, tokenizers, alignment, meta, method):
    wanted = make(models, tokenizers, alignment, method=method([1.0, 1.0])).generate(PROMPTS, max_new_tokens=6)
    with meta:
        found = make(models, tokenizers, alignment, method=method([1.0, 1.0])).generate(PROMPTS, max_new_tokens=6)
    assert found == wanted


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 0.8, "top_k": 5, "top_p": 0.9, "seed": 3},
        {"gate": 0.5, "stop": [" q"]},
        {"repetition_penalty": 1.3},
        {"batch_size": 1},
        {"speculate": 3},
        {"speculate": "ngram"},
        {"primary": 1, "score": "probs"},
    ],
    ids=str,
)
def test_options_of_a_generation(models, tokenizers, alignment, meta, options):
    wanted = make(models, tokenizers, alignment).generate(PROMPTS, max_new_tokens=8, return_dict=True, **options)
    with meta:
        found = make(models, tokenizers, alignment).generate(PROMPTS, max_new_tokens=8, return_dict=True, **options)
    assert (found.texts, found.token_ids) == (wanted.texts, wanted.token_ids)


def test_streams_and_traces(models, tokenizers, alignment, meta):
    ensemble = make(models, tokenizers, alignment)
    [text] = ensemble.generate(PROMPTS[:1], max_new_tokens=8)
    with meta:
        assert "".join(make(models, tokenizers, alignment).stream(PROMPTS[0], max_new_tokens=8)) == text
        assert make(models, tokenizers, alignment).trace(PROMPTS[0], max_new_tokens=8).text == text


def test_gathered_and_copied_columns(models, tokenizers, alignment, meta, monkeypatch):
    monkeypatch.setattr(kv_cache, "MIN_HOLES", 0)
    monkeypatch.setattr(kv_cache, "MOVE_COST", 0)
    beginning = "The quick brown fox jumps over the lazy dog. " * 4  # long enough to be copied
    prompts = [beginning + end for end in ("A", "Bb", "Ccc")]
    wanted = make(models, tokenizers, alignment).generate(prompts, max_new_tokens=8, batch_size=2)
    with meta:
        assert make(models, tokenizers, alignment).generate(prompts, max_new_tokens=8, batch_size=2) == wanted


def test_caches_of_fixed_shape(models, meta):
    def found():
        cache = StaticRaggedCache(
            models[0], 2, reuse="holes", forward=models[0].forward, max_rows=4, expected_length=20
        )
        rows = []
        for edits in (((0, [3, 4, 5]), (0, [6])), ((1, [7]), (0, [8, 9]))):
            for row, (drop, append) in enumerate(edits):
                cache.edit(row, drop, append)
            rows.append(cache.next_logits())
        cache.select([1])
        cache.edit(0, 1, [2])
        return [*rows, cache.next_logits()]

    with torch.no_grad():
        wanted = found()
        with meta:
            assert all(torch.equal(a, b) for a, b in zip(found(), wanted, strict=True))
