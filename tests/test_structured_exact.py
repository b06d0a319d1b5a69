"""Structured output with exact boundaries: members vote on bytes, each within the grammar, and the text follows it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import start_cases
import torch
import toy_tokenizers
from test_exact import LOADERS, NOTHING_LEFT_OUT, PROMPTS, plain_members
from test_structured import GRAMMAR, PROMPT, is_beginning, oracle
from toy_models import toy_model

from unite_ext import UniteEnsemble, reference_exact
from unite_ext.structured.compiled import Structure
from unite_ext.structured.text_masks import TextMasks
from unite_ext.vocab.vocabulary import Vocabulary

xgrammar = pytest.importorskip("xgrammar")

EXACT = {"boundaries": "exact"}
PATTERNS = [r"\d{1,3} (pens|apples)\.", "(é|日本|🙂){2}", "a{3,9}b?"]


@pytest.fixture(scope="module")
def three():
    loaders = [*LOADERS, ("mistral-window", toy_tokenizers.sentencepiece)]
    models = [toy_model(kind, load(), seed=i) for i, (kind, load) in enumerate(loaders)]
    return UniteEnsemble(models, [load() for _, load in loaders], boundaries="exact")


def may_follow(vocabulary: Vocabulary, kind: str, source: str, text: bytes) -> torch.Tensor:
    """Which ids a matcher of bytes allows after a text, bool [V]."""
    matcher = oracle(kind, source, text)
    allowed = torch.zeros(vocabulary.size, dtype=torch.bool)
    for i, data in enumerate(vocabulary.token_bytes):
        if i in vocabulary.eos_token_ids:
            allowed[i] = matcher.is_completed()
        elif data and is_beginning(text + data) and matcher.accept_string(data):
            matcher.rollback(1)
            allowed[i] = True
    return allowed


@pytest.mark.parametrize("prompt", PROMPTS[:2])
@pytest.mark.parametrize(("kind", "source"), [("grammar", GRAMMAR), ("regex", "(the|then|there) [a-d]{2,4}")])
def test_every_byte_has_the_probability_of_the_plain_rule(three, kind, source, prompt):
    """Greedy, nothing left out."""
    plan = three.plan({kind: source, "max_new_tokens": 30})
    engine = three.new_engine(plan, max_requests=1)
    engine.runner.exact.limits = NOTHING_LEFT_OUT
    engine.submit(prompt, plan.token_method, plan.generation, keeps_records=True)
    [request] = engine.run()

    def allowed(vocabulary, path):
        return may_follow(vocabulary, kind, source, b"".join(vocabulary.token_bytes[i] for i in path))

    members, data, at = plain_members(three, prompt, allowed), bytes(request.text), 0
    assert request.finish_reason == "eos"
    assert oracle(kind, source, data).is_completed()
    while at < len(data):
        for symbol, p in reference_exact.walk(
            members, data[:at], max_ended=0.0, min_share=1e-7, forced=list(data[at:])
        ):
            record = request.byte_records[at]
            assert record.symbols[record.winner] == symbol == data[at]
            assert record.probs[record.winner] == pytest.approx(p, abs=1e-4)
            at += 1


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 3.0, "seed": 5}], ids=["greedy", "drawn"])
def test_expressions_match_the_whole_text(three, pattern, options):
    options = {**options, "regex": pattern, "max_new_tokens": 40}
    together = three.generate(PROMPTS, **options)
    assert all(re.fullmatch(pattern, text) for text in together)
    assert together == [
        next(three.generate_each([prompt], indices=[n], **options)).decoded() for n, prompt in enumerate(PROMPTS)
    ]
    assert "".join(three.stream(PROMPTS[0], **options)) == together[0]


@pytest.mark.parametrize("pattern", ["The [a-z]{2,5}", " ?4[0-9]"])
def test_the_space_of_the_start_state_is_no_part_of_the_text(pattern):
    """Members that write a space before their text are masked as if it were not there."""
    ens = start_cases.ensemble(("byte_level", "direct"), ("sentencepiece", "direct"), **EXACT)
    plan = ens.plan({"regex": pattern, "max_new_tokens": 20})
    engine = ens.new_engine(plan, max_requests=1)
    engine.runner.exact.limits = NOTHING_LEFT_OUT
    engine.submit(start_cases.HI, plan.token_method, plan.generation, keeps_records=True)
    [request] = engine.run()
    data, leads = bytes(request.text), [b" " if starts else b"" for starts in request.starts]
    assert re.fullmatch(pattern, data.decode())
    assert leads == [b"", b" "]
    lead_of = dict(zip(ens.alignment.vocabularies, leads))

    def allowed(vocabulary, path):
        if lead_of[vocabulary] and not path:
            mask = may_follow(vocabulary.start, "regex", pattern, b"")
            mask[list(vocabulary.start.silent)] = True
            return mask
        text = b"".join(vocabulary.token_bytes[i] for i in path)[len(lead_of[vocabulary]) :]
        return may_follow(vocabulary, "regex", pattern, text)

    members = [replace(own, lead=lead) for own, lead in zip(plain_members(ens, start_cases.HI, allowed), leads)]
    at = 0
    while at < len(data):
        for _, p in reference_exact.walk(members, data[:at], max_ended=0.0, min_share=1e-7, forced=list(data[at:])):
            record = request.byte_records[at]
            assert record.probs[record.winner] == pytest.approx(p, abs=1e-4)
            at += 1


def test_masks_of_any_beginning_are_those_of_its_bytes(three):
    """In any order, along other continuations too."""
    structure = Structure("grammar", GRAMMAR)
    masks = TextMasks(structure, three.alignment.vocabularies, ())
    masks.places = ["é12 日".encode(), b"", "é1 pe".encode(), "é12 日".encode()[:7], "é1".encode(), "é1 pens.".encode()]
    for place, text in enumerate(masks.places):
        for m, vocabulary in enumerate(three.alignment.vocabularies):
            mask = torch.zeros(masks.words(m), dtype=torch.int32)
            masks.fill(m, place, mask.numpy())
            bits = [bool(mask[i >> 5] >> (i & 31) & 1) for i in range(vocabulary.size)]
            assert bits == may_follow(vocabulary, structure.kind, structure.source, text).tolist()
    masks.places = ["é1x".encode()]
    with pytest.raises(ValueError, match="the text must follow its structure"):
        masks.fill(0, 0, torch.zeros(masks.words(0), dtype=torch.int32).numpy())


def test_the_end_is_where_nothing_else_may_follow(three):
    [request] = three.generate_each([PROMPT], regex="yes|no", max_new_tokens=20, min_new_tokens=9)
    assert request.decoded() in ("yes", "no")
    assert request.finish_reason == "eos"
