"""PairRanker on a small model in the published checkpoint's format."""

from __future__ import annotations

import json

import pytest
import torch
import toy_tokenizers
from safetensors.torch import load_file
from tokenizers import processors
from toy_models import toy_model
from transformers import DebertaV2Config, PreTrainedTokenizerFast

from unite_ext import UniteEnsemble
from unite_ext.methods.pair_ranker import MARKS, DebertaV2PairRM, PairRanker
from unite_ext.methods.registry import check_method

HALF = [0.5, 0.5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that prefers answers by what its tiny encoder makes of them, and its tokenizer."""
    path = tmp_path_factory.mktemp("ranker")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=toy_tokenizers.wordpiece().backend_tokenizer,
        unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
    )  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    tokenizer.save_pretrained(path)
    marks = tokenizer.convert_tokens_to_ids(list(MARKS))
    config = DebertaV2Config(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, n_tasks=1, drop_out=0.05,
        source_prefix_id=marks[0], cand1_prefix_id=marks[1], cand2_prefix_id=marks[2], sep_token_id=sep,
    )  # fmt: skip
    torch.manual_seed(0)
    model = DebertaV2PairRM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(path)
    return path


def test_the_checkpoint_has_the_published_names(folder):
    names = load_file(folder / "model.safetensors").keys()
    assert {"head_layer.1.weight", "head_layer.1.bias", "head_layer.4.weight", "head_layer.4.bias"} <= names
    assert "pretrained_model.embeddings.word_embeddings.weight" in names
    assert all(name.startswith(("pretrained_model.", "head_layer.")) for name in names)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["DebertaV2PairRM"]


def test_a_comparison_by_hand(folder):
    """The head on the encodings of the marks, written out from the checkpoint's tensors."""
    ranker = PairRanker(HALF, path=str(folder))
    tokenizer, model = ranker._tokenizer, ranker._model
    texts = [f"{mark}{text}" for mark, text in zip(MARKS, ("Who is James?", "the fox", "the lazy dog"))]
    ids = [i for text in texts for i in tokenizer(text).input_ids]
    assert ids.count(tokenizer.cls_token_id) == ids.count(tokenizer.sep_token_id) == 3
    with torch.no_grad():
        states = model.pretrained_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    tensors = load_file(folder / "model.safetensors")
    at = [ids.index(i) for i in tokenizer.convert_tokens_to_ids(list(MARKS))]

    def head(encoding):
        hidden = torch.tanh(tensors["head_layer.1.weight"] @ encoding + tensors["head_layer.1.bias"])
        return float((tensors["head_layer.4.weight"] @ hidden + tensors["head_layer.4.bias"]).mean())

    expected = head(torch.cat([states[at[0]], states[at[1]]])) - head(torch.cat([states[at[0]], states[at[2]]]))
    assert ranker.compare("Who is James?", "the fox", "the lazy dog") == pytest.approx(expected, abs=1e-5)
    assert abs(expected) > 1e-4  # trained tokenizers, and so weights, differ from run to run
    marked = ranker.compare(f"Who is {MARKS[2]}James?", f"the {MARKS[1]}fox", "the lazy dog")
    assert marked == pytest.approx(expected, abs=1e-5)


def test_both_orders_count(monkeypatch, folder):
    ranker = PairRanker([1 / 3] * 3, path=str(folder))
    # By hand: a has f(ab) - f(ba) + f(ac) - f(ca) = 3 - 2 + 1 - 4 = -2, b 2 - 3 + 5 - 0 = 4, c 4 - 1 + 0 - 5 = -2.
    table = {"ab": 3.0, "ba": 2.0, "ac": 1.0, "ca": 4.0, "bc": 5.0, "cb": 0.0}
    monkeypatch.setattr(ranker, "compare", lambda source, first, second: table[first + second])
    assert ranker.choose("x", ["a", "b", "c"]) == 1
    table["bc"] = 1.0  # b: 0, c: 2
    assert ranker.choose("x", ["a", "b", "c"]) == 2
    assert ranker.choose("x", ["a", "a", "a"]) == 0


def test_in_the_ensemble(folder):
    tokenizers = [toy_tokenizers.byte_level(), toy_tokenizers.sentencepiece()]
    models = [toy_model(k, t, seed=i) for i, (k, t) in enumerate(zip(("llama", "mistral"), tokenizers))]
    ensemble = UniteEnsemble(models, tokenizers)
    options = {"method": "pair-ranker", "method_options": {"path": str(folder)}, "max_new_tokens": 6}
    prompts = ["James met", "The fox", "A"]
    texts = ensemble.generate(prompts, **options)
    own = [ensemble.alone(m).generate(prompts, max_new_tokens=6) for m in range(2)]
    ranker = PairRanker(HALF, path=str(folder))
    for i, prompt in enumerate(prompts):
        better = ranker.compare(prompt, own[0][i], own[1][i]) - ranker.compare(prompt, own[1][i], own[0][i])
        assert texts[i] == own[0 if better > 0 else 1][i]


def test_what_is_refused(tmp_path, folder):
    def refused(message, error=ValueError, **options):
        with pytest.raises(error, match=message):
            check_method("pair-ranker", options, 2)

    refused("must be the folder of a reward model")
    refused("path must be a string, got int", error=TypeError, path=3)
    refused(r"config.json does not exist", path=str(tmp_path))
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    refused("must hold a DebertaV2PairRM, .* got LlamaForCausalLM", path=str(tmp_path))
    (tmp_path / "config.json").write_text('{"architectures": ["DebertaV2PairRM"], "n_tasks": 1, "drop_out": 0.1}')
    refused("has no 'source_prefix_id'", path=str(tmp_path))
    check_method("pair-ranker", {"path": str(folder)}, 2)
