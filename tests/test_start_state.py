"""The start state: which members write a space before a text that is no part of it, and what their ids mean there."""

from __future__ import annotations

import logging

import pytest
import torch
import toy_tokenizers
from conftest import NAMES
from hypothesis import given, settings
from hypothesis import strategies as st
from start_cases import CLOSE, END, HI, TEMPLATES, chat_tokenizer, member, with_template
from test_step_meaning import World, byte_level, probs, softmax
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from unite_ext import VocabAlignment, Vocabulary, reference, step_parts, unite_step
from unite_ext.decoding.prompt_ids import encode_prompt, ids_as_prompt
from unite_ext.testing import assert_same_step
from unite_ext.testing.steps import step_in_parts
from unite_ext.vocab.alignment import EOS_CLASS, FIRST_SUB_TOKEN
from unite_ext.vocab.start_state import in_start_state
from unite_ext.vocab.text_sync import TextSync

ANSWERS = ["The answer is 42.", "42", "hello", "中文 ok", "é", "James met Jam\n", "f(x):\n    return x", "—x", "\n"]
TOYS = ("byte_level", "byte_level_digits", "sentencepiece", "sentencepiece_metaspace", "gemma")

# Which members are in the start state


@pytest.mark.parametrize(
    ("name", "template", "expected"),
    [
        ("sentencepiece", "direct", True),  # the tokenizer puts the space, behind special tokens too
        ("sentencepiece_metaspace", "direct", False),  # only at the very beginning of a text
        ("sentencepiece_metaspace", "spaced", True),  # the template puts it
        ("sentencepiece", "in text", True),  # the tokenizer sees no beginning there, the template puts the space
        ("sentencepiece_metaspace", "in text", True),
        ("gemma", "direct", False),
        ("gemma", "spaced", True),
        ("byte_level", "direct", False),
        ("byte_level", "spaced", True),
        ("byte_level_digits", "in text", True),
    ],
)
def test_the_answer_in_the_template_decides(name, template, expected):
    own = member(name, template)
    vocabulary = Vocabulary.from_tokenizer(own.tokenizer)
    assert encode_prompt([own], [vocabulary], HI).starts == (expected,)
    # An answer that has begun goes on inside its text.
    begun = [*HI, {"role": "assistant", "content": "The answer"}]
    assert encode_prompt([own], [vocabulary], begun).starts == (False,)
    nothing_yet = [*HI, {"role": "assistant", "content": ""}]
    assert encode_prompt([own], [vocabulary], nothing_yet).starts == (expected,)


@pytest.mark.parametrize(
    ("name", "prompt", "expected"),
    [
        ("sentencepiece", "Answer:", False),
        ("sentencepiece", "Answer: ", False),
        ("sentencepiece", "", True),  # <s> alone: the text that follows is `<s> ▁The`
        ("sentencepiece", f"[INST]The{CLOSE}", True),
        ("sentencepiece_metaspace", f"[INST]The{CLOSE}", False),
        ("sentencepiece_metaspace", "", True),
        ("gemma", f"[INST]The{CLOSE}", False),
        ("gemma", "", False),
        ("byte_level", f"[INST]The{CLOSE}", False),
        ("byte_level", "", False),
        ("unigram", f"[INST]The{CLOSE}", True),
        ("wordpiece", f"[INST]the{CLOSE}", True),
        ("wordpiece", "the 😀", False),  # [UNK] is an added token, and stands for text
    ],
)
def test_a_text_is_followed_as_the_tokenizer_does(name, prompt, expected):
    own = member(name)
    vocabulary = Vocabulary.from_tokenizer(own.tokenizer)
    encoded = encode_prompt([own], [vocabulary], prompt)
    assert encoded.starts == (expected,)
    assert ids_as_prompt([vocabulary], encoded.ids) == encoded


def test_a_template_that_refuses_an_answer_leaves_it_to_the_tokenizer():
    refusal = "{% if messages[-1].role != 'user' %}{{ raise_exception('no') }}{% endif %}"
    template = refusal + TEMPLATES["direct"]
    tokenizer = with_template(toy_tokenizers.sentencepiece(), template)
    own = type(member("sentencepiece"))(member("sentencepiece").model, tokenizer)
    assert own.answer_ids(HI, own.encode_prompt(HI), "hello") is None
    assert encode_prompt([own], [Vocabulary.from_tokenizer(tokenizer)], HI).starts == (True,)


def test_a_template_that_thinks_first_is_no_start():
    """What the template writes before the answer is no space: the tokenizer decides, and sees the end of a text."""
    template = TEMPLATES["direct"] + "{% if add_generation_prompt %}Think:{% endif %}"
    tokenizer = with_template(toy_tokenizers.sentencepiece(), template)
    own = type(member("sentencepiece"))(member("sentencepiece").model, tokenizer)
    assert encode_prompt([own], [Vocabulary.from_tokenizer(tokenizer)], HI).starts == (False,)


def test_without_a_tokenizer_nobody_starts(tmp_path):
    alignment = VocabAlignment.from_tokenizers([toy_tokenizers.sentencepiece()], cache=False)
    alignment.save(tmp_path / "a.safetensors")
    [vocabulary] = VocabAlignment.load(tmp_path / "a.safetensors").vocabularies
    assert in_start_state(alignment.vocabularies[0], [1])
    assert not in_start_state(vocabulary, [1])


# The ids of a text are those that the template gives it


def template_ids(tokenizer, answer: str) -> list[int]:
    """What the template writes for an answer, between the prompt and what closes it."""
    settings = {"tokenize": True, "return_dict": False}
    prompt = tokenizer.apply_chat_template(HI, add_generation_prompt=True, **settings)
    whole = tokenizer.apply_chat_template([*HI, {"role": "assistant", "content": answer}], **settings)
    assert whole[: len(prompt)] == prompt
    closing = tokenizer(END, add_special_tokens=False).input_ids
    assert whole[-len(closing) :] == closing
    return whole[len(prompt) : -len(closing)]


def text_ids(vocabulary: Vocabulary, tokenizer, answer: str) -> list[int]:
    """A member's ids of a generated text, that grows by a few bytes at a time."""
    prompt = tokenizer.apply_chat_template(HI, add_generation_prompt=True, tokenize=True, return_dict=False)
    whole = tokenizer.apply_chat_template([*HI, {"role": "assistant", "content": "hello"}], tokenize=False)
    answer_ids = tokenizer(whole.removesuffix(END), add_special_tokens=False).input_ids[len(prompt) :]
    sync = TextSync(vocabulary, b" " if in_start_state(vocabulary, prompt, answer_ids) else b"")
    data = answer.encode()
    for n in range(0, len(data), 3):
        sync.append(data[n : n + 3])
    return sync.ids


# Not where tokenizer and template both write a space: see `test_a_space_of_both_leaves_one_in_the_text`.
@pytest.mark.parametrize(
    ("name", "template"),
    [(name, t) for name in TOYS for t in ("direct", "spaced") if (name, t) != ("sentencepiece", "spaced")],
)
def test_ids_are_those_of_the_template(name, template):
    tokenizer = chat_tokenizer(name, template)
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    for answer in ANSWERS:
        if name != "byte_level_digits" or answer.isascii():
            assert text_ids(vocabulary, tokenizer, answer) == template_ids(tokenizer, answer), answer


def test_a_space_of_both_leaves_one_in_the_text():
    """The tokenizer's space is no part of the text, the template's is then: the answer's ids are those of ` hello`."""
    tokenizer = chat_tokenizer("sentencepiece", "spaced")
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert text_ids(vocabulary, tokenizer, " hello") == template_ids(tokenizer, "hello")


@pytest.mark.parametrize(
    ("name", "template"),
    [(name, t) for name in NAMES for t in ("direct", "spaced") if t == "direct" or not name.startswith("mistral")],
)
def test_ids_are_those_of_the_template_on_real_tokenizers(name, template, real_tokenizer):
    tokenizer = with_template(real_tokenizer(name), TEMPLATES[template])
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    for answer in [*ANSWERS, "天安门、建筑", "```python\nprint(1)\n```", "  two spaces", "<0x0A>"]:
        assert text_ids(vocabulary, tokenizer, answer) == template_ids(tokenizer, answer), answer


def test_mistral_as_it_is_published(real_tokenizer):
    """v0.3's own file marks only the very beginning (Metaspace "first"), and its template writes the space."""
    mistral = real_tokenizer("mistral-7b-v0.3")
    backend = Tokenizer.from_str(mistral.backend_tokenizer.to_str())
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.add_special_tokens([END])
    tokenizer = type(mistral)(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    for template, expected in (("spaced", True), ("direct", False)):
        tokenizer.chat_template = TEMPLATES[template]
        vocabulary = Vocabulary.from_tokenizer(tokenizer)
        assert text_ids(vocabulary, tokenizer, "The")[0] == tokenizer.convert_tokens_to_ids(
            "▁The" if expected else "The"
        )
        for answer in ANSWERS:
            assert text_ids(vocabulary, tokenizer, answer) == template_ids(tokenizer, answer), answer


# What ids mean at a first step


@pytest.mark.parametrize("name", [*TOYS, "unigram", "wordpiece"])
def test_a_vocabulary_at_its_start(name):
    vocabulary = Vocabulary.from_tokenizer(getattr(toy_tokenizers, name)())
    start = vocabulary.start
    assert start.token_bytes == [data.removeprefix(b" ") for data in vocabulary.token_bytes]
    assert start.silent == [i for i, data in enumerate(vocabulary.token_bytes) if data == b" "]
    for i in range(vocabulary.size):
        assert start.eligible[i] == (vocabulary.eligible[i] and i not in start.silent)
    assert vocabulary.start is start, "made once"
    assert start.fingerprint != vocabulary.fingerprint


words = st.text(alphabet="Thean 42\n中é", max_size=8).map(str.encode)


@pytest.mark.parametrize("name", TOYS)
def test_the_ids_of_a_text_are_those_of_a_space_and_the_text(name):
    vocabulary = Vocabulary.from_tokenizer(getattr(toy_tokenizers, name)())

    @settings(max_examples=80, deadline=None)
    @given(words, st.integers(1, 5))
    def holds(data, size):
        expected = vocabulary.encode_continuation(b" " + data) if data else []
        assert vocabulary.start.encode_continuation(data) == expected
        sync = TextSync(vocabulary, b" ")
        replayed = []
        for n in range(0, len(data), size):
            drop, append = sync.append(data[n : n + size])
            replayed = [*replayed[: len(replayed) - drop], *append]
        assert sync.ids == replayed == expected
        assert b"".join(vocabulary.token_bytes[i] for i in expected) == (b" " + data if data else b"")

    holds()


def assert_is_the_definition(alignment: VocabAlignment, flags: tuple[bool, ...], ids_of: list) -> None:
    """Classes are bytes; a member at its start represents them by ids that begin with the space, else by the first
    id of the space and the bytes."""
    start = alignment.at_start(flags)
    vocabularies = alignment.vocabularies
    meant = [
        [data.removeprefix(b" ") if first else data for data in v.token_bytes] for v, first in zip(vocabularies, flags)
    ]
    number: dict[bytes, int] = {}
    for m, v in enumerate(vocabularies):
        for i, data in enumerate(meant[m]):
            cls = start.class_of(m, i)
            if i in v.eos_token_ids:
                assert cls == EOS_CLASS
            elif not data:
                assert cls == -1
            else:
                assert number.setdefault(data, cls) == cls > 0
    assert len(set(number.values())) == len(number) == start.num_classes - 1
    for data in ids_of:
        if data not in number:
            continue
        for m, (v, first) in enumerate(zip(vocabularies, flags)):
            wanted = b" " + data if first else data
            own = [i for i, text in enumerate(v.token_bytes) if text == wanted and v.eligible[i]]
            own.sort(key=lambda i: (bool(v.is_byte_piece[i]), i))
            expected = own[0] if own else v.encode_continuation(wanted)[0] | FIRST_SUB_TOKEN
            assert int(start.class_ids[number[data], m]) == expected, (data, m)


@pytest.mark.parametrize("flags", [(True, False, False), (False, True, True), (True, True, False)])
def test_an_alignment_at_its_start(flags):
    names = ("sentencepiece", "byte_level", "gemma")
    alignment = VocabAlignment.from_tokenizers([getattr(toy_tokenizers, n)() for n in names], cache=False)
    texts = {data for v in alignment.vocabularies for t in v.token_bytes for data in (t, t.removeprefix(b" ")) if data}
    assert_is_the_definition(alignment, flags, sorted(texts))


def test_an_alignment_of_real_tokenizers(real_tokenizer):
    alignment = VocabAlignment.from_tokenizers([real_tokenizer(n) for n in ("mistral-7b-v0.3", "deepseek-v3")])
    tokens = alignment.vocabularies[1].token_bytes
    texts = [b"The", b"42", b"4", "你".encode(), b"\n", b" The", b"    ", b"```", b"Hello", *tokens[1000:128000:97]]
    assert_is_the_definition(alignment, (True, False), [t for t in texts if t])
    start = alignment.at_start((True, False))
    mistral = real_tokenizer("mistral-7b-v0.3").convert_tokens_to_ids
    cls = start.class_of(1, tokens.index(b"The"))
    assert start.class_of(0, mistral("▁The")) == cls != alignment.class_of(0, mistral("▁The"))
    assert int(start.class_ids[cls, 0]) == mistral("▁The")
    assert int(start.class_ids[start.class_of(1, tokens.index(b"4")), 0]) == mistral("▁") | FIRST_SUB_TOKEN
    assert start.class_of(0, mistral("▁")) == -1, "it is not proposed"


def test_all_at_their_start_mean_what_they_always_mean():
    alignment = VocabAlignment.from_tokenizers([toy_tokenizers.sentencepiece(), toy_tokenizers.gemma()], cache=False)
    assert alignment.at_start((True, True)) is alignment.at_start((False, False)) is alignment
    assert alignment.at_start([True, False]) is alignment.at_start((True, False)) is not alignment
    with pytest.raises(ValueError, match="one entry per member, 2, got 1"):
        alignment.at_start((True,))


def test_append_ids_at_the_start():
    """For caches that only grow: the ids that each member appends for the primary's first token."""
    alignment = VocabAlignment.from_tokenizers(
        [toy_tokenizers.sentencepiece(), toy_tokenizers.byte_level()], cache=False
    )
    sp, bl = (v.representatives() for v in alignment.vocabularies)
    start = alignment.at_start((True, False))
    assert start.append_ids([sp[b" the"]]) == [((sp[b" the"],), (bl[b"the"],))]
    assert start.append_ids([bl[b"the"]], primary=1) == [((sp[b" the"],), (bl[b"the"],))]


def test_the_start_is_kept_in_the_cache(tmp_path, caplog):
    tokenizers = [toy_tokenizers.sentencepiece(), toy_tokenizers.byte_level()]

    def start() -> VocabAlignment:
        return VocabAlignment.from_tokenizers(tokenizers, cache=tmp_path).at_start((True, False))

    built = start()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    [small] = [f for f in files if f.stat().st_size == min(f.stat().st_size for f in files)]
    with pytest.raises(ValueError, match="must be an alignment file, got one of the cache for the start state"):
        VocabAlignment.load(small)
    for damage in (False, True):
        if damage:
            small.write_bytes(small.read_bytes()[:-8])
        with caplog.at_level(logging.WARNING):
            found = start()
        for name in ("table", "class_ids", "eligible"):
            assert torch.equal(getattr(found, name), getattr(built, name))
        assert ("cached alignment is rebuilt" in caplog.text) == damage
    assert sorted(tmp_path.iterdir()) == files


# A step, by hand


def mistral_like(*pieces: str):
    """Ids: <unk>, </s>, the 256 byte pieces, ▁, then the pieces; a dummy prefix by its normalizer."""
    vocab = {"<unk>": 0, "</s>": 1, **{f"<0x{b:02X}>": 2 + b for b in range(256)}, "▁": 258}
    merges = []
    for piece in pieces:
        for n in range(1, len(piece) + 1):
            if piece[:n] not in vocab:
                vocab[piece[:n]] = len(vocab)
            if piece[n - 1] not in vocab:
                vocab[piece[n - 1]] = len(vocab)
            if n > 1 and (piece[: n - 1], piece[n - 1]) not in merges:
                merges.append((piece[: n - 1], piece[n - 1]))
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer


@pytest.fixture
def world():
    """Two members, the first at its start."""
    made = World(mistral_like("▁The", "4", "2"), byte_level("The", " The", "42"))
    made.plain = made.alignment
    made.alignment = made.alignment.at_start((True, False))
    return made


def test_what_begins_with_the_space_is_the_text_without_it(world):
    first, second = {"▁The": 3.0, "▁": 1.0}, {"The": 2.0, " The": 1.0}
    step = world.step(first, second, k=1)
    assert world.slots(step) == [world.ids("▁The", "The")]
    assert probs(step) == pytest.approx([1.0])
    # Read as inside a text they are two, and the first member's is the other one's ` The`.
    world.alignment = world.plain
    assert world.slots(world.step(first, second, k=1))[0] == world.ids("▁The", " The")


def test_a_space_alone_is_no_proposal_but_a_first_sub_token(world):
    """`42` is ▁ 4 2 there: what the member gives ▁ counts for it."""
    step = world.step({"▁": 5.0, "▁The": 3.0}, {"42": 2.0, "The": 1.0}, k=1)
    assert world.slots(step) == [world.ids("▁The", "The"), world.ids("▁", "42")]
    assert probs(step, 0) == pytest.approx(softmax(3.0, 5.0), abs=1e-6)
    assert step.winner.tolist() == [1]
    assert step.next_ids[0].tolist() == list(world.ids("▁", "42"))


def test_an_id_without_the_space_keeps_its_text_but_represents_nothing(world):
    """A member that proposes `4` all the same means 4; asked for 4, what it would write is ▁."""
    own = world.step({"4": 1.0}, {"The": 2.0}, k=1, rest=-9.0)
    assert world.slots(own) == [world.ids("4", "4"), world.ids("▁The", "The")]
    asked = world.step({"▁The": 1.0, "4": 0.5, "▁": 0.0}, {"4": 2.0}, k=1, rest=-9.0)
    assert world.slots(asked) == [world.ids("▁The", "The"), world.ids("▁", "4")]
    assert probs(asked, 0) == pytest.approx(softmax(1.0, 0.0), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_step_proposes_a_bare_space(data):
    """Whatever the logits: every slot is a text, and each member's id of it spells it or begins it."""
    alignment = VocabAlignment.from_tokenizers(
        [toy_tokenizers.sentencepiece(), toy_tokenizers.byte_level()], cache=True
    ).at_start((True, False))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    logits = [4 * torch.randn(3, size, generator=generator) for size in alignment.vocab_sizes]
    silent = alignment.vocabularies[0].silent
    logits[0][:, silent] += data.draw(st.sampled_from([0.0, 20.0]))
    primary = data.draw(st.integers(0, 1))
    options = {"k": data.draw(st.integers(1, 12)), "primary": primary}
    options |= data.draw(st.sampled_from([{}, {"duplicates": "drop"}, {"combine": "product"}, {"score": "probs"}]))
    step = unite_step(logits, alignment, **options)
    assert_same_step(step, reference.unite_step(logits, alignment, **options))
    assert_same_step(step_in_parts(step_parts, logits, alignment, **options), step)
    for row in range(3):
        texts = set()
        for ids in step.union_ids[row, : int(step.union_size[row])].tolist():
            spelled = [alignment.token_bytes(m, i) for m, i in enumerate(ids)]
            eos = [i in alignment.vocabularies[m].eos_token_ids for m, i in enumerate(ids)]
            whole = max(spelled, key=len)
            assert all(eos) or (whole and all(whole.startswith(text) for text in spelled))
            texts.add(whole)
        assert len(texts) == int(step.union_size[row])
