"""A member's prompts: chats with templates, variables and last messages, and errors that name what is wrong."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import toy_tokenizers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from toy_models import toy_model
from transformers import PreTrainedTokenizerFast

from unite_ext import UniteEnsemble
from unite_ext.decoding.likelihood import score_continuations
from unite_ext.members.prompts import PromptEncoder, check_against_file, check_spelling, plain_chat, read_chat_template
from unite_ext.members.transformers import Member

CHAT = (
    "{% if tools %}<|tools|>{{ tools | length }}{% endif %}{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ raise_exception('no tools\\nhere') }}{% endif %}<|{{ m.role }}|>{{ m.content }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined and not enable_thinking %}"
    "(calm){% endif %}{% endif %}"
)
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def tokenizer():
    """With a chat template of its own."""
    found = copy.deepcopy(toy_tokenizers.byte_level())
    found.chat_template = CHAT
    return found


@pytest.fixture
def member(tokenizer):
    return Member(toy_model("llama", tokenizer, context=64), tokenizer, name="chatty")


def test_a_last_assistant_message_is_continued(member):
    messages = [*HI, {"role": "assistant", "content": "Well, "}]
    assert member.prompts.render(messages) == "<|user|>Hi<|eot|><|assistant|>Well, "
    assert member.prompts.render(HI) == "<|user|>Hi<|eot|><|assistant|>"
    # Nothing said yet is nothing to continue.
    assert member.prompts.render([*HI, {"role": "assistant", "content": ""}]) == "<|user|>Hi<|eot|><|assistant|>"
    assert messages[-1] == {"role": "assistant", "content": "Well, "}


def test_variables_reach_the_template(tokenizer):
    variables = {"enable_thinking": False, "tools": [{"type": "function", "function": {"name": "clock"}}]}
    member = Member(toy_model("llama", tokenizer), tokenizer, chat_template_kwargs=variables)
    assert member.prompts.render(HI) == "<|tools|>1<|user|>Hi<|eot|><|assistant|>(calm)"
    ids = member.encode_prompt(HI, chat_template_kwargs={"enable_thinking": True})
    assert tokenizer.decode(ids) == "<|tools|>1<|user|>Hi<|eot|><|assistant|>"


def test_an_eos_that_the_template_wrote_stays(member, tokenizer):
    """The tokenizer's own closing tokens go, so that the model goes on; the template's were meant."""
    variables = {"add_generation_prompt": False}
    assert member.encode_prompt(HI, chat_template_kwargs=variables)[-1] == tokenizer.eos_token_id
    closing = copy.deepcopy(toy_tokenizers.unigram())
    closing.chat_template = "{{ messages[0].content }}</s>"
    encoder = PromptEncoder(closing, "closing")
    assert encoder.encode("answer")[-1] != closing.eos_token_id
    assert encoder.encode([{"role": "user", "content": "answer"}])[-1] == closing.eos_token_id


def test_chat_and_base_models_together(tokenizer):
    base = toy_tokenizers.sentencepiece()
    members = [
        Member(toy_model("llama", tokenizer), tokenizer, name="chatty"),
        Member(toy_model("mistral", base), base, name="base", chat_template="plain"),
    ]
    assert tokenizer.decode(members[0].encode_prompt(HI)) == "<|user|>Hi<|eot|><|assistant|>"
    assert members[1].encode_prompt(HI) == members[1].encode_prompt("User: Hi\n\nAssistant:")
    assert members[1].encode_prompt(HI)[0] == base.bos_token_id
    assert isinstance(UniteEnsemble(members).generate(HI, max_new_tokens=3), str)


def test_plain_chat():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]},
        {"role": "assistant", "content": "Yes, "},
    ]
    assert plain_chat(messages[:2]) == "System: Be brief.\n\nUser: Hi there\n\nAssistant:"
    assert plain_chat(messages) == "System: Be brief.\n\nUser: Hi there\n\nAssistant: Yes, "
    with pytest.raises(ValueError, match="must have text as its 'content', got None"):
        plain_chat([{"role": "user", "content": None}])


def test_templates_by_name_file_and_text(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text("{{ messages }}", encoding="utf-8-sig")
    assert read_chat_template(str(path)) == read_chat_template(path) == "{{ messages }}"
    assert read_chat_template("{{ x }}") == "{{ x }}"
    assert read_chat_template("own") is None
    assert read_chat_template("plain") == "plain"
    with pytest.raises(ValueError, match="chat_template must be 'own', 'plain', a Jinja template or a file"):
        read_chat_template("nowhere.jinja")


def test_what_a_template_refuses_is_the_members(member):
    with pytest.raises(ValueError, match=r"^chatty's chat template refuses the messages: no tools$") as caught:
        member.encode_prompt([{"role": "tool", "content": "5"}])
    assert caught.value.__cause__ is not None
    member.tokenizer.chat_template = "{{ messages[0].content + 5 }}"
    with pytest.raises(ValueError, match="chatty's chat template refuses") as caught:
        member.encode_prompt(HI)
    assert isinstance(caught.value.__cause__, TypeError)
    member.tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"chatty has no chat template: .* chat_template='plain'"):
        member.encode_prompt(HI)


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        (1, TypeError, "a prompt must be text or a list of chat messages, got int"),
        (b"bytes", TypeError, "a prompt must be text or a list of chat messages, got bytes"),
        ([], ValueError, "at least one chat message, got an empty list"),
        ([HI[0], "x"], TypeError, "a chat message must map 'role' and 'content', got str"),
        ([{"content": "x"}], ValueError, "a chat message must have a 'role'"),
        ("ab\ud800", ValueError, r"got the lone surrogate '\\ud800' at character 2"),
        ([{"role": "user", "content": "\udcff"}], ValueError, r"got the lone surrogate '\\udcff'"),
        ("word " * 64, ValueError, "in chatty, whose context holds 64"),
    ],
)
def test_bad_prompts_are_refused(member, prompt, error, message):
    with pytest.raises(error, match=message):
        member.encode_prompt(prompt)


def test_ids_without_an_embedding_are_refused_by_name(member):
    """A token that was added after the ensemble was made, and not to the model."""
    ensemble = UniteEnsemble([member])
    assert ensemble.generate("Hi", max_new_tokens=1) is not None
    member.tokenizer.add_tokens(["<fresh>"])
    rows = member.model.get_input_embeddings().num_embeddings
    with pytest.raises(
        ValueError, match=rf"id {rows} \('<fresh>'\) in chatty, whose model has embeddings .* below {rows}"
    ):
        ensemble.generate("Hi <fresh>", max_new_tokens=1)
    member.model.resize_token_embeddings(rows + 1)
    assert rows in member.encode_prompt("Hi <fresh>")


def test_a_tokenizer_of_the_wrong_class_is_noticed():
    """What transformers makes of a SentencePiece file that says it is of GPT-2's class: another pre-tokenizer."""
    wrong = Tokenizer.from_str(toy_tokenizers.sentencepiece().backend_tokenizer.to_str())
    wrong.normalizer = None
    wrong.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    wrong.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=wrong, eos_token="</s>", unk_token="<unk>")
    with pytest.warns(
        UserWarning, match=r"^mixed's tokenizer .* encodes 'Seven cats .* as ids that say 'Seven<0xC4>"
    ) as found:
        check_spelling(tokenizer, "mixed")
    assert len(found) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "make", [*toy_tokenizers.COVERING, *toy_tokenizers.NOT_COVERING, toy_tokenizers.wordpiece_lowercase]
)
def test_working_tokenizers_are_not_blamed(make):
    check_spelling(make(), "fine")


@pytest.mark.filterwarnings("error")
def test_real_tokenizers_are_not_blamed(real_tokenizer):
    for name in ("llama-3", "qwen2", "deepseek-v3", "mistral-7b-v0.1", "mistral-7b-v0.3"):
        check_spelling(real_tokenizer(name), name)


def test_a_class_that_replaces_parts_of_its_file_is_noticed(tmp_path):
    """Its text still comes back, but in other tokens than the model was trained on."""
    tokenizer = toy_tokenizers.byte_level()
    file = tmp_path / "tokenizer.json"
    file.write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_against_file(tokenizer, "fine", file)
        check_against_file(tokenizer, "nothing to compare with", tmp_path / "none.json")
    wrong = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    wrong.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("a", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    other = PreTrainedTokenizerFast(tokenizer_object=wrong, eos_token="</s>")
    check_spelling(other, "mixed")
    with pytest.warns(UserWarning, match=r"^mixed's tokenizer .* but its tokenizer.json as \["):
        check_against_file(other, "mixed", file)


def test_template_variables_per_call(member, tokenizer):
    plain = Member(toy_model("llama", tokenizer, context=64, seed=1), tokenizer, name="other", chat_template="plain")
    ensemble = UniteEnsemble([member, plain])
    calm = {"enable_thinking": False}
    expected = [member.encode_prompt(HI, chat_template_kwargs=calm), plain.encode_prompt(HI)]
    assert expected[0] != member.encode_prompt(HI)
    for given in (calm, [calm, None]):
        [request] = ensemble.generate_each([HI], max_new_tokens=1, chat_template_kwargs=given)
        assert request.prompt_ids == expected
        stream = ensemble.stream(HI, max_new_tokens=1, chat_template_kwargs=given)
        assert stream.request.prompt_ids == expected
    assert (
        ensemble.generate(HI, max_new_tokens=1, chat_template_kwargs=calm)
        == ensemble.generate([HI], max_new_tokens=1, chat_template_kwargs=[calm, None])[0]
    )
    assert len(ensemble.trace(HI, max_new_tokens=1, chat_template_kwargs=calm).steps) == 1
    with pytest.raises(ValueError, match="chat_template_kwargs must be one mapping or one per member, 2, got 1"):
        ensemble.generate(HI, chat_template_kwargs=[calm])
    with pytest.raises(TypeError, match="chat_template_kwargs must map names to values, got str"):
        ensemble.generate(HI, chat_template_kwargs="calm")


def test_ids_given_for_scoring_are_those_of_the_embedding(member):
    ensemble = UniteEnsemble([member])
    rows = member.model.get_input_embeddings().num_embeddings
    target = member.encode_prompt("Hi")[-1:]
    for ids in ([rows], [-1], []):
        with pytest.raises(ValueError, match=r"^requests\[0\]: a prompt "):
            score_continuations(ensemble, [([ids], target)])
    assert len(list(score_continuations(ensemble, [([[1, 2]], target)]))) == 1


def test_an_old_static_cache_is_refused_before_anything_is_loaded(member, monkeypatch):
    monkeypatch.setattr("transformers.cache_utils.StaticLayer", lambda length: object())
    with pytest.raises(RuntimeError, match=r"compile must be False with transformers .* it needs 5\.4 or newer"):
        UniteEnsemble([member], compile=True)
    with pytest.raises(RuntimeError, match="compile must be False"):
        UniteEnsemble.from_pretrained(["nowhere"], compile=True)


def test_eos_ids_of_any_kind():
    tokenizer = toy_tokenizers.byte_level()
    model = toy_model("llama", tokenizer)
    for eos in (
        torch.tensor(3),
        torch.tensor([3, 5]),
        [torch.tensor(3), 5],
        torch.tensor(3).numpy()[()],
        3,
        [3, 5],
        None,
    ):
        model.generation_config.eos_token_id = eos
        ids = Member(model, tokenizer).eos_token_ids
        assert ids in ([3], [3, 5], [])
        assert all(type(i) is int for i in ids)


class PackedHead(torch.nn.Module):
    """As quantized layers are: the weight is packed, or there is none under that name."""

    def __init__(self, head, **attributes):
        super().__init__()
        self.run = head
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.run(x)


@pytest.mark.parametrize(
    "attributes", [{}, {"out_features": 0}, {"weight": torch.zeros(9, 1, 1)}], ids=["none", "out", "packed"]
)
def test_the_width_of_unusual_heads(attributes):
    tokenizer = toy_tokenizers.byte_level()
    model = toy_model("llama", tokenizer, padding=7)
    width = len(tokenizer) + 7
    attributes = {name: width if name == "out_features" else value for name, value in attributes.items()}
    model.set_output_embeddings(PackedHead(model.get_output_embeddings(), **attributes))
    member = Member(model, tokenizer)
    assert member.num_logits == width
    assert isinstance(UniteEnsemble([member]).generate("Hi", max_new_tokens=2), str)
