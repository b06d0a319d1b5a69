"""VocabAlignment: classes, the id of every class, the hash map, eligibility bits, and bad input."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
import toy_tokenizers as toys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from unite_ext._core import EOS_CLASS, FIRST_SUB_TOKEN, ID_BITS, ID_MASK, MAX_PROBES
from unite_ext.vocab.alignment import VocabAlignment


def align(*makes, **options) -> VocabAlignment:
    return VocabAlignment.from_tokenizers([m() for m in makes], cache=False, **options)


def tiny(pieces: list[str], merges: list[tuple[str, str]] = (), eos: bool = True) -> Tokenizer:
    """A byte-level tokenizer with these pieces, then ``</s>``."""
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, list(merges)))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if eos:
        tokenizer.add_special_tokens(["</s>"])
    return tokenizer


MIXES = [
    (toys.byte_level,),
    (toys.byte_level, toys.byte_level_digits),
    (toys.byte_level, toys.sentencepiece, toys.gemma),
    (toys.unigram, toys.wordpiece, toys.byte_level, toys.sentencepiece_metaspace),
    (toys.byte_level, toys.byte_level_digits, toys.sentencepiece, toys.sentencepiece_metaspace, toys.gemma,
     toys.unigram, toys.wordpiece, toys.byte_level),
]  # fmt: skip
mixes = pytest.mark.parametrize("mix", MIXES, ids=lambda m: f"{len(m)} members")


def test_a_worked_table():
    """Two members by hand: every class, its order, its ids."""
    first = tiny(["a", "b", "ab", "Ġ"], [("a", "b")])  # </s> is 4
    second = tiny(["b", "a", "c", "Ġ", "ca"], [("c", "a")])  # </s> is 5
    alignment = VocabAlignment.from_tokenizers([first, second], eos_token_ids=[[4], [5]], cache=False)
    sub = FIRST_SUB_TOKEN
    # classes: EOS, then a b ab ' ' from the first, then c ca from the second
    assert alignment.class_ids.tolist() == [[4, 5], [0, 1], [1, 0], [2, 1 | sub], [3, 3], [-1, 2], [-1, 4]]
    assert [c.tolist() for c in alignment.classes] == [[1, 2, 3, 4, 0], [2, 1, 5, 4, 6, 0]]
    assert alignment.eos_ids == (4, 5)
    assert alignment.vocab_sizes == (5, 6)
    assert alignment.class_of(0, 2) == 3
    assert alignment.class_of(1, 5) == EOS_CLASS
    assert alignment.class_of(1, 6) == alignment.class_of(1, -1) == -1
    assert alignment.token_bytes(1, 4) == b"ca"
    assert alignment.encode_continuation(0, b"abba") == [2, 1, 0]


def test_the_lowest_id_represents_the_class():
    tokenizer = Tokenizer.from_str(toys.byte_level().backend_tokenizer.to_str())
    word = tokenizer.token_to_id("ĠJames")
    tokenizer.add_tokens([" James"])
    alignment = VocabAlignment.from_tokenizers([tokenizer], cache=False)
    c = alignment.class_of(0, tokenizer.token_to_id(" James"))
    assert c == alignment.class_of(0, word)
    assert alignment.class_ids[c].tolist() == [word]


def test_member_without_eos():
    alignment = VocabAlignment.from_tokenizers(
        [tiny(["a"]), tiny(["a"], eos=False)], eos_token_ids=[[1], None], cache=False
    )
    assert alignment.class_ids[EOS_CLASS].tolist() == [1, -1]
    assert alignment.eos_ids == (1, -1)


def test_several_eos_ids_share_the_class():
    tokenizer = toys.byte_level()
    eos, eot = tokenizer.convert_tokens_to_ids(["<|eos|>", "<|eot|>"])
    alignment = VocabAlignment.from_tokenizers([tokenizer, toys.gemma()], eos_token_ids=[[eos, eot], None], cache=False)
    assert alignment.class_of(0, eos) == alignment.class_of(0, eot) == EOS_CLASS
    assert alignment.class_ids[EOS_CLASS].tolist() == [eot, toys.gemma().eos_token_id]


@mixes
def test_every_class_has_the_right_id_in_every_member(mix):
    """Against the definition, member by member: representative, else first sub-token, else none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alignment = align(*mix)
        spelled: list[bytes] = [b""] * alignment.num_classes
        for m in range(alignment.num_members):
            for i in range(alignment.vocabularies[m].size):
                if alignment.class_of(m, i) > EOS_CLASS:
                    spelled[alignment.class_of(m, i)] = alignment.token_bytes(m, i)
        assert len(set(spelled)) == alignment.num_classes
        for m, vocabulary in enumerate(alignment.vocabularies):
            representatives = vocabulary.representatives()
            for c in range(1, alignment.num_classes):
                tagged = int(alignment.class_ids[c, m])
                if spelled[c] in representatives:
                    assert tagged == representatives[spelled[c]]
                    continue
                ids = vocabulary.encode_continuation(spelled[c])
                can = b"".join(vocabulary.token_bytes[i] for i in ids) == spelled[c]
                assert tagged == (ids[0] | FIRST_SUB_TOKEN if can else -1)
            if vocabulary.kind == "byte-level":
                assert (alignment.class_ids[1:, m] >= 0).all()


@mixes
def test_classes_are_numbered_in_order_of_appearance(mix):
    alignment = align(*mix)
    seen = 0
    for classes in alignment.classes:
        assert classes.dtype == torch.int32
        for c in classes.tolist():
            assert c <= seen + 1
            seen = max(seen, c)
    assert seen == alignment.num_classes - 1


@mixes
def test_the_table_holds_every_eligible_id_and_nothing_else(mix):
    alignment = align(*mix)
    table, log2 = alignment.table, alignment.log2_capacity
    assert table.shape == (1 << log2, 4)
    assert table.dtype == torch.int32
    entries = table.tolist()
    held = {e[0] for e in entries if e[0] != -1}
    wanted = {}
    for m, vocabulary in enumerate(alignment.vocabularies):
        for i in np.flatnonzero(vocabulary.eligible).tolist():
            key = np.int64(m << ID_BITS | i).astype(np.int32).item()
            wanted[key] = (m, i)
    assert held == set(wanted)
    assert 2 * len(wanted) <= len(entries)
    for key, (m, i) in wanted.items():
        slot = (key * 0x9E3779B1 & 0xFFFFFFFF) >> (32 - log2)
        for _ in range(MAX_PROBES):
            if entries[slot][0] == key:
                break
            assert entries[slot][0] != -1, "an empty entry ends the search"
            slot = (slot + 1) % len(entries)
        assert entries[slot][0] == key
        cls = alignment.class_of(m, i)
        others = [int(alignment.class_ids[cls, o]) for o in range(alignment.num_members) if o != m]
        others = ([*others, -1, -1] if alignment.num_members <= 3 else [-1, -1])[:2]
        assert entries[slot][1:] == [cls, *others]


def test_the_table_grows_until_probes_are_short():
    """Ids whose hashes collide on purpose: the load bound alone would leave a chain longer than the bound."""
    log2, wanted = 8, []
    for i in range(1 << 16):
        if (i * 0x9E3779B1 & 0xFFFFFFFF) >> (32 - log2) == 3:
            wanted.append(i)
        if len(wanted) == 100:
            break
    classes = np.full(max(wanted) + 1, -1, np.int32)
    classes[wanted] = np.arange(1, 101)
    from unite_ext.vocab.classes import build_table

    _, grown = build_table([classes], np.full((101, 1), -1, np.int32))
    assert grown > log2


@mixes
def test_eligibility_bits(mix):
    alignment = align(*mix)
    words = alignment.eligible.numpy().view(np.uint32)
    ends = [*alignment.eligible_offsets[1:], len(words)]
    assert alignment.eligible.dtype == torch.int32
    for vocabulary, start, end in zip(alignment.vocabularies, alignment.eligible_offsets, ends):
        bits = [(int(words[start + i // 32]) >> (i % 32)) & 1 for i in range(vocabulary.size)]
        assert bits == vocabulary.eligible.astype(int).tolist()
        used = -(-vocabulary.size // 32)
        assert start % 16 == end % 16 == 0
        assert end - start - used >= 16
        assert not words[start + used : end].any()
    assert alignment.vocab_sizes == tuple(v.highest_eligible_id + 1 for v in alignment.vocabularies)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_of": []}, "class_of must hold 1 to 8 members, got 0"),
        ({"class_of": [np.array([2], np.int32)]}, "class_of must name rows of class_ids, got class 2 of id 0"),
        ({"class_of": [np.array([-2], np.int32)]}, "class_of must name rows of class_ids, got class -2 of id 0"),
        ({"class_of": [np.zeros((1, 1), np.int32)]}, "class_of must have one dimension"),
        ({"class_ids": np.zeros((2, 2), np.int32)}, "class_ids must be"),
        ({"log2_capacity": 5}, "table must be"),
        ({"table": np.zeros((16, 3), np.int32)}, "table must be"),
    ],
)
def test_the_host_module_checks_its_arguments(changes, message):
    from unite_ext import _host

    good = {
        "class_of": [np.array([0, 1, -1], np.int32)],
        "class_ids": np.zeros((2, 1), np.int32),
        "table": np.zeros((16, 4), np.int32),
        "log2_capacity": 4,
    }
    assert _host.fill_table(**good)
    with pytest.raises(ValueError, match=message):
        _host.fill_table(**{**good, **changes})


def test_members_with_one_tokenizer_are_read_once():
    alignment = align(toys.byte_level, toys.gemma, toys.byte_level)
    assert alignment.vocabularies[0] is alignment.vocabularies[2]
    assert torch.equal(alignment.class_ids[:, 0], alignment.class_ids[:, 2])


def test_the_same_tokenizers_give_the_same_alignment():
    one, two = align(*MIXES[2]), align(*MIXES[2])
    assert torch.equal(one.table, two.table)
    assert torch.equal(one.class_ids, two.class_ids)
    assert one.fingerprints == two.fingerprints == tuple(v.fingerprint for v in one.vocabularies)


def test_sub_token_of_an_eos_id_is_none():
    """Where the first sub-token is an ordinary id that ends the text, the slot has no id."""
    plain = tiny(["a", "b", "Ġ"])
    other = tiny(["a", "b", "ab"], [("a", "b")])
    alignment = VocabAlignment.from_tokenizers([plain, other], eos_token_ids=[[0], [3]], cache=False)
    c = alignment.class_of(1, 2)
    assert alignment.class_ids[c].tolist() == [-1, 2]


def test_lossy_members_take_the_folded_token():
    alignment = align(toys.byte_level, toys.wordpiece_lowercase, lossy=True)
    token = toys.byte_level().convert_tokens_to_ids("ĠJames")
    tagged = int(alignment.class_ids[alignment.class_of(0, token), 1])
    assert tagged == toys.wordpiece_lowercase().convert_tokens_to_ids("james") | FIRST_SUB_TOKEN
    with pytest.raises(ValueError, match=r"tokenizers\[1\] must .*pass lossy=True"):
        align(toys.byte_level, toys.wordpiece_lowercase)


def test_to_device():
    alignment = align(*MIXES[1])
    assert alignment.to("cpu") is alignment
    assert alignment.classes is alignment.classes
    moved = alignment.to("meta")
    assert moved.device.type == moved.class_ids.device.type == moved.eligible.device.type == "meta"
    assert moved.classes[0].device.type == "meta"
    assert alignment.device.type == alignment.classes[0].device.type == "cpu"
    assert moved.encode_continuation(0, b" James") == alignment.encode_continuation(0, b" James")


def test_pickle():
    alignment = align(*MIXES[1])
    copy = pickle.loads(pickle.dumps(alignment))
    assert torch.equal(copy.table, alignment.table)
    assert copy.encode_continuation(1, b" James \xff") == alignment.encode_continuation(1, b" James \xff")


def test_repr():
    text = repr(align(*MIXES[2]))
    assert "3 members: byte-level with 562 of 564 ids, sentencepiece" in text
    assert "on cpu" in text


def test_progress_bar(capsys):
    align(*MIXES[1], progress=True)
    assert "Aligning vocabularies: 100%" in capsys.readouterr().err
    align(*MIXES[1], progress=False)
    align(*MIXES[1])  # no terminal
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (lambda: [], {}, ValueError, r"tokenizers must be 1 to 8 tokenizers, got 0"),
        (lambda: [toys.byte_level()] * 9, {}, ValueError, r"tokenizers must be 1 to 8 tokenizers, got 9"),
        (toys.byte_level, {}, TypeError, r"tokenizers must be a list of tokenizers, got "),
        (lambda: [toys.byte_level(), "gpt2"], {}, TypeError, r"tokenizers\[1\] must be a fast .* got str"),
        (lambda: [toys.byte_level()], {"eos_token_ids": [[1], [2]]}, ValueError, r"eos_token_ids must .* 1, got 2"),
        (lambda: [toys.byte_level()], {"eos_token_ids": 3}, TypeError, r"eos_token_ids must .* got int"),
        (
            lambda: [toys.byte_level()],
            {"eos_token_ids": [[-7]]},
            ValueError,
            r"tokenizers\[0\]: eos_token_ids must .*-7",
        ),
    ],
)
def test_bad_input(make, options, error, message):
    with pytest.raises(error, match=message):
        VocabAlignment.from_tokenizers(make(), cache=False, **options)


def test_bad_member_and_id():
    alignment = align(*MIXES[1])
    with pytest.raises(ValueError, match="member must be from 0 to 1, got 2"):
        alignment.encode_continuation(2, b"")
    with pytest.raises(ValueError, match="member must be from 0 to 1, got -1"):
        alignment.class_of(-1, 0)
    with pytest.raises(ValueError, match="id must be an id of member 0, 0 to 563, got 564"):
        alignment.token_bytes(0, 564)


def test_tagged_ids_round_trip():
    ids = align(*MIXES[3]).class_ids
    assert int((ids & ID_MASK)[ids >= 0].max()) < 1000
    assert bool(((ids == -1) | (ids < 2 * FIRST_SUB_TOKEN)).all())
