"""Every rule of a step, as worked examples: small vocabularies, a few logits, the slots and probabilities by hand.

Each example runs through the reference and the kernel.
"""

from __future__ import annotations

import math

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from unite_ext import VocabAlignment, reference, unite_step

SURFACE = bytes_to_unicode()
INF = math.inf


def byte_level(*words: str, eos: tuple[str, ...] = ("<eos>",)):
    """Ids 0 to 255 are the bytes; then come the words with all their prefixes; then the special tokens."""
    vocab = {SURFACE[b]: b for b in range(256)}
    merges = []
    for word in words:
        piece, *rest = (SURFACE[b] for b in word.encode())
        for char in rest:
            if piece + char not in vocab:
                vocab[piece + char] = len(vocab)
                merges.append((piece, char))
            piece += char
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*eos, "<pad>"])
    return tokenizer


def sentencepiece(*pieces: str):
    """Ids: <unk>, </s>, the 256 byte pieces, then the pieces, given with ▁ for a space; no merges."""
    vocab = {"<unk>": 0, "</s>": 1, **{f"<0x{b:02X}>": 2 + b for b in range(256)}}
    for piece in pieces:
        vocab[piece] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer


def gemma_like():
    """Like Gemma, where a newline is a piece and a byte: the 256 bytes, then the pieces, the newline among them."""
    pieces = ["<unk>", "<eos>", "\n", *(f"<0x{b:02X}>" for b in range(256)), "▁the"]
    tokenizer = Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<eos>"])
    return tokenizer


class World:
    """Members by name of token: logits in, slots and probabilities out."""

    def __init__(self, *tokenizers, eos_token_ids=None):
        self.tokenizers = tokenizers
        self.alignment = VocabAlignment.from_tokenizers(
            list(tokenizers), eos_token_ids=eos_token_ids, cache=False, progress=False
        )

    def id(self, member: int, token: str | bytes | int) -> int:
        if isinstance(token, int):
            return token
        surface = token
        if self.alignment.vocabularies[member].kind == "byte-level" and not token.startswith("<"):
            surface = "".join(SURFACE[b] for b in token.encode())
        found = self.tokenizers[member].token_to_id(surface)
        assert found is not None, token
        return found

    def logits(self, member: int, values: dict, rest: float = -INF) -> torch.Tensor:
        row = torch.full((1, self.tokenizers[member].get_vocab_size()), rest)
        for token, value in values.items():
            row[0, self.id(member, token)] = value
        return row

    def step(self, *values: dict, rest: float = -INF, include=None, **options):
        logits = [self.logits(m, v, rest) for m, v in enumerate(values)]
        if include is not None:
            options["include"] = torch.tensor([self.id(options.get("primary", 0), include)])
        result = unite_step(logits, self.alignment, **options)
        expected = reference.unite_step(logits, self.alignment, **options)
        for got, wanted in zip(result, expected):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
        return result

    def slots(self, result) -> list[tuple]:
        ids = result.union_ids[0, : int(result.union_size[0])]
        return [tuple(row) for row in ids.tolist()]

    def ids(self, *tokens) -> tuple:
        return tuple(-1 if t is None else self.id(m, t) for m, t in enumerate(tokens))


def softmax(*values: float) -> list[float]:
    exps = [math.exp(v) for v in values]
    return [e / sum(exps) for e in exps]


def probs(result, member=None) -> list[float]:
    size = int(result.union_size[0])
    return (result.union_probs[0] if member is None else result.member_probs[0, :, member])[:size].tolist()


def test_james_and_jam():
    """Rules 1 to 3 of the fill: own proposal, same text elsewhere in the vocabulary, first sub-token."""
    world = World(byte_level("James", "Jam", " the"), byte_level("Jam", " the"))
    step = world.step({"James": 3.0, " the": 2.0, "Jam": 0.5}, {"Jam": 4.0, " the": 1.0, "J": -3.0}, k=2)
    # Walk: James, " the" from the primary, then Jam from the other; " the" is already there. The other cannot say
    # James in one token: its continuation "James" starts with its token Jam. Both slots then hold Jam's logit.
    assert world.slots(step) == [
        world.ids("James", "Jam"),
        world.ids(" the", " the"),
        world.ids("Jam", "Jam"),
    ]
    first, second = softmax(3.0, 2.0, 0.5), softmax(4.0, 1.0, 4.0)
    assert probs(step, 0) == pytest.approx(first, abs=1e-6)
    assert probs(step, 1) == pytest.approx(second, abs=1e-6)
    assert probs(step) == pytest.approx([(a + b) / 2 for a, b in zip(first, second)], abs=1e-6)
    assert step.winner.tolist() == [0]
    assert step.next_ids[0].tolist() == list(world.ids("James", "Jam"))


def test_primary_leads_the_walk_and_keeps_the_members_columns():
    world = World(byte_level("no"), byte_level("yes"), byte_level("maybe"))
    step = world.step({"no": 1.0}, {"yes": 1.0}, {"maybe": 1.0}, k=1, primary=2)
    texts = [
        world.alignment.token_bytes(2 if i == 0 else i - 1, row[2 if i == 0 else i - 1])
        for i, row in enumerate(world.slots(step))
    ]
    assert texts == [b"maybe", b"no", b"yes"]


@pytest.mark.parametrize(
    ("duplicates", "scores"),
    [("repeat", [4.0, 1.0, 4.0]), ("drop", [-INF, 1.0, 4.0])],
)
def test_two_slots_on_one_id(duplicates, scores):
    world = World(byte_level("James", "Jam", " the"), byte_level("Jam", " the"))
    step = world.step({"James": 3.0, " the": 2.0, "Jam": 0.5}, {"Jam": 4.0, " the": 1.0}, k=3, duplicates=duplicates)
    assert world.slots(step)[:3] == [world.ids("James", "Jam"), world.ids(" the", " the"), world.ids("Jam", "Jam")]
    assert probs(step, 1)[:3] == pytest.approx(softmax(*scores), abs=1e-6)


def test_dropping_keeps_the_first_of_mere_sub_tokens():
    world = World(byte_level("Xa", "Xb"), byte_level("Y"))
    step = world.step({"Xa": 1.0, "Xb": 0.5}, {"Y": 1.0, "X": 0.0}, k=2, duplicates="drop")
    # The other member begins both Xa and Xb with X; X itself is its own second proposal and keeps its id.
    assert probs(step, 1) == pytest.approx(softmax(-INF, -INF, 1.0, 0.0), abs=1e-6)
    # Not proposed, X has no slot of its own: the first of the two keeps it.
    step = world.step({"Xa": 1.0, "Xb": 0.5}, {"Y": 1.0, "X": 0.0, "Z": 0.5}, k=2, duplicates="drop")
    assert probs(step, 1) == pytest.approx(softmax(0.0, -INF, 1.0, 0.5), abs=1e-6)


def test_newline_space_and_accents_are_compared_by_bytes():
    """Surface strings differ (Ċ, <0x0A>; ▁, Ġ; Ã©, é), the bytes do not."""
    world = World(byte_level(" é", "\n"), sentencepiece("▁é", "▁"))
    step = world.step({" é": 2.0, "\n": 1.0, " ": 0.0}, {"▁é": 0.0, "<0x0A>": 1.0, "▁": 2.0}, k=3)
    assert world.slots(step) == [world.ids(" é", "▁é"), world.ids("\n", "<0x0A>"), world.ids(" ", "▁")]
    assert probs(step) == pytest.approx([(a + b) / 2 for a, b in zip(softmax(2, 1, 0), softmax(0, 1, 2))], abs=1e-6)
    assert step.winner.tolist() == [0], "slots 0 and 2 tie exactly; the lower index wins"


def test_byte_fallback_spells_what_the_vocabulary_lacks():
    world = World(byte_level("中"), sentencepiece("▁the"))
    step = world.step({"中": 1.0}, {"▁the": 1.0}, k=1)
    assert world.slots(step)[0] == world.ids("中", "<0xE4>"), "the first byte of E4 B8 AD"


def test_duplicate_bytes_take_the_highest_ranked_id_then_the_normal_piece():
    world = World(byte_level(), sentencepiece("a"))
    # Both of the second member's ids for "a" are proposed: one slot, with the better ranked.
    step = world.step({"a": 1.0}, {"<0x61>": 3.0, "a": 2.0}, k=2)
    assert world.slots(step) == [world.ids("a", "<0x61>")]
    # Not proposed: the normal piece represents the class, whatever the byte piece's logit.
    step = world.step({"a": 1.0}, {"<0x62>": 9.0, "a": 2.0, "<0x61>": 3.0}, k=1)
    assert world.slots(step) == [world.ids("a", "a"), world.ids("b", "<0x62>")]


@pytest.mark.parametrize(("score", "newline"), [("logits", math.log(6)), ("probs", 6 / 8)])
def test_ids_of_one_text_count_together(score, newline):
    """Gemma's two newlines: a piece and a byte. What the member gives to the text is the sum over both."""
    world = World(byte_level("\n", " the"), gemma_like())
    # exp(logit): newline as a piece 2, as a byte 4, " the" 2. The byte ranks higher, so its id stands for the text.
    theirs = {"\n": math.log(2), "<0x0A>": math.log(4), "▁the": math.log(2)}
    step = world.step({"\n": 0.0, " the": 0.0}, theirs, k=3, score=score)
    assert world.slots(step) == [world.ids("\n", "<0x0A>"), world.ids(" the", "▁the")]
    other = math.log(2) if score == "logits" else 2 / 8
    assert probs(step, 1) == pytest.approx(softmax(newline, other), abs=1e-6)
    assert step.winner.tolist() == [0]
    # Only ids in the member's own top-k are summed: at k = 1 the piece does not count.
    step = world.step({"\n": 0.0}, theirs, k=1, score=score)
    assert probs(step, 1) == [1.0]
    step = world.step({" the": 0.0}, theirs, k=1, score=score)
    assert world.slots(step) == [world.ids(" the", "▁the"), world.ids("\n", "<0x0A>")]
    only_byte = math.log(4) if score == "logits" else 4 / 8
    assert probs(step, 1) == pytest.approx(softmax(other, only_byte), abs=1e-6)


def test_ids_of_one_text_win_together_what_each_would_lose():
    world = World(byte_level("\n", " the"), gemma_like())
    theirs = {"\n": math.log(3), "<0x0A>": math.log(3), "▁the": math.log(4)}
    step = world.step({"\n": 0.0, " the": 0.0}, theirs, k=3)
    assert world.slots(step) == [world.ids("\n", "\n"), world.ids(" the", "▁the")], "equal logits: the lower id"
    assert probs(step, 1) == pytest.approx([0.6, 0.4], abs=1e-6)
    assert step.next_ids[0].tolist() == list(world.ids("\n", "\n"))


def test_a_text_that_begins_with_a_summed_one_keeps_the_logit_of_its_first_sub_token():
    world = World(byte_level("\n", "\nX"), gemma_like())
    theirs = {"\n": math.log(3), "<0x0A>": math.log(3)}
    for duplicates, second in (("repeat", math.log(3)), ("drop", -INF)):
        step = world.step({"\n": 0.0, "\nX": -1.0}, theirs, k=2, duplicates=duplicates)
        assert world.slots(step) == [world.ids("\n", "\n"), world.ids("\nX", "\n")]
        assert probs(step, 1) == pytest.approx(softmax(math.log(6), second), abs=1e-6)


def test_eos_is_one_class_whatever_its_ids():
    first = byte_level("x", eos=("<eos>", "<end_of_turn>"))
    second = byte_level("y", eos=("</s>",))
    world = World(first, second, eos_token_ids=[[256, 257], [256]])
    step = world.step({"<end_of_turn>": 2.0, "<eos>": 1.0, "x": 0.0}, {"</s>": 1.0, "y": 0.0}, k=2)
    # The first member's two ids are one slot, with the better ranked; the other's EOS is not its text "</s>".
    assert world.slots(step)[0] == (257, 256)
    assert step.winner.tolist() == [0]
    assert probs(step, 0) == pytest.approx([1.0, 0.0], abs=1e-6)
    step = world.step({"<end_of_turn>": 2.0, "<eos>": 1.0, "x": 0.0}, {"</s>": 1.0, "y": 0.0}, k=3)
    first = math.log(math.exp(2.0) + math.exp(1.0))
    assert probs(step, 0)[:2] == pytest.approx(softmax(first, 0.0, -INF)[:2], abs=1e-6)
    step = world.step({"x": 2.0}, {"</s>": 3.0}, k=1)
    assert world.slots(step)[1] == (256, 256), "without a proposal, the tokenizer's own or lowest EOS id stands in"


def test_special_tokens_never_enter():
    world = World(byte_level("x"), byte_level("x"))
    step = world.step({"<pad>": 99.0, "x": 1.0}, {"<pad>": 99.0, "x": 1.0}, k=5)
    assert world.slots(step) == [world.ids("x", "x")]


def test_member_without_eos_has_no_id_for_it():
    world = World(byte_level("x", eos=()), byte_level("y"), eos_token_ids=[None, [257 - 1]])
    step = world.step({"x": 0.0}, {"<eos>": 5.0, "x": 1.0}, k=1)
    assert world.slots(step) == [world.ids("x", "x"), (-1, 256)]
    assert probs(step, 0) == pytest.approx([1.0, 0.0])
    # EOS wins although the primary has no id for it.
    step = world.step({"x": 0.0}, {"<eos>": 5.0, "x": 1.0}, k=1, weights=[0.1, 0.9])
    assert step.winner.tolist() == [1]
    assert step.next_ids.tolist() == [[-1, 256]]


def test_score_probs_is_the_softmax_of_probabilities():
    world = World(byte_level("yes", "no"), byte_level("yes", "no"))
    step = world.step({"yes": 2.0, "no": 1.0, "q": 0.0}, {"yes": 0.5, "no": 3.0, "q": 0.0}, k=2, score="probs")
    first, second = softmax(2, 1, 0), softmax(0.5, 3, 0)  # over all that is eligible, "q" included
    assert world.slots(step) == [world.ids("yes", "yes"), world.ids("no", "no")]
    assert probs(step, 0) == pytest.approx(softmax(*first[:2]), abs=1e-6)
    assert probs(step, 1) == pytest.approx(softmax(*second[:2]), abs=1e-6)


def test_include_opens_its_slot_last():
    world = World(byte_level("James", "Jam"), byte_level("Jam"))
    step = world.step({"Jam": 1.0, "James": -2.0}, {"Jam": 0.0}, k=1, include="James")
    assert step.union_ids.shape == (1, 3, 2)
    assert world.slots(step) == [world.ids("Jam", "Jam"), world.ids("James", "Jam")]
    assert probs(step, 0) == pytest.approx(softmax(1.0, -2.0), abs=1e-6)
    # Already proposed: nothing is added.
    step = world.step({"Jam": 1.0, "James": -2.0}, {"Jam": 0.0}, k=1, include="Jam")
    assert world.slots(step) == [world.ids("Jam", "Jam")]


def test_weights_average_the_members():
    world = World(byte_level("a", "b"), byte_level("a", "b"))
    step = world.step({"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, k=2, weights=[1, 3])
    high, low = softmax(1.0, 0.0)
    assert probs(step) == pytest.approx([(high + 3 * low) / 4, (low + 3 * high) / 4], abs=1e-6)
    assert step.winner.tolist() == [1]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({"a": 1.0, "b": 1.0, "c": 1.0}, ["a", "b"], id="ties go to the lower id"),
        pytest.param({"c": INF, "a": 1.0}, ["c", "a"], id="+inf is the largest finite value"),
        pytest.param({"b": INF, "a": torch.finfo(torch.float32).max}, ["a", "b"], id="+inf ties with it"),
        pytest.param({"a": math.nan, "b": 0.0, "c": -1.0}, ["b", "c"], id="NaN counts as -inf"),
        pytest.param({"a": -0.0, "b": 0.0}, ["a", "b"], id="-0 equals 0"),
        pytest.param({"a": 0.0}, ["a"], id="-inf is never taken, a member can bring fewer than k"),
    ],
)
def test_order_of_proposals(values, expected):
    world = World(byte_level())
    step = world.step(values, k=2)
    assert world.slots(step) == [world.ids(token) for token in expected]


def test_a_row_without_logits_names_member_and_row():
    world = World(byte_level(), byte_level())
    good, bad = world.logits(0, {"a": 1.0}), world.logits(1, {"<pad>": 7.0})
    logits = [good.repeat(3, 1), torch.cat([good, bad, good])]
    with pytest.raises(ValueError, match=r"logits\[1\] has no eligible logit above -inf in row 1"):
        unite_step(logits, world.alignment)
    step = reference.unite_step(logits, world.alignment)
    assert step.status.tolist() == [0, 2, 0]
    assert step.next_ids.tolist() == [[97, 97], [-1, -1], [97, 97]]


def test_added_tokens_are_text():
    first = byte_level()
    first.add_tokens([AddedToken("<tool>", normalized=False)])
    world = World(first, byte_level())
    step = world.step({"<tool>": 1.0}, {"x": 1.0}, k=1)
    assert world.slots(step)[0] == (world.id(0, "<tool>"), ord("<"))
