"""Token-level methods: hand-worked steps, the decode loop, and what each refuses."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import toy_tokenizers
from toy_models import toy_model

from unite_ext import StepOptions, UniteEnsemble, VocabAlignment
from unite_ext.members.context import LogitScores
from unite_ext.methods import deepen, gac
from unite_ext.methods.deepen import DeepenAdapt, DeepenAvg, relative_representations
from unite_ext.methods.registry import METHODS, TOKEN_METHODS, check_method, method_class

STEP = StepOptions()
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizers():
    return [toy_tokenizers.byte_level(), toy_tokenizers.sentencepiece()]


@pytest.fixture(scope="module")
def alignment(tokenizers):
    return VocabAlignment.from_tokenizers(tokenizers)


@pytest.fixture(scope="module")
def ensemble(tokenizers):
    models = [
        toy_model(kind, t, seed=i, padding=3) for i, (kind, t) in enumerate(zip(("llama", "mistral"), tokenizers))
    ]
    return UniteEnsemble(models, tokenizers)


def logits_of(alignment, *probabilities):
    """[1, V_m] logits whose softmax gives these texts these probabilities, "" meaning EOS; the rest next to nothing."""
    result = []
    for m, texts in enumerate(probabilities):
        row = torch.full((1, alignment.vocab_sizes[m]), -40.0)
        for text, probability in texts.items():
            row[0, id_of(alignment, m, text)] = math.log(probability)
        result.append(row)
    return result


def id_of(alignment, m, text):
    return alignment.vocabularies[m].representatives()[text.encode()] if text else alignment.eos_ids[m]


def scores_of(logits):
    return [LogitScores(x) for x in logits]


class FakeMember:
    """A member that is nothing but its embeddings."""

    def __init__(self, embeddings):
        self.embeddings = embeddings

    def input_embeddings(self):
        return self.embeddings


# GaC


def test_gac_averages_over_the_union(alignment):
    # By hand: " the" 0.5 * 0.4 + 0.5 * 0.1 = 0.25, "J" 0.5 * 0.6 = 0.3, "a" 0.5 * 0.9 = 0.45.
    method = gac.GaC(alignment, [], STEP)
    logits = logits_of(alignment, {" the": 0.4, "J": 0.6}, {" the": 0.1, "a": 0.9})
    step = method.step(scores_of(logits), [None])
    assert step.next_ids.tolist() == [[id_of(alignment, 0, "a"), id_of(alignment, 1, "a")]]
    by_id = dict(zip(step.union_ids[0, :, 0].tolist(), step.union_probs[0].tolist()))
    assert by_id[id_of(alignment, 0, "a")] == pytest.approx(0.45, abs=1e-5)
    assert by_id[id_of(alignment, 0, "J")] == pytest.approx(0.30, abs=1e-5)
    assert by_id[id_of(alignment, 0, " the")] == pytest.approx(0.25, abs=1e-5)
    weighted = gac.GaC(alignment, [], StepOptions(weights=[3, 1])).step(scores_of(logits), [None])
    assert weighted.next_ids[0, 0] == id_of(alignment, 0, "J")  # 0.75 * 0.6 = 0.45 > 0.325, 0.225
    assert weighted.union_probs[0, 0] == pytest.approx(0.45, abs=1e-5)


def test_gac_uses_probabilities_of_the_whole_vocabulary(alignment):
    # The second member gives a special token 0.6 of its mass: its "a" counts 0.4, so "J" wins with 0.3 against 0.2.
    logits = logits_of(alignment, {" the": 0.4, "J": 0.6}, {"a": 0.4})
    logits[1][0, 1] = math.log(0.6)  # <s>
    step = gac.GaC(alignment, [], STEP).step(scores_of(logits), [None])
    assert step.next_ids[0, 0] == id_of(alignment, 0, "J")


def test_gac_shares_one_eos(alignment):
    first, second = alignment.vocabularies[0].eos_token_ids[0], alignment.eos_ids[1]
    logits = logits_of(alignment, {"J": 0.55, "": 0.45}, {"": 0.6, "a": 0.4})
    step = gac.GaC(alignment, [], STEP).step(scores_of(logits), [None])
    assert step.next_ids.tolist() == [[first, second]]
    assert step.union_probs[0, 0] == pytest.approx(0.525, abs=1e-5)


def test_gac_emits_the_first_sub_token_of_a_foreign_winner(tokenizers):
    alignment = VocabAlignment.from_tokenizers(list(reversed(tokenizers)))
    other = alignment.vocabularies[1].representatives()
    text = next(t for t in other if t not in alignment.vocabularies[0].representatives() and len(t) > 2)
    logits = [torch.full((1, size), -40.0) for size in alignment.vocab_sizes]
    logits[0][0, id_of(alignment, 0, "a")] = 0.0
    logits[1][0, other[text]] = 1.0
    step = gac.GaC(alignment, [], StepOptions(weights=[1, 2])).step(scores_of(logits), [None])
    assert step.next_ids.tolist() == [[alignment.encode_continuation(0, text)[0], other[text]]]


def test_gac_counts_special_tokens_behind_the_last_text(tokenizers):
    """A special id above every eligible one still has its share of the probability."""
    late = copy.deepcopy(toy_tokenizers.byte_level_digits())
    late.add_special_tokens({"additional_special_tokens": ["<|late|>"]})
    alignment = VocabAlignment.from_tokenizers([tokenizers[0], late], cache=False)
    special = late.convert_tokens_to_ids("<|late|>")
    assert special >= alignment.vocab_sizes[1]
    logits = logits_of(alignment, {"J": 0.4, " ": 0.6}, {"J": 0.1, "a": 0.3})
    logits[1] = torch.nn.functional.pad(logits[1], (0, special + 1 - logits[1].shape[1]), value=-40.0)
    logits[1][0, special] = math.log(0.6)
    step = gac.GaC(alignment, [], STEP).step(scores_of(logits), [None])
    assert step.union_probs[0, :3].tolist() == pytest.approx([0.3, 0.25, 0.15], abs=1e-5)  # " ", "J", "a"


def test_gac_ends_a_text_for_a_primary_without_eos(tokenizers):
    pair = [toy_tokenizers.wordpiece(), tokenizers[0]]
    alignment = VocabAlignment.from_tokenizers(pair)
    logits = [torch.full((1, size), -40.0) for size in alignment.vocab_sizes]
    logits[0][0, alignment.vocabularies[0].representatives()[b" the"]] = 0.0
    logits[1][0, alignment.eos_ids[1]] = 0.0
    step = gac.GaC(alignment, [], StepOptions(weights=[1, 2])).step(scores_of(logits), [None])
    assert step.next_ids.tolist() == [[-1, alignment.eos_ids[1]]]


# DeePEn


def test_relative_representations_by_hand():
    embeddings = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    got = relative_representations(embeddings, torch.tensor([0, 1]), CPU)
    # Cosines to the anchors: (1, 0), (0, 1), (0.7071, 0.7071); all of length 1; softmax of 100 times these.
    assert torch.allclose(got, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]), atol=1e-6)
    # One anchor: everything is similar to it alone.
    assert relative_representations(embeddings, torch.tensor([0]), CPU).tolist() == [[1.0]] * 3
    # Similarities (0.1, 0.05)/|.| = (0.8944, 0.4472): softmax of a difference of 44.7 is all on the first.
    got = relative_representations(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.1, 0.05, 1]]), torch.tensor([0, 1]), CPU)
    assert got[2].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def one_hot_members(alignment):
    """Every token that both members have is similar to itself alone: the relative space is that of common texts."""
    common = deepen.common_ids(alignment)
    members = []
    for m, size in enumerate(alignment.vocab_sizes):
        embeddings = torch.zeros(size, len(common) + 1)
        embeddings[:, -1] = 1.0
        embeddings[common[:, m]] = torch.eye(len(common), len(common) + 1)
        members.append(FakeMember(embeddings))
    return members


@pytest.mark.parametrize(
    ("eta", "winner"),
    # The members say J 0.6, a 0.4 and J 0.1, a 0.9; the average is J 0.35, a 0.65. The primary's logits differ by
    # log(0.6/0.4) = 0.405; AdamW moves each by about eta per step, so the difference closes by about 2 * eta per step,
    # 0.12 in five steps for 0.012, more than 0.405 for 0.05.
    [(0.012, "J"), (0.05, "a"), (0.3, "a")],
)
def test_deepen_by_hand(alignment, eta, winner):
    method = DeepenAvg(alignment, one_hot_members(alignment), STEP, eta=eta)
    step = method.step(scores_of(logits_of(alignment, {"J": 0.6, "a": 0.4}, {"J": 0.1, "a": 0.9})), [None])
    assert step.next_ids.tolist() == [[id_of(alignment, 0, winner), id_of(alignment, 1, winner)]]


def test_deepen_search_is_the_written_one(alignment):
    """Five AdamW steps written out for two logits: gradient of KL/A is (q - r)/A."""
    method = DeepenAvg(alignment, one_hot_members(alignment), STEP, eta=0.1)
    own = logits_of(alignment, {"J": 0.6, "a": 0.4}, {})[0]
    count = method._anchors
    target = torch.zeros(1, count)
    common = deepen.common_ids(alignment)[:, 0].tolist()
    ids = [id_of(alignment, 0, "J"), id_of(alignment, 0, "a")]
    target[0, common.index(ids[0])], target[0, common.index(ids[1])] = 0.35, 0.65
    got = method._search(own, target)[0, ids].double()

    x, first, second = own[0, ids].double(), torch.zeros(2).double(), torch.zeros(2).double()
    for t in range(1, 6):
        rate = 0.025 + (0.1 - 0.025) * (1 + math.cos(math.pi * (t - 1) / 10)) / 2
        gradient = (x.softmax(0) - torch.tensor([0.35, 0.65])) / count
        x = x * (1 - rate * 0.01)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        x = x - rate * (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
    assert got.tolist() == pytest.approx(x.tolist(), abs=1e-4)


def test_deepen_keeps_the_primarys_eos(alignment):
    method = DeepenAvg(alignment, one_hot_members(alignment), STEP, eta=0.3)
    step = method.step(scores_of(logits_of(alignment, {"": 0.5, "a": 0.4, "J": 0.1}, {"a": 1.0})), [None])
    assert step.next_ids[0, 0] == alignment.eos_ids[0]


def test_deepen_adds_up_the_eos_ids(tokenizers):
    ends = [tokenizers[0].convert_tokens_to_ids(t) for t in ("<|eos|>", "<|eot|>")]
    alignment = VocabAlignment.from_tokenizers(tokenizers, eos_token_ids=[ends, None])
    logits = logits_of(alignment, {"J": 0.4, "a": 0.01}, {"J": 1.0})
    logits[0][0, ends] = math.log(0.3)  # each less than J, together more
    step = DeepenAvg(alignment, one_hot_members(alignment), STEP).step(scores_of(logits), [None])
    assert step.next_ids[0, 0] == alignment.eos_ids[0] == ends[1]


def test_deepen_weights(alignment):
    logits = logits_of(alignment, {"J": 0.6, "a": 0.4}, {"J": 0.1, "a": 0.9})
    members = one_hot_members(alignment)
    strong = DeepenAdapt(alignment, members, StepOptions(weights=[9, 1]), eta=0.3).step(scores_of(logits), [None])
    assert strong.next_ids[0, 0] == id_of(alignment, 0, "J")  # r = J 0.55, a 0.45
    weak = DeepenAdapt(alignment, members, StepOptions(weights=[1, 9]), eta=0.3).step(scores_of(logits), [None])
    assert weak.next_ids[0, 0] == id_of(alignment, 0, "a")
    with pytest.raises(ValueError, match="weights must be given with method 'deepen-adapt'"):
        DeepenAdapt.check(alignment, STEP, {})
    with pytest.raises(ValueError, match="weights must be uniform with method 'deepen-avg'"):
        DeepenAvg.check(alignment, StepOptions(weights=[2, 1]), {})


def test_deepen_refuses_what_does_not_fit(alignment):
    common = len(deepen.common_ids(alignment))
    needed = 1.25 * 4 * common * sum(alignment.vocab_sizes)
    options = {"max_bytes": int(needed) - 10}
    with pytest.raises(ValueError, match=rf"{common:,} anchors, .*sample anchors, at most {common - 1}"):
        DeepenAvg.check(alignment, STEP, options)
    DeepenAvg.check(alignment, STEP, {**options, "anchors": common - 1})
    method = DeepenAvg(alignment, one_hot_members(alignment), STEP, anchors=7)
    assert method.tokens_per_step == 7
    assert method.matrices[1].shape == (alignment.vocab_sizes[1], 7)
    with pytest.raises(ValueError, match=f"anchors must be at most the {common} common tokens, got {common + 1}"):
        DeepenAvg.check(alignment, STEP, {"anchors": common + 1})


# All of them


def test_table_5(real_tokenizer):
    """Tokens handled per step with Llama-3 and Qwen2, DeePEn's and GaC's columns of the paper's Table 5."""
    alignment = VocabAlignment.from_tokenizers([real_tokenizer("llama-3"), real_tokenizer("qwen2")])
    assert gac.GaC(alignment, [], STEP).tokens_per_step == 170_336
    assert len(deepen.common_ids(alignment)) == 109_566
    with pytest.raises(ValueError, match=r"153\.\d GB .* 109,566 anchors"):
        DeepenAvg.check(alignment, STEP, {"max_bytes": 141 * 10**9})


@pytest.mark.parametrize("name", TOKEN_METHODS)
def test_the_same_member_twice_is_the_member_alone(name, ensemble):
    member = ensemble.members[0]
    twice = UniteEnsemble([member, member])
    prompts = ["James met", "A", "def main"]
    options = {"max_new_tokens": 12, "method": name, **({"weights": [1, 1]} if name == "deepen-adapt" else {})}
    alone = UniteEnsemble([member]).generate(prompts, max_new_tokens=12, return_dict=True)
    output = twice.generate(prompts, return_dict=True, **options)
    assert [ids[0] for ids in output.token_ids] == [ids[0] for ids in alone.token_ids]
    listed = 10 if name in ("unite", "packllm") else 16
    assert all(len(trace.union_ids) == listed and trace.winner == 0 for traces in output.records for trace in traces)


@pytest.mark.parametrize("name", TOKEN_METHODS)
def test_batches_do_not_change_a_row(name, ensemble):
    prompts = ["James met", "A", "The quick brown"]
    options = {"max_new_tokens": 8, "method": name, **({"weights": [2, 1]} if name == "deepen-adapt" else {})}
    texts = ensemble.generate(prompts, **options)
    assert texts == ensemble.generate(prompts, batch_size=1, **options)
    assert all(len(text) > 0 for text in texts)


@pytest.mark.parametrize("name", TOKEN_METHODS)
def test_rows_that_cannot_be_decided_are_refused(name, alignment):
    step = StepOptions(weights=[1, 1] if name == "deepen-adapt" else None)
    method = method_class(name)(alignment, one_hot_members(alignment), step)
    logits = [torch.zeros(2, size) for size in alignment.vocab_sizes]
    logits[1][1] = -torch.inf
    with pytest.raises(ValueError, match=r"logits\[1\] has no eligible logit above -inf in row 1"):
        method.step(scores_of(logits), [(0.5, 0.5)] * 2).check()  # states as packllm has them


@pytest.mark.parametrize("name", [name for name in METHODS if name != "pair-ranker"])
def test_options_are_checked(name):
    check_method(name, {}, 2)
    with pytest.raises(TypeError, match="'no_such_option'"):
        check_method(name, {"no_such_option": 1}, 2)
    if name != "unite":
        with pytest.raises(ValueError, match="at least two members, got 1"):
            check_method(name, None, 1)


def test_bad_methods_are_refused_before_models_are_loaded(tmp_path, tokenizers):
    """The folders hold no weights: whoever loads a model first fails otherwise."""
    for i, tokenizer in enumerate([*tokenizers, toy_tokenizers.wordpiece()]):
        tokenizer.save_pretrained(tmp_path / str(i))
        toy_model("llama", tokenizer).config.save_pretrained(tmp_path / str(i))
    folders = [str(tmp_path / str(i)) for i in range(3)]

    def refused(message, names=folders[:2], error=ValueError, **options):
        with pytest.raises(error, match=message):
            UniteEnsemble.from_pretrained(names, **options)

    refused("method must be one of 'unite', 'gac'", method="gacc")
    refused("method 'gac' needs at least two members, got 1", names=folders[:1], method="gac")
    refused(
        "has no option 'eta'; its method_options are none", error=TypeError, method="gac", method_options={"eta": 1}
    )
    refused("method_options must map", error=TypeError, method="gac", method_options=3)
    refused("eta must be above 0", method="deepen-avg", method_options={"eta": 0})
    refused("weights must be given with method 'deepen-adapt'", method="deepen-adapt")
    refused("needs 0.0 GB for relative", method="deepen-avg", method_options={"max_bytes": 1000})
    refused("got member 0, which has none", names=[folders[2], folders[0]], method="deepen-avg")


def test_no_common_tokens(alignment, monkeypatch):
    monkeypatch.setattr(deepen, "common_ids", lambda a: torch.zeros(0, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="needs tokens that all members have, got none"):
        DeepenAvg.check(alignment, STEP, {})


def test_methods_do_not_sample(ensemble):
    with pytest.raises(ValueError, match="do_sample must be False with method 'gac'"):
        ensemble.generate("A", method="gac", do_sample=True, max_new_tokens=2)
