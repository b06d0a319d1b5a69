"""What a frontend reads off a step: EOS, the ids to append; and the two frontends of docs/backend.md side by side."""

from __future__ import annotations

import pickle
import random
import re
from pathlib import Path

import pytest
import torch
import toy_tokenizers
from toy_models import toy_model

from unite_ext import UniteEnsemble, VocabAlignment, reference, step_parts, unite_step
from unite_ext.testing import assert_same_step, make_logits, synthetic_alignment

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "backend.md").read_text()
FRONTENDS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[:2]
NAMES = ["Qwen/Qwen2-1.5B-Instruct", "HuggingFaceTB/SmolLM2-1.7B-Instruct"]
KINDS = ["byte_level", "byte_level_digits", "sentencepiece"]


@pytest.fixture(scope="module")
def alignment():
    return VocabAlignment.from_tokenizers([getattr(toy_tokenizers, kind)() for kind in KINDS])


# EOS


def steps_with_eos(primary: int):
    """Steps in which EOS wins about half of the rows, and the class of every winner."""
    alignment = synthetic_alignment((90, 80, 100))
    logits = make_logits(alignment, 40, seed=primary)
    eos = [v.eos_token_ids for v in alignment.vocabularies]
    assert [len(ids) > 0 for ids in eos] == [True, False, True]
    for row in range(0, 40, 2):
        for m, ids in enumerate(eos):
            if ids:  # now the one that represents EOS, now another
                logits[m][row, ids[row // 2 % len(ids)]] = 30.0
    logits[0][39] = -torch.inf
    keys = [step_parts.top_k_keys(x, alignment, m)[0] for m, x in enumerate(logits)]
    union = step_parts.unite_keys(torch.stack(keys, dim=1), alignment, primary=primary)
    step = reference.unite_step(logits, alignment, primary=primary)
    winners = union.slot_classes.gather(1, step.winner.clamp(min=0).long()[:, None])[:, 0]
    return alignment, logits, step, (winners == 0) & (step.winner >= 0)


@pytest.mark.parametrize("primary", [0, 1, 2])
def test_eos_is_told_whatever_the_primary_calls_it(primary):
    alignment, logits, step, expected = steps_with_eos(primary)
    assert expected[:39:2].all()
    assert not expected[39]
    assert step.is_eos(alignment).dtype == torch.bool
    assert torch.equal(step.is_eos(alignment), expected)
    if primary == 1:
        assert (step.next_ids[expected, 1] == -1).all()
    good = [x[:39] for x in logits]
    assert torch.equal(unite_step(good, alignment, primary=primary).is_eos(alignment), expected[:39])


def test_no_member_has_an_eos():
    alignment = VocabAlignment.from_tokenizers([toy_tokenizers.byte_level().backend_tokenizer], cache=False)
    assert alignment.eos_ids == (-1,)
    step = unite_step(make_logits(alignment, 3), alignment, k=4)
    assert step.is_eos(alignment).tolist() == [False] * 3


def test_eos_inside_a_compiled_step():
    alignment, logits, step, expected = steps_with_eos(1)

    @torch.compile(fullgraph=True, backend="aot_eager")  # one graph; test_step.py compiles this to the end
    def decide(*logits):
        step = unite_step(logits, alignment, primary=1)
        return step.next_ids, step.is_eos(alignment)

    ids, is_eos = decide(*(x[:39] for x in logits))
    assert torch.equal(ids, step.next_ids[:39])
    assert torch.equal(is_eos, expected[:39])


# Ids to append


@pytest.mark.parametrize("primary", range(3))
def test_every_id_of_the_primary(alignment, primary):
    ids = range(-1, alignment.vocabularies[primary].size)
    found = alignment.append_ids(ids, primary=primary)
    assert found[0] == ((), (), ())
    for i, appended in zip(ids[1:], found[1:]):
        data = alignment.token_bytes(primary, i)
        assert appended[primary] == ((i,) if data else ())
        for m, own in enumerate(appended):
            assert m == primary or list(own) == alignment.encode_continuation(m, data)
            assert b"".join(alignment.token_bytes(m, j) for j in own) == data
    assert alignment.append_ids(ids, primary=primary) == found  # now looked up
    assert alignment.append_ids(ids[::-1], primary=primary) == found[::-1]


@pytest.mark.parametrize("primary", range(3))
def test_any_ids_together_spell_the_text(alignment, primary):
    """Also where a token holds half a character."""
    rng = random.Random(primary)
    texts = [i for i, data in enumerate(alignment.vocabularies[primary].token_bytes) if data]
    for _ in range(50):
        ids = rng.choices(texts, k=12)
        text = b"".join(alignment.token_bytes(primary, i) for i in ids)
        for m, column in enumerate(zip(*alignment.append_ids(ids, primary=primary))):
            assert b"".join(alignment.token_bytes(m, i) for own in column for i in own) == text


def test_the_ids_of_a_step(alignment):
    logits = make_logits(alignment, 6, padding=0)
    for m, eos in enumerate(alignment.eos_ids):
        logits[m][4, eos] = 90.0
    step = unite_step(logits, alignment, primary=2)
    found = step.append_ids(alignment, primary=2)
    assert found == alignment.append_ids(step.next_ids[:, 2].tolist(), primary=2)
    assert found[4] == ((), (), ())
    assert step.is_eos(alignment).tolist() == [False] * 4 + [True, False]
    for row, appended in enumerate(found):
        for m, own in enumerate(appended):  # next_ids holds the first: of its own proposals another id of the same text
            if own and m != 2:
                first, said = (alignment.token_bytes(m, i) for i in (own[0], int(step.next_ids[row, m])))
                assert said.startswith(first) or first.startswith(said)
    failed = reference.unite_step([torch.full_like(x, -torch.inf) for x in logits], alignment)
    assert failed.append_ids(alignment) == [((), (), ())] * 6
    assert failed.is_eos(alignment).tolist() == [False] * 6


def test_what_was_looked_up_is_kept(monkeypatch):
    alignment = VocabAlignment.from_tokenizers([getattr(toy_tokenizers, kind)() for kind in KINDS])
    wanted = alignment.append_ids([70, 80, 70])
    monkeypatch.setattr(type(alignment.vocabularies[1]), "encode_continuation_batch", None)
    assert alignment.append_ids([80, 70]) == [wanted[1], wanted[0]]
    assert alignment.to("meta").append_ids([80]) == [wanted[1]]
    with pytest.raises(TypeError):
        alignment.append_ids([81])


def test_bad_ids_are_named(alignment, tmp_path):
    size = alignment.vocabularies[0].size
    with pytest.raises(ValueError, match=f"id.* 0 to {size - 1}.* got {size}"):
        alignment.append_ids([5, size])
    with pytest.raises(ValueError, match="got 3"):
        alignment.append_ids([5], primary=3)
    alignment.save(tmp_path / "file")
    with pytest.raises(ValueError, match="without tokenizers"):
        VocabAlignment.load(tmp_path / "file").append_ids([80])
    assert pickle.loads(pickle.dumps(alignment)).append_ids([80]) == alignment.append_ids([80])


def test_members_of_one_family_share_ids():
    tokenizers = [toy_tokenizers.byte_level()] * 2
    alignment = VocabAlignment.from_tokenizers(tokenizers)
    assert alignment.append_ids([70, alignment.eos_ids[0]]) == [((70,), (70,)), ((), ())]


# What docs/backend.md says of probabilities and versions


def test_log_probabilities_are_logits():
    alignment = synthetic_alignment((300, 400))
    logits = make_logits(alignment, 8, padding=0)
    step = unite_step(logits, alignment)
    assert_same_step(unite_step([x.softmax(dim=1).log() for x in logits], alignment), step, atol=1e-5)


def test_versions_are_those_of_the_package():
    said = " ".join(PAGE.split())
    project = (ROOT / "pyproject.toml").read_text()
    [python] = re.findall(r'requires-python = ">=([\d.]+)"', project)
    assert f"Python {python} and newer" in said
    for name in ("torch", "tokenizers", "transformers"):
        [version] = re.findall(rf'^  "{name}>=([\d.]+)[",]', project, re.MULTILINE)
        assert f"{name} {version} and newer" in said


# The frontends of docs/backend.md


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two small models that share a tokenizer with the first, and one that does not."""
    found = {}
    kinds = {"b": "byte_level", "c": "byte_level_digits", "d": "sentencepiece"}
    for name, kind, tokenizer in [("a", "llama", "byte_level"), *((n, "mistral", t) for n, t in kinds.items())]:
        folder = tmp_path_factory.mktemp(name)
        tokenizer = getattr(toy_tokenizers, tokenizer)()
        toy_model(kind, tokenizer, seed=ord(name)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found[name] = str(folder)
    return found


def run(block: str, names: list[str], prompt: str) -> dict:
    for name, folder in zip(NAMES, names):
        block = block.replace(name, folder)
    namespace: dict = {"__name__": "document"}
    exec(compile(block.replace("The capital of France is", prompt), "document", "exec"), namespace)
    return namespace


PROMPTS = ["The capital of France is", "James", "2024 was"]


def test_appending_gives_the_text_while_tokenizations_agree(folders, capsys):
    whole = 0
    for pair in ("ab", "ac", "ad", "da"):
        for prompt in PROMPTS:
            exact, growing = (run(block, [folders[name] for name in pair], prompt) for block in FRONTENDS)
            alignment, ids = growing["alignment"], growing["contexts"][0]
            assert b"".join(alignment.token_bytes(1, i) for i in growing["contexts"][1]) == growing["text"]
            # How many choices were made after contexts that are those of the text tokenized again
            text, context, agreed = b"", [], 0
            for appended in [*alignment.append_ids(ids), ((), ())]:
                if context != alignment.encode_continuation(1, text):
                    break
                agreed += 1
                context += appended[1]
                text += b"".join(alignment.token_bytes(0, i) for i in appended[0])
            assert agreed >= 1
            assert exact["ids"][:agreed] == ids[:agreed]
            if agreed > len(ids):
                assert exact["text"] == growing["text"]
                whole += 1
    assert 0 < whole < 12  # both kinds were seen


@pytest.mark.parametrize("prompt", PROMPTS)
def test_appending_is_the_decode_loop_within_a_family(folders, prompt, capsys):
    growing = run(FRONTENDS[1], [folders["a"], folders["b"]], prompt)
    ensemble = UniteEnsemble(growing["models"], growing["tokenizers"], k=10)
    assert ensemble.generate(prompt, max_new_tokens=16) == growing["text"].decode("utf-8", "replace")
