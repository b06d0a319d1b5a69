"""Loading members: options that reach both model and tokenizer, GGUF files, and errors before anything is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_tokenizers
import transformers
from toy_models import toy_model

from unite_ext import UniteEnsemble
from unite_ext.members import loading
from unite_ext.members.loading import check_device, check_dtype, load_tokenizer, prepare
from unite_ext.members.transformers import Member


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A small model with its tokenizer."""
    path = tmp_path_factory.mktemp("model") / "llama"
    tokenizer = toy_tokenizers.byte_level()
    toy_model("llama", tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def no_weights(monkeypatch):
    """Reading weights is a failure."""

    def refuse(*arguments, **options):
        pytest.fail("weights were read before all was checked")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)


def test_a_subfolder_has_its_own_tokenizer(tmp_path, folder):
    """At the root lies another model's."""
    shutil.copytree(folder, tmp_path / "inner")
    toy_tokenizers.sentencepiece().save_pretrained(tmp_path)
    toy_model("mistral", toy_tokenizers.sentencepiece()).save_pretrained(tmp_path)
    member = Member.from_pretrained(str(tmp_path), subfolder="inner")
    assert type(member.model).__name__ == "LlamaForCausalLM"
    assert member.encode_prompt("James") == Member.from_pretrained(folder).encode_prompt("James")
    assert load_tokenizer(str(tmp_path), {"subfolder": "inner"})("James").input_ids == member.encode_prompt("James")


def test_a_folder_is_a_path_or_its_name(folder):
    ensemble = UniteEnsemble.from_pretrained([Path(folder), folder])
    assert [member.name for member in ensemble.members] == [folder, folder]
    assert Member.from_pretrained(Path(folder)).name == folder
    with pytest.raises(TypeError, match="names must be a list of model names"):
        UniteEnsemble.from_pretrained(Path(folder))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"atn_implementation": "eager"}, TypeError, "unknown option 'atn_implementation' .*'attn_implementation'"),
        ({"dtype": "float33"}, ValueError, "dtype must be auto, float32, bfloat16 or float16, got float33"),
        ({"dtype": "int8"}, ValueError, "got int8: for fewer bits give quantization_config"),
        ({"torch_dtype": "float33"}, ValueError, "dtype must be auto"),
        ({"dtype": "float32", "torch_dtype": torch.float16}, ValueError, "dtype and torch_dtype are the same option"),
        ({"device": "gpu"}, ValueError, "device must be one that torch knows, such as cpu or cuda:0, got 'gpu'"),
        ({"device": "cuda:99"}, ValueError, "device must be one of this machine, got 'cuda:99'"),
        ({"device": "cpu", "device_map": "auto"}, ValueError, "device and device_map exclude each other"),
        ({"chat_template": "none.jinja"}, ValueError, "chat_template must be 'own', 'plain'"),
        ({"chat_template_kwargs": "x"}, TypeError, "chat_template_kwargs must map names to values, got str"),
        ({"tokenizer": "./nowhere"}, ValueError, "the tokenizer of .* cannot be loaded"),
    ],
)
def test_options_are_checked_before_any_weights_are_read(folder, no_weights, options, error, message):
    for load in (Member.from_pretrained, lambda name, **own: UniteEnsemble.from_pretrained([name], **own)):
        with pytest.raises(error, match=message):
            load(folder, **options)


def test_an_ensembles_options_are_suggested_as_well(folder, no_weights):
    with pytest.raises(TypeError, match=r"unknown option 'weigths' .*mean 'weights'"):
        UniteEnsemble.from_pretrained([folder], weigths=[1.0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "model must be a folder, a .gguf file or a Hugging Face name, got ./nowhere: no such folder"),
        ("/no/where", "got /no/where: no such folder"),
        ("a/b/c", "got a/b/c: no such folder"),
        ("none.gguf", "got none.gguf: there is no such file"),
    ],
)
def test_names_are_checked_before_any_weights_are_read(folder, no_weights, name, message):
    for load in (Member.from_pretrained, load_tokenizer, lambda name: UniteEnsemble.from_pretrained([folder, name])):
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            load(name)


def test_a_folder_that_is_no_model_is_refused_with_the_cause(folder, tmp_path, no_weights):
    with pytest.raises(ValueError, match="cannot be loaded: ") as caught:
        UniteEnsemble.from_pretrained([folder, str(tmp_path)])
    assert caught.value.__cause__ is not None
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text('["not an object"]')
    with pytest.raises(ValueError, match="cannot be loaded: "):
        Member.from_pretrained(str(tmp_path))


def test_damaged_weights_are_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match=r"broken cannot be loaded: ") as caught:
        Member.from_pretrained(str(tmp_path / "broken"))
    assert caught.value.__cause__ is not None


def test_options_that_are_the_models_pass(folder):
    member = Member.from_pretrained(folder, torch_dtype="bfloat16", attn_implementation="eager", rms_norm_eps=1e-4)
    assert member.model.dtype == torch.bfloat16
    assert member.model.config.rms_norm_eps == 1e-4
    assert Member.from_pretrained(folder, dtype="torch.float16").model.dtype == torch.float16
    assert check_dtype({"": "float32"}) == {"": "float32"}
    assert check_device("cpu") == torch.device("cpu")


def test_a_prepared_member_is_loaded_as_it_was(folder):
    source = prepare(folder, dtype="bfloat16", chat_template="plain", chat_template_kwargs={"a": 1})
    member = Member.from_source(source)
    for prompt in ("James", [{"role": "user", "content": "Hi"}]):
        assert source.prompts.encode(prompt) == member.encode_prompt(prompt)
    assert (source.prompts.rows, source.prompts.context_length) == (member.prompts.rows, member.context_length)
    assert UniteEnsemble.from_pretrained([source]).members[0].model.dtype == torch.bfloat16


def write_gguf(path, tokenizer, model) -> None:
    """A GGUF file of a small Llama model with a byte-level tokenizer."""
    gguf = pytest.importorskip("gguf")
    config, state = model.config, json.loads(tokenizer.backend_tokenizer.to_str())
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    special = {token["id"] for token in state["added_tokens"] if token["special"]}
    writer.add_token_list(tokens)
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_token_types([kinds[i in special] for i in range(len(tokens))])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in state["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        data = tensor.float().numpy()
        if ".q_proj" in name or ".k_proj" in name:  # halves of a head beside each other, as GGUF has them
            heads = config.num_attention_heads if ".q_proj" in name else config.num_key_value_heads
            data = data.reshape(heads, 2, data.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(data.shape)
        parts = name.removesuffix(".weight").split(".")
        inner = ".".join(parts[3:]) if ".layers." in name else ""
        target = f"blk.{parts[2]}.{names[inner]}" if inner else names[".".join(parts)]
        writer.add_tensor(f"{target}.weight", np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def gguf_file(folder, tmp_path_factory) -> str:
    """The model of `folder` as one file."""
    pytest.importorskip("accelerate")
    if not loading._reads_gguf():
        pytest.skip("this transformers takes byte-level tokenizers of GGUF files for SentencePiece")
    path = tmp_path_factory.mktemp("gguf") / "toy.gguf"
    tokenizer = toy_tokenizers.byte_level()
    write_gguf(path, tokenizer, toy_model("llama", tokenizer))
    return str(path)


def test_a_gguf_file_is_a_member(folder, gguf_file):
    member, same = Member.from_pretrained(gguf_file), Member.from_pretrained(folder)
    assert member.name == gguf_file
    assert member.num_logits == same.num_logits
    assert member.tokenizer.eos_token_id == same.tokenizer.eos_token_id
    ids = torch.tensor([[1, 20, 30, 40, 50]])
    with torch.no_grad():
        torch.testing.assert_close(member.model(ids).logits.float(), same.model(ids).logits, rtol=1e-3, atol=1e-3)
    assert load_tokenizer(gguf_file)("James met").input_ids == member.encode_prompt("James met")


def test_a_gguf_file_is_one_of_several(folder, gguf_file):
    ensemble = UniteEnsemble.from_pretrained([folder, gguf_file])
    assert isinstance(ensemble.generate("James", max_new_tokens=4), str)


def test_gguf_without_its_packages_says_what_to_install(gguf_file, monkeypatch, no_weights):
    monkeypatch.setattr(loading, "find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(ValueError, match=r"toy\.gguf needs gguf: pip install 'unite_ext\[gguf\]'"):
        Member.from_pretrained(gguf_file)


def test_gguf_needs_a_transformers_that_reads_its_tokenizers(tmp_path, monkeypatch, no_weights):
    (tmp_path / "toy.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(loading, "find_spec", lambda name: object())
    monkeypatch.setattr(loading, "_reads_gguf", lambda: False)
    with pytest.raises(ValueError, match=r"toy\.gguf needs transformers 5\.18 or newer: pip install"):
        load_tokenizer(str(tmp_path / "toy.gguf"))
