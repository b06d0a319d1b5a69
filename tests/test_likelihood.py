"""Likelihoods of given texts: the step with `include`, one token after the other."""

from __future__ import annotations

import math

import pytest
import torch
import toy_tokenizers
from toy_models import toy_model

from unite_ext import UniteEnsemble, reference
from unite_ext.decoding import batch
from unite_ext.decoding.likelihood import score_continuations
from unite_ext.methods.registry import ANSWER_METHODS, TOKEN_METHODS
from unite_ext.methods.unite import emission_probability
from unite_ext.testing import Recorder


@pytest.fixture(scope="module")
def ensemble():
    tokenizers = [toy_tokenizers.byte_level(), toy_tokenizers.sentencepiece()]
    models = [toy_model(k, t, seed=i) for i, (k, t) in enumerate(zip(("llama", "mistral"), tokenizers))]
    return UniteEnsemble(models, tokenizers, weights=[2, 1])


def encode(ensemble, text, primary=0):
    return ensemble.alignment.encode_continuation(primary, text.encode())


@pytest.mark.parametrize("primary", [0, 1])
def test_unite_token_by_token(ensemble, primary):
    """Against the reference, with the texts tokenized again for every step and nothing cached."""
    texts = [("James met", " the quick fox"), ("A", "b"), ("The", " 中文")]
    requests = [(prompt, encode(ensemble, text, primary)) for prompt, text in texts]
    found = {f.index: f for f in score_continuations(ensemble, requests, primary=primary, k=4)}
    classes = ensemble.alignment.classes[primary]
    for i, (prompt, ids) in enumerate(requests):
        log_prob, greedy, text = 0.0, True, b""
        for n, target in enumerate(ids):
            logits = []
            for m, member in enumerate(ensemble.members):
                own = ids[:n] if m == primary else ensemble.alignment.encode_continuation(m, text)
                context = torch.tensor([member.encode_prompt(prompt) + own])
                logits.append(member.model(context).logits[:, -1].detach())
            step = reference.unite_step(
                logits, ensemble.alignment, k=4, primary=primary, weights=[2, 1], include=torch.tensor([target])
            )
            slots = [
                float(p)
                for id_, p in zip(step.union_ids[0, :, primary].tolist(), step.union_probs[0])
                if id_ >= 0 and classes[id_] == classes[target]
            ]
            log_prob += math.log(sum(slots))
            greedy &= bool(classes[step.next_ids[0, primary]] == classes[target])
            text += ensemble.alignment.token_bytes(primary, target)
        assert found[i].log_prob == pytest.approx(log_prob, abs=1e-3)
        assert found[i].is_greedy == greedy
        assert found[i].log_prob < -1e-3


@pytest.mark.parametrize("method", TOKEN_METHODS)
def test_what_is_generated_is_greedy_and_what_is_not_is_not(ensemble, method):
    options = {"method": method, "weights": [1, 1] if method == "deepen-adapt" else None}
    output = ensemble.generate(["James met", "A"], max_new_tokens=5, return_dict=True, **options)
    ids = [row[0] for row in output.token_ids]
    assert min(map(len, ids)) > 2
    requests = [
        ("James met", ids[0]),
        ("A", ids[1]),
        ("James met", ids[0][:2] + encode(ensemble, "Z")),
        ("A", ids[1][:1]),
    ]
    found = {f.index: f for f in score_continuations(ensemble, requests, batch_size=3, **options)}
    assert [found[i].is_greedy for i in range(4)] == [True, True, False, True]
    assert found[1].log_prob < found[3].log_prob < 0
    assert found[2].log_prob < found[0].log_prob


@pytest.mark.parametrize("method", ["gac", "mined", "deepen-avg", "eva"])
def test_probabilities_of_all_tokens_add_up(ensemble, method):
    options = {"method": method, "weights": [1, 1]}
    vocabulary = ensemble.alignment.vocabularies[0]
    ids = [i for text, i in vocabulary.representatives().items()] + [vocabulary.eos_token_id]
    requests = [("James met", [i]) for i in ids]
    total = sum(math.exp(f.log_prob) for f in score_continuations(ensemble, requests, **options))
    # Ids that share a text, special tokens and texts that only the other member has take the rest.
    assert 0.3 < total <= 1 + 1e-4
    if method == "gac":
        step = next(ensemble.generate_each(["James met"], max_new_tokens=1, trace=True, **options)).records[0]
        best = next(score_continuations(ensemble, [("James met", [step.union_ids[0][0]])], **options))
        assert math.exp(best.log_prob) == pytest.approx(step.union_probs[0], rel=1e-4)


def test_a_text_is_emitted_by_every_slot_that_begins_with_it(ensemble):
    """Two slots with one id of the primary: its own text, and a text of which it is the first sub-token."""
    first, other = encode(ensemble, "J")[0], encode(ensemble, "a")[0]
    step = reference.StepResult(
        next_ids=torch.tensor([[other, 0]]),
        union_ids=torch.tensor([[[other, 0], [first, 1], [first, 2], [-1, -1]]]),
        union_size=torch.tensor([3]),
        winner=torch.tensor([0]),
        union_probs=torch.tensor([[0.5, 0.3, 0.2, 0.0]]),
        member_probs=torch.zeros(1, 4, 2),
        status=torch.tensor([0]),
    )
    assert emission_probability(step, torch.tensor([first]), ensemble.alignment, 0).tolist() == pytest.approx([0.5])
    assert emission_probability(step, torch.tensor([other]), ensemble.alignment, 0).tolist() == pytest.approx([0.5])
    missing = encode(ensemble, "Z")[0]
    assert emission_probability(step, torch.tensor([missing]), ensemble.alignment, 0).tolist() == [0.0]


def test_prompts_as_ids(ensemble):
    ids = encode(ensemble, " met")
    encoded = [member.encode_prompt("James") for member in ensemble.members]
    text, given = score_continuations(ensemble, [("James", ids), (encoded, ids)])
    assert text.log_prob == pytest.approx(given.log_prob, abs=1e-5)


def test_eos_is_a_target(ensemble):
    eos = ensemble.alignment.eos_ids[0]
    (found,) = score_continuations(ensemble, [("James", [eos])])
    assert -80 < found.log_prob < 0
    assert not found.is_greedy


def test_bad_requests(ensemble):
    with pytest.raises(ValueError, match=r"requests\[1\]: the continuation must have at least one token"):
        score_continuations(ensemble, [("A", [1]), ("A", [])])
    with pytest.raises(ValueError, match=r"requests\[0\]: id 99999 is not an eligible id"):
        score_continuations(ensemble, [("A", [99999])])
    with pytest.raises(TypeError, match="unknown option 'max_new_tokens'"):
        score_continuations(ensemble, [("A", [1])], max_new_tokens=3)
    for method in ANSWER_METHODS.keys() - {"pair-ranker"}:
        with pytest.raises(ValueError, match=f"method '{method}' chooses among whole answers and gives no"):
            score_continuations(ensemble, [("A", [1])], method=method)


def test_a_continuation_takes_one_pass_of_every_member(ensemble):
    """Whatever its length; the prompt is short enough to run in the same pass."""
    passes = [0, 0]
    handles = [
        member.model.register_forward_pre_hook(lambda *_, m=m: passes.__setitem__(m, passes[m] + 1))
        for m, member in enumerate(ensemble.members)
    ]
    try:
        requests = [("James met", encode(ensemble, " the quick brown fox and 中文")), ("A", encode(ensemble, "b c d"))]
        found = list(score_continuations(ensemble, requests))
    finally:
        for handle in handles:
            handle.remove()
    assert len(found) == 2
    assert passes == [1, 1]


@pytest.mark.parametrize("room", [1, 3, 7])
def test_long_continuations_are_scored_in_pieces(ensemble, room, monkeypatch):
    """As many places a pass as its logits have room for; the numbers are the same."""
    text = " the quick brown fox, 中文 and 2024 more words"
    requests = [("James met", encode(ensemble, text)), ("A", encode(ensemble, " b"))]
    expected = list(score_continuations(ensemble, requests))
    widest = max(member.num_logits for member in ensemble.members)
    monkeypatch.setattr(batch, "_PLACE_BYTES", 4 * widest * room)
    found = {f.index: f for f in score_continuations(ensemble, requests)}
    assert len(found) == 2
    for one in expected:
        assert found[one.index].log_prob == pytest.approx(one.log_prob, abs=1e-4)
        assert found[one.index].is_greedy == one.is_greedy


def test_texts_of_alike_lengths_run_side_by_side(ensemble):
    """In whatever order they are given: the longest first, and those with one prompt together."""
    texts = [(prompt, " the quick fox" * n) for n, prompt in enumerate(["A", "James met", "The"], 1) for _ in range(2)]
    requests = [(prompt, encode(ensemble, text)) for prompt, text in texts]
    fed: list[tuple[int, int]] = []
    handles = [
        member.model.register_forward_pre_hook(
            lambda _, __, given: fed.append(tuple(given["input_ids"].shape)), with_kwargs=True
        )
        for member in ensemble.members
    ]
    mixed = [0, 4, 2, 5, 1, 3]
    try:
        sorted_first = {f.index: f.log_prob for f in score_continuations(ensemble, requests, batch_size=2)}
        first, fed[:] = list(fed), []
        given = [requests[i] for i in mixed]
        found = {mixed[f.index]: f.log_prob for f in score_continuations(ensemble, given, batch_size=2)}
    finally:
        for handle in handles:
            handle.remove()
    assert found == pytest.approx(sorted_first, abs=1e-4)
    assert fed == first
    assert [shape[1] for shape in fed[::2]] == sorted({shape[1] for shape in fed[::2]}, reverse=True)


def test_a_context_that_is_too_short(ensemble):
    tokenizer = toy_tokenizers.byte_level()
    short = UniteEnsemble([toy_model("llama", tokenizer, context=8)], [tokenizer])
    with pytest.raises(ValueError, match=r"requests\[0\]: only [0-9]+ of its 9 tokens fit"):
        list(score_continuations(short, [("James", [encode(ensemble, "a")[0]] * 9)]))


def plain_log_probs(member, prompt_ids, ids):
    """What transformers alone gives ids after a prompt, as lm-evaluation-harness's own model takes it."""
    logits = member.model(torch.tensor([[*prompt_ids, *ids]])).logits[0].detach().double().log_softmax(dim=1)
    return [float(logits[len(prompt_ids) + n - 1, i]) for n, i in enumerate(ids)]


@pytest.mark.parametrize("m", [0, 1])
def test_one_member_alone_gives_its_own_numbers(ensemble, m):
    """Up to the mass of special tokens, which are not eligible and which toy models do not know to be special."""
    alone, member = ensemble.alone(m), ensemble.members[m]
    texts = [("James met", " the quick fox"), ("A", "b"), ("The", " 中文 and 2024")]
    requests = [(prompt, encode(alone, text)) for prompt, text in texts]
    found = {f.index: f for f in score_continuations(alone, requests, k=1, likelihood="full")}
    ineligible = torch.ones(member.num_logits, dtype=torch.bool)
    ineligible[: alone.alignment.vocab_sizes[0]] = alone.alignment.classes[0][: alone.alignment.vocab_sizes[0]] < 0
    for i, (prompt, ids) in enumerate(requests):
        logits = member.model(torch.tensor([[*member.encode_prompt(prompt), *ids]])).logits[0].detach().double()
        rows = logits[-len(ids) - 1 : -1]
        own = rows.masked_fill(ineligible, -torch.inf).log_softmax(dim=1)
        expected = sum(float(own[n, t]) for n, t in enumerate(ids))
        assert found[i].log_prob == pytest.approx(expected, abs=1e-4)
        lost = sum(float(x) for x in rows.softmax(dim=1)[:, ineligible].sum(dim=1))
        whole = sum(plain_log_probs(member, member.encode_prompt(prompt), ids))
        assert whole == pytest.approx(expected, abs=1.5 * lost + 1e-4)


@pytest.mark.parametrize("primary", [0, 1])
def test_full_is_the_mean_of_the_members_own_probabilities(ensemble, primary):
    """Through first sub-tokens the chain of a member's ids, each text tokenized again and nothing cached."""
    texts = [("James met", " the quick fox"), ("A", "b"), ("The", " 中文 Jamboree")]
    requests = [(prompt, encode(ensemble, text, primary)) for prompt, text in texts]
    found = {f.index: f for f in score_continuations(ensemble, requests, primary=primary, likelihood="full")}
    union = {f.index: f for f in score_continuations(ensemble, requests, primary=primary)}
    alignment, chains = ensemble.alignment, 0
    for i, (prompt, ids) in enumerate(requests):
        log_prob, text = 0.0, b""
        for n, target in enumerate(ids):
            piece, total = alignment.token_bytes(primary, target), 0.0
            for m, member in enumerate(ensemble.members):
                own = ids[:n] if m == primary else alignment.encode_continuation(m, text)
                chain = [target] if m == primary else alignment.encode_continuation(m, piece)
                representative = int(alignment.class_ids[alignment.class_of(primary, target), m])
                if m != primary and representative < 2**28:
                    chain = [representative]
                chains += len(chain) > 1
                logits = member.model(torch.tensor([member.encode_prompt(prompt) + own + chain])).logits[0].detach()
                eligible = alignment.classes[m][: alignment.vocab_sizes[m]] >= 0
                rows = logits[:, : len(eligible)].double().masked_fill(~eligible, -torch.inf).log_softmax(dim=1)
                at = len(logits) - len(chain) - 1
                total += [2 / 3, 1 / 3][m] * math.exp(sum(float(rows[at + j, t]) for j, t in enumerate(chain)))
            log_prob += math.log(total)
            text += piece
        assert found[i].log_prob == pytest.approx(log_prob, abs=1e-3)
        assert found[i].is_greedy == union[i].is_greedy
        assert found[i].log_prob < union[i].log_prob, "the union leaves out what nobody proposed"
    assert chains > 0


def test_full_takes_one_pass_and_pieces_where_there_is_no_room(ensemble, monkeypatch):
    text = " the quick brown fox, 中文 and 2024 more words"
    requests = [("James met", encode(ensemble, text)), ("A", encode(ensemble, " b"))]
    expected = list(score_continuations(ensemble, requests, likelihood="full"))
    widest = max(member.num_logits for member in ensemble.members)
    for room in (1, 7):
        monkeypatch.setattr(batch, "_PLACE_BYTES", 4 * widest * room)
        found = {f.index: f for f in score_continuations(ensemble, requests, likelihood="full")}
        for one in expected:
            assert found[one.index].log_prob == pytest.approx(one.log_prob, abs=1e-4)
    monkeypatch.undo()
    both = score_continuations(ensemble, requests, likelihood="full", batch_size=1)
    assert [f.log_prob for f in both] == pytest.approx([f.log_prob for f in sorted(expected, key=lambda f: f.index)])


def test_full_probabilities_of_a_member_alone_add_up(ensemble):
    alone = ensemble.alone(0)
    vocabulary = alone.alignment.vocabularies[0]
    ids = torch.nonzero(alone.alignment.classes[0] >= 0)[:, 0].tolist()
    total = sum(math.exp(f.log_prob) for f in score_continuations(alone, [("A", [i]) for i in ids], likelihood="full"))
    assert total == pytest.approx(1.0, abs=1e-4)
    assert vocabulary.eos_token_id in ids


def test_full_from_recorded_members_without_logits(ensemble):
    """The interface of members is enough: their keys, log-sums and logits of given ids."""
    requests = [("James met", encode(ensemble, " the quick fox"))]
    (expected,) = score_continuations(ensemble, requests, likelihood="full")
    recorders = [Recorder(member) for member in ensemble.members]
    recording = UniteEnsemble(recorders, alignment=ensemble.alignment, weights=[2, 1])
    list(score_continuations(recording, requests, likelihood="full"))
    replayed = UniteEnsemble([r.recorded() for r in recorders], alignment=ensemble.alignment, weights=[2, 1])
    (got,) = score_continuations(replayed, requests, likelihood="full")
    assert got.log_prob == pytest.approx(expected.log_prob, abs=1e-4)


def test_full_with_weights_of_the_prompt(ensemble):
    """PackLLM's weights are those of the mean."""
    requests = [("James met", encode(ensemble, " the"))]
    each = [next(score_continuations(ensemble, requests, weights=w, likelihood="full")) for w in ([1, 0], [0, 1])]
    (pack,) = score_continuations(ensemble, requests, weights=None, method="packllm", likelihood="full")
    low, high = sorted(math.exp(f.log_prob) for f in each)
    assert low < math.exp(pack.log_prob) < high


def test_full_needs_a_mean(ensemble):
    with pytest.raises(ValueError, match="likelihood must be one of 'union', 'full', got 'all'"):
        score_continuations(ensemble, [("A", [1])], likelihood="all")
    with pytest.raises(ValueError, match="likelihood must be 'union' with method 'gac'"):
        score_continuations(ensemble, [("A", [1])], method="gac", likelihood="full")
    with pytest.raises(ValueError, match="likelihood must be 'union' with method 'unite' and combine='product'"):
        score_continuations(ensemble, [("A", [1])], combine="product", likelihood="full")
