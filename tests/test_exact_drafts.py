"""Drafts with exact boundaries change how many passes a text takes, and never the text, drawn or not."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import start_cases
import toy_tokenizers
from test_exact import LOADERS, PROMPTS
from test_lookahead import QUESTIONS, Passes
from toy_models import toy_model

from unite_ext import UniteEnsemble
from unite_ext.decoding.covers import ExactState
from unite_ext.decoding.exact_drafts import ExactDrafter, follow
from unite_ext.decoding.request import NGRAM
from unite_ext.demo import COMPARABLE, load_member

AGAIN = "the cat sat on the mat and the cat sat on the mat and the "
DRAWN = {"do_sample": True, "temperature": 0.7, "seed": 7}


@pytest.fixture(scope="module")
def three():
    loaders = [*LOADERS, ("mistral-window", toy_tokenizers.sentencepiece)]
    models = [toy_model(kind, load(), seed=i) for i, (kind, load) in enumerate(loaders)]
    return UniteEnsemble(models, [load() for _, load in loaders], boundaries="exact")


@pytest.fixture(scope="module")
def demo():
    return UniteEnsemble([load_member(name) for name in COMPARABLE], boundaries="exact")


def assert_same(ens: UniteEnsemble, prompts: list[str], speculate, **options) -> tuple[int, int]:
    """Texts, ids and ends are those without drafts; returns how many bytes were drafted and accepted."""
    plain = ens.generate(prompts, return_dict=True, **options)
    fast = ens.generate(prompts, return_dict=True, speculate=speculate, **options)
    for name in ("texts", "token_ids", "finish_reasons", "num_steps"):
        assert getattr(fast, name) == getattr(plain, name), name
    assert all(rounds > 0 for rounds in fast.rounds)
    assert plain.rounds == [0] * len(prompts)
    assert all(0 <= accepted <= drafted for accepted, drafted in zip(fast.accepted, fast.drafted))
    return sum(fast.drafted), sum(fast.accepted)


@pytest.mark.parametrize(("speculate", "batch_size"), [(1, 1), (4, 1), (4, 4), (16, 4), ("ngram", 1), ("mistral", 4)])
def test_real_drafts(demo, speculate, batch_size):
    drafted, accepted = assert_same(demo, [*QUESTIONS, "5 + 9 ="], speculate, max_new_tokens=40, batch_size=batch_size)
    if speculate in (1, 4):
        assert accepted > 0.3 * drafted > 10


@pytest.mark.parametrize(
    ("speculate", "options"),
    [
        (1, {}),
        (4, DRAWN),
        (16, {"primary": 2, "weights": [0.2, 0.5, 0.3]}),
        ("ngram", {}),
        ("ngram", DRAWN),
    ],
)
def test_members_that_hardly_agree(three, speculate, options):
    drafted, _ = assert_same(three, [*PROMPTS, AGAIN], speculate, max_new_tokens=12, **options)
    assert drafted > 0


def test_a_request_in_a_batch_drafts_once_a_step(three):
    """However often its members are asked before it can take the step: rounds and bytes are those of it alone."""
    options = {"max_new_tokens": 12, "speculate": "ngram", "return_dict": True}
    prompts = [*PROMPTS, AGAIN]
    alone = [three.generate([prompt], **options) for prompt in prompts]
    together = three.generate(prompts, **options)
    for name in ("rounds", "drafted", "accepted"):
        assert getattr(together, name) == [getattr(own, name)[0] for own in alone], name


@pytest.mark.parametrize("options", [{"stop": "e"}, {"min_new_tokens": 9}, {"repetition_penalty": 1.3}, DRAWN])
def test_options(demo, options):
    assert_same(demo, QUESTIONS, 4, max_new_tokens=30, **options)


@pytest.mark.parametrize("speculate", [4, "ngram"])
@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_limits(three, speculate, limit):
    assert_same(three, [*PROMPTS, AGAIN], speculate, max_new_tokens=limit, min_new_tokens=limit)


@pytest.mark.parametrize("speculate", [4, "ngram"])
@pytest.mark.parametrize("regex", [r"\d{1,3} (pens|apples)\.", r"(the cat ){1,2}sat"])
def test_structures(demo, regex, speculate):
    """What is drafted is allowed."""
    assert_same(demo, [QUESTIONS[0], AGAIN], speculate, max_new_tokens=60, regex=regex)
    assert re.fullmatch(regex, demo.generate(QUESTIONS[0], max_new_tokens=60, regex=regex, speculate=speculate))


def test_repetitions_are_drafted(three):
    """The prompt's own bytes come again: all are foreseen."""
    prompt, text = AGAIN, "cat sat on the mat and the cat sat on"
    plain = three.generate([prompt], max_new_tokens=40, regex=re.escape(text), return_dict=True)
    fast = three.generate([prompt], max_new_tokens=40, regex=re.escape(text), speculate="ngram", return_dict=True)
    assert fast.texts == plain.texts == [text]
    assert fast.accepted[0] > 0.6 * len(text)


@pytest.mark.parametrize("speculate", [3, 1, "ngram"])
def test_the_start_state(speculate):
    ens = start_cases.ensemble(("sentencepiece", "spaced"), ("byte_level", "direct"), boundaries="exact")
    assert_same(ens, [start_cases.HI, "Once"], speculate, max_new_tokens=8)
    assert_same(ens, [start_cases.HI], speculate, max_new_tokens=8, regex="(quick |42)+")


@pytest.mark.parametrize("speculate", [4, 16])
def test_a_full_context_ends_the_text(speculate):
    tokenizers = [toy_tokenizers.byte_level(), toy_tokenizers.byte_level_digits()]
    models = [toy_model("llama", tokenizers[0], context=24), toy_model("qwen2", tokenizers[1], seed=1, context=200)]
    ens = UniteEnsemble(models, tokenizers, boundaries="exact")
    positions = []
    ens.members[0].model.register_forward_pre_hook(
        lambda _, __, arguments: positions.append(int(arguments["position_ids"].max())), with_kwargs=True
    )
    for primary in (0, 1):
        assert_same(ens, ["James met Jam"], speculate, max_new_tokens=60, min_new_tokens=60, primary=primary)
    assert max(positions) == 23  # what is foreseen ends with the context


def test_the_others_take_fewer_passes(demo):
    """The member that drafts says what it thinks on the way; the others are asked about all of it at once."""
    demo.generate("A", max_new_tokens=1, speculate=1)  # what a model can do is found out first
    counts = {}
    for speculate in (False, 8, "mistral"):
        passes = [Passes(demo.alone(m)) for m in range(3)]
        demo.generate(QUESTIONS, max_new_tokens=40, speculate=speculate, batch_size=1)
        counts[speculate] = [own.close() for own in passes]
    plain = counts[False]
    for m, most in ((1, 0.7), (2, 0.8)):
        assert counts[8][m].count < most * plain[m].count
    for m in (0, 2):
        assert counts["mistral"][m].count < 0.85 * plain[m].count
    for own in counts[8]:
        assert own.ids < 1.5 * plain[0].ids  # what is drafted stays in the cache


def drafting(prompt: bytes, **state) -> tuple[ExactDrafter, SimpleNamespace]:
    """A drafter whose primary's tokens are single bytes, and a request for drafts from n-grams."""
    vocabulary = SimpleNamespace(token_bytes=[bytes([n]) for n in range(256)])
    drafter = ExactDrafter(None, None, SimpleNamespace(vocabularies=[vocabulary]), 0, ask=None)
    request = SimpleNamespace(
        drafter=NGRAM, ngrams=None, prompt_ids=[list(prompt)], text=bytearray(), rounds=0, drafted=0, accepted=0,
        exact=ExactState([], None, [], **state),
    )  # fmt: skip
    return drafter, request


def test_what_is_sure_is_not_drafted():
    drafter, request = drafting(b"one two three. one two thr", sure=b"ee")
    drafter.draft([request])
    assert request.exact.draft.startswith(b"ee. one two thr")
    assert request.exact.draft_sure == 2
    assert request.drafted == len(request.exact.draft) - 2


def test_a_draft_is_written_once():
    drafter, request = drafting(b"one two three. one two thr")
    for _ in range(3):
        drafter.draft([request])
    assert request.rounds == 1
    assert request.drafted == len(request.exact.draft)


def test_given_texts_are_not_drafted():
    drafter, request = drafting(b"one two three. one two thr", forced=list(b"ee."))
    drafter.draft([request])
    assert (request.exact.draft, request.rounds) == (b"", 0)


@pytest.mark.parametrize(
    ("piece", "accepted", "draft", "sure"),
    [
        (b"a", 0, b"bcdef", 1),
        (b"ab", 0, b"cdef", 0),
        (b"abcd", 2, b"ef", 0),
        (b"abcdef", 4, b"", None),
        (b"abcdefg", 4, b"", None),
        (b"abx", 0, b"", None),
        (b"abcx", 1, b"", None),
        (b"x", 0, b"", None),
        (b"", 0, b"abcdef", 2),
    ],
)
def test_a_walk_along_a_draft(piece, accepted, draft, sure):
    """Six bytes were drafted, of which two had been sure: these are not counted."""
    _, request = drafting(b"", draft=b"abcdef", draft_sure=2)
    follow(request, piece)
    assert (request.accepted, request.exact.draft) == (accepted, draft)
    assert sure is None or request.exact.draft_sure == sure


@pytest.mark.parametrize("guess", [b"zzzz qqqq", b"\xff\x80", " 中文".encode(), b" and the other\n"])
def test_wrong_drafts_change_no_text(three, guess, monkeypatch):
    plain = three.generate(PROMPTS, max_new_tokens=10)

    def draft(_, requests):
        for request in requests:
            request.exact.draft = guess

    monkeypatch.setattr(ExactDrafter, "draft", draft)
    assert three.generate(PROMPTS, max_new_tokens=10, speculate=2) == plain


def test_what_is_refused(three):
    for value in (True, "auto"):
        with pytest.raises(ValueError, match="speculate must be a number, 'ngram' or a member with boundaries='exact'"):
            three.generate("A", max_new_tokens=2, speculate=value)
    with pytest.raises(ValueError, match="speculate must be False with do_sample"):
        three.generate("A", max_new_tokens=2, boundaries="plain", speculate=2, do_sample=True)
