"""Answer-level methods on made-up answers and with the ensemble; PackLLM's weights; mapped vocabularies."""

from __future__ import annotations

import math

import pytest
import torch
import toy_tokenizers
from test_methods import STEP, FakeMember, id_of, logits_of, scores_of
from toy_models import toy_model

from unite_ext import StepOptions, UniteEnsemble, VocabAlignment
from unite_ext.methods.eva import EVA, procrustes, shared_ids
from unite_ext.methods.mbr import MBR
from unite_ext.methods.mined import MinED
from unite_ext.methods.packllm import PackLLM, prompt_weights
from unite_ext.methods.registry import check_method
from unite_ext.methods.voting import NUMBER, Voting

THIRD = [1 / 3] * 3


@pytest.fixture(scope="module")
def ensemble():
    tokenizers = [toy_tokenizers.byte_level(), toy_tokenizers.sentencepiece(), toy_tokenizers.byte_level_digits()]
    kinds = ("llama", "mistral", "qwen2")
    return UniteEnsemble([toy_model(k, t, seed=i) for i, (k, t) in enumerate(zip(kinds, tokenizers))], tokenizers)


@pytest.fixture(scope="module")
def pair():
    return VocabAlignment.from_tokenizers([toy_tokenizers.byte_level(), toy_tokenizers.sentencepiece()])


# Voting


@pytest.mark.parametrize(
    ("answers", "weights", "winner"),
    [
        (["It is 4, the answer is 5.", "so the answer is 6", "The answer is 6."], THIRD, 1),
        (["the answer is 5", "the answer is 6", "the answer is 7"], THIRD, 0),  # nobody agrees: the primary
        (["The answer is 1,200", "hence boxed{1200}", "the answer is 12"], THIRD, 0),
        (["the answer is 5", "the answer is 6", "the answer is 6"], [0.6, 0.2, 0.2], 0),
        (["the answer is -3.5", "the answer is 3.5", "answer is $-3.5"], THIRD, 0),
        (["the answer is 1. No: the answer is 2", "the answer is 1", "the answer is 2"], THIRD, 0),  # the last counts
    ],
)
def test_voting_on_numbers(answers, weights, winner):
    assert Voting(weights, pattern=NUMBER).choose("", answers) == winner


def test_voting_on_whole_texts():
    assert Voting(THIRD).choose("", ["Paris", " london.", "London"]) == 1
    assert Voting(THIRD, pattern=NUMBER).choose("", ["none", "NONE ", "the answer is 3"]) == 0


# MBR


def test_mbr_takes_the_middle():
    # chrF of the odd one out with the others is low, so one of the two alike wins; which of them, the sums decide.
    assert MBR(THIRD).choose("", ["zebra", "the cat sat", "the cat sits"]) in (1, 2)
    answers = ["a b c", "the cat sat here", "the cat sat"]
    from sacrebleu.metrics import CHRF

    chrf = [[CHRF().sentence_score(a, [b]).score for b in answers] for a in answers]
    gains = [sum(chrf[i]) - chrf[i][i] for i in range(3)]
    assert MBR(THIRD).choose("", answers) == gains.index(max(gains))
    assert MBR(THIRD).choose("", ["same", "same", "same"]) == 0
    # No answer speaks for itself, however much its member weighs.
    assert MBR([0.6, 0.2, 0.2]).choose("", ["zebra", "the cat sat", "the cat sits"]) in (1, 2)


def test_chrf_by_hand():
    # "ab" against "abc": of the n-grams 1 to 6 the hypothesis has orders 1 and 2, the reference 1 to 3. sacrebleu
    # averages precision and recall over the orders both have: P = (2/2 + 1/1) / 2 = 1, R = (2/3 + 1/2) / 2 = 0.5833;
    # F_2 = 5 P R / (4 P + R) = 0.6364.
    method = MBR([0.5, 0.5])
    assert method._chrf.sentence_score("ab", ["abc"]).score == pytest.approx(100 * 5 * 0.58333 / 4.58333, abs=1e-2)
    assert method.choose("", ["ab", "abc"]) == 1  # the other way: P = 0.5833, R = 1, F_2 = 0.875


# The ensemble


@pytest.mark.parametrize("name", ["voting", "mbr"])
def test_an_output_method_returns_a_members_own_answer(name, ensemble):
    prompts = ["James met", "A"]
    options = {"max_new_tokens": 10}
    own = [UniteEnsemble([member]).generate(prompts, **options) for member in ensemble.members]
    texts = ensemble.generate(prompts, method=name, primary=1, **options)
    method = Voting(THIRD) if name == "voting" else MBR(THIRD)
    order = [1, 0, 2]
    for i in range(2):
        answers = [own[m][i] for m in order]
        assert texts[i] == answers[method.choose(prompts[i], answers)]
    with pytest.raises(ValueError, match=f"method '{name}' chooses among whole answers"):
        ensemble.stream("A", method=name)


# PackLLM


def test_packllm_weights_by_hand():
    # Perplexities 2 and 4: 1/2 : 1/4 = 2 : 1; at tau 0.5 the squares, 4 : 1.
    assert prompt_weights([math.log(2), math.log(4)], 1.0) == pytest.approx([2 / 3, 1 / 3])
    assert prompt_weights([math.log(2), math.log(4)], 0.5) == pytest.approx([4 / 5, 1 / 5])


def test_packllm_weighs_every_row_for_its_own_prompt(ensemble):
    prompts = ["James met Jam at the", "2024 feet"]
    output = ensemble.generate(prompts, method="packllm", max_new_tokens=6, return_dict=True)
    seen = []
    for row, prompt in enumerate(prompts):
        ids = [member.encode_prompt(prompt) for member in ensemble.members]
        losses = []
        for member, own in zip(ensemble.members, ids):
            logits = member.model(torch.tensor([own])).logits[0].detach().log_softmax(dim=-1)
            losses.append(-sum(float(logits[i, own[i + 1]]) for i in range(len(own) - 1)) / (len(ids[0]) - 1))
        shares = [math.exp(min(losses) - loss) for loss in losses]
        weights = [share / sum(shares) for share in shares]
        expected = ensemble.generate(prompt, weights=weights, max_new_tokens=6, return_dict=True)
        assert output.token_ids[row][0] == expected.token_ids[0][0]
        first, second = output.records[row][0], expected.records[0][0]
        assert first.union_probs == pytest.approx(second.union_probs, abs=1e-4)
        assert first.winner == second.winner
        seen.append(weights)
    assert abs(seen[0][0] - seen[1][0]) > 1e-4
    assert ensemble.members[0].negative_log_likelihood([5]) == 0.0
    assert PackLLM(ensemble.alignment, ensemble.members, STEP).tokens_per_step is None  # differs from step to step


def test_packllm_streams_do_not_mix(ensemble):
    """The weights are those of each stream's own prompt, however the streams are read."""
    prompts = ["James met Jam at the", "2024 feet", "A", "Yes, and"]
    alone = [ensemble.generate(prompt, method="packllm", max_new_tokens=12) for prompt in prompts]
    assert alone != [ensemble.generate(prompt, max_new_tokens=12) for prompt in prompts]
    streams = [ensemble.stream(prompt, method="packllm", max_new_tokens=12) for prompt in prompts]
    texts = [""] * len(prompts)
    while any(not stream.request.done for stream in streams):
        for i, stream in enumerate(streams):
            texts[i] += next(stream, "")
    assert texts == alone


def test_packllm_refuses_weights(pair):
    with pytest.raises(ValueError, match="weights must be None with method 'packllm'"):
        PackLLM.check(pair, StepOptions(weights=[1, 2]), {})
    with pytest.raises(ValueError, match="tau must be above 0"):
        check_method("packllm", {"tau": 0}, 2)


# MinED


def lev(a: str, b: str) -> int:
    """Compute the edit distance by its definition."""
    if not a or not b:
        return len(a) + len(b)
    return min(lev(a[1:], b) + 1, lev(a, b[1:]) + 1, lev(a[1:], b[1:]) + (a[0] != b[0]))


def test_mined_maps_to_the_nearest(pair):
    method = MinED(pair, [], STEP)
    ids, targets = (t.tolist() for t in method._maps[1])
    primary, own = pair.vocabularies
    texts = [(i, primary.token_bytes[i].decode("utf-8", "surrogateescape")) for i in method.target_ids()]
    shared = foreign = 0
    for id_, target in zip(ids, targets):
        data = own.token_bytes[id_]
        if not data:
            assert target == pair.eos_ids[0]
        elif data in primary.representatives():
            assert target == primary.representatives()[data]
            shared += 1
        elif len(data) <= 3 and foreign < 8:
            word = data.decode("utf-8", "surrogateescape")
            assert (
                target == min(texts, key=lambda entry: (lev(word, entry[1]) if len(entry[1]) <= 6 else 99, entry[0]))[0]
            )
            foreign += 1
    assert shared > 100
    assert foreign > 3


def test_mined_moves_probability(pair):
    other = pair.vocabularies[1].representatives()
    method = MinED(pair, [], STEP)
    mapped = dict(zip(*(t.tolist() for t in method._maps[1])))
    text = next(
        t for t in other if t not in pair.vocabularies[0].representatives() and mapped[other[t]] != id_of(pair, 0, "J")
    )
    logits = logits_of(pair, {"J": 0.7, "a": 0.3}, {"a": 0.1, text.decode(): 0.9})
    step = method.step(scores_of(logits), [None])
    assert step.next_ids[0, 0] == mapped[other[text]]  # 0.5 * 0.9 = 0.45 against J 0.35, a 0.2
    assert step.union_probs[0, 0] == pytest.approx(0.45, abs=1e-4)


# EVA


def test_procrustes_finds_a_rotation():
    angle = 0.7
    rotation = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    source = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert torch.allclose(procrustes(source, source @ rotation), rotation, atol=1e-6)


def test_eva_maps_by_meaning(pair):
    """The member's embeddings are the primary's, rotated: a token that only it has, close to "J", must map to "J"."""
    generator = torch.Generator().manual_seed(0)
    primary = torch.randn(pair.vocab_sizes[0], 16, generator=generator)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    shared = shared_ids(pair, 1, 0)
    own = torch.randn(pair.vocab_sizes[1], 16, generator=generator)
    own[shared[:, 0]] = primary[shared[:, 1]] @ rotation
    other = pair.vocabularies[1].representatives()
    foreign = next(i for text, i in other.items() if text not in pair.vocabularies[0].representatives())
    own[foreign] = primary[id_of(pair, 0, "J")] @ rotation
    own += 5.0  # where the origin lies means nothing
    method = EVA(pair, [FakeMember(primary), FakeMember(own)], STEP)
    mapped = dict(zip(*(t.tolist() for t in method._maps[1])))
    assert mapped[foreign] == id_of(pair, 0, "J")
    assert all(mapped[a] == b for a, b in shared.tolist() if pair.class_of(1, a) != pair.class_of(1, foreign))


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("voting", {"pattern": "("}, ValueError, "pattern must be a regular expression"),
        ("voting", {"pattern": 3}, TypeError, "pattern must be a string, got int"),
        ("mbr", {"pattern": "x"}, TypeError, "method 'mbr' has no option 'pattern'"),
        ("packllm", {"tau": "1"}, TypeError, "tau must be a number, got str"),
    ],
)
def test_bad_options(name, options, error, message):
    with pytest.raises(error, match=message):
        check_method(name, options, 2)


@pytest.mark.parametrize(("name", "package"), [("mbr", "sacrebleu"), ("mined", "rapidfuzz")])
def test_what_is_not_installed_is_said(name, package, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == package else find(n, *a))
    with pytest.raises(ValueError, match=f"method '{name}' needs {package}: pip install"):
        check_method(name, None, 2)
