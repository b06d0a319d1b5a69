"""The decode loop gives the text of the plain oracle, and of the model itself when it is alone."""

from __future__ import annotations

import pytest
import torch
import toy_tokenizers
from conftest import load_real_tokenizer
from toy_models import KINDS, cached_toy_model, toy_model

from unite_ext import UniteEnsemble, reference

PROMPTS = ["Once upon a time", "2024 was", "def main():\n", "A", "The committee met on the 3rd and, after a long day, agreed"]
CLEAR = 1e-5  # a choice between probabilities closer than this may fall either way


def first_unclear(steps) -> int:
    """The first step whose two largest averages are too close to compare; its number of steps if there is none."""
    for i, step in enumerate(steps):
        top = step.union_probs[0].topk(2).values
        if top[0] - top[1] < CLEAR:
            return i
    return len(steps)


def assert_like_oracle(ens: UniteEnsemble, prompts: list[str], *, max_new_tokens: int, **options) -> int:
    """Every row of a batch is the oracle's decoding of its prompt alone, up to the first unclear step."""
    output = ens.generate(prompts, return_dict=True, max_new_tokens=max_new_tokens, **options)
    primary = options.get("primary", 0)
    compared = 0
    for row, prompt in enumerate(prompts):
        prompt_ids = [member.encode_prompt(prompt) for member in ens.members]
        models = [member.model for member in ens.members]
        text, ids, steps = reference.generate(models, ens.alignment, prompt_ids, max_new_tokens=max_new_tokens, **options)
        clear = first_unclear(steps)
        assert output.token_ids[row][primary][:clear] == ids[:clear]
        if clear == len(steps):
            assert output.texts[row] == text.decode("utf-8", "replace")
            assert output.token_ids[row][primary] == ids
            assert output.num_steps[row] == len(steps)
        compared += clear
    return compared


@pytest.fixture(scope="module")
def three():
    """Three members with different real tokenizers, one of them with a sliding window."""
    loaders = [("llama", "llama-3"), ("qwen2", "qwen2"), ("mistral-window", "mistral-7b-v0.3")]
    models = [cached_toy_model(kind, load_real_tokenizer, name, seed=i) for i, (kind, name) in enumerate(loaders)]
    return UniteEnsemble(models, [load_real_tokenizer(name) for _, name in loaders])


@pytest.mark.parametrize("kind", KINDS)
def test_one_member_is_its_own_greedy_generate(kind):
    tokenizer = load_real_tokenizer("qwen2" if kind != "llama" else "llama-3")
    model = cached_toy_model(kind, load_real_tokenizer, "qwen2" if kind != "llama" else "llama-3")
    ens = UniteEnsemble([model], [tokenizer])
    ineligible = [i for i in range(model.config.vocab_size) if ens.alignment.class_of(0, i) < 0]
    output = ens.generate(PROMPTS[:3], return_dict=True, max_new_tokens=60)
    for prompt, got, traces in zip(PROMPTS, output.token_ids, output.traces):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=False, suppress_tokens=ineligible,
            pad_token_id=0,
        )[0, ids.shape[1] :].tolist()  # fmt: skip
        if expected[-1] == tokenizer.eos_token_id:
            expected.pop()
        clear = next((i for i, t in enumerate(traces) if sorted(t.union_probs)[-1] - sorted(t.union_probs)[-2] < CLEAR), 60)
        assert got[0][:clear] == expected[:clear]
        assert clear > 5


def test_the_same_model_twice_is_the_model_alone(three):
    member = three.members[0]
    alone = UniteEnsemble([member]).generate(PROMPTS, max_new_tokens=40)
    assert UniteEnsemble([member, member]).generate(PROMPTS, max_new_tokens=40) == alone


def test_three_members_are_the_oracle(three):
    assert assert_like_oracle(three, PROMPTS[:1], max_new_tokens=200) > 100


def test_ragged_batches_are_the_oracle(three):
    assert assert_like_oracle(three, PROMPTS, max_new_tokens=60) > 150


@pytest.mark.parametrize("primary", [1, 2])
def test_any_primary_is_the_oracle(three, primary):
    assert_like_oracle(three, PROMPTS[:3], max_new_tokens=40, primary=primary, weights=[1, 2, 1.5], k=5)


TOY_MEMBERS = ("byte_level", "sentencepiece", "gemma", "unigram", "wordpiece")


@pytest.mark.filterwarnings("ignore:.*cannot spell")
@pytest.mark.parametrize("primary", range(len(TOY_MEMBERS)))
def test_every_kind_of_tokenizer_together(primary):
    tokenizers = [getattr(toy_tokenizers, name)() for name in TOY_MEMBERS]
    kinds = ("llama", "mistral-window", "gemma2", "gpt-neox", "mixtral")
    ens = UniteEnsemble([toy_model(k, t, seed=i) for i, (k, t) in enumerate(zip(kinds, tokenizers))], tokenizers)
    assert_like_oracle(ens, ["James met", "The answer: 42", "x"], max_new_tokens=40, primary=primary)
