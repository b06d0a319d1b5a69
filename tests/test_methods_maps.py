"""The maps of `mined` and `eva`: the fast searches give the results of the plain ones, and maps are cached."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import toy_tokenizers

from unite_ext import VocabAlignment
from unite_ext.methods import cosine, edit_distance, map_files
from unite_ext.methods.cosine import nearest_vectors
from unite_ext.methods.edit_distance import nearest_texts
from unite_ext.methods.eva import EVA
from unite_ext.methods.mined import MinED
from unite_ext.options import StepOptions

rapidfuzz = pytest.importorskip("rapidfuzz", reason="rapidfuzz is not installed: pip install 'unite_ext[eval]'")

STEP = StepOptions()


def plain_texts(queries, targets):
    """The definition: all distances, the first of the smallest."""
    from rapidfuzz.distance import Levenshtein

    return [min(range(len(targets)), key=lambda i: (Levenshtein.distance(q, targets[i]), i)) for q in queries]


def plain_vectors(queries, targets):
    """The definition in float64: all cosines, the first of the largest."""
    return (queries.double() @ targets.double().T).argmax(dim=1)


@pytest.mark.parametrize("alphabet", ["ab", " etaoinsrhl", "день the 天安门\udce4é", "abcdefghijklmnopqrstuvwxyz"])
@pytest.mark.parametrize(("seeds", "group"), [(1, 3), (8, 16), (1024, 128)])
def test_nearest_texts_are_the_plain_ones(monkeypatch, alphabet, seeds, group):
    monkeypatch.setattr(edit_distance, "_SEEDS", seeds)
    monkeypatch.setattr(edit_distance, "_GROUP", group)
    monkeypatch.setattr(edit_distance, "_PAIRS", 500)
    draw = random.Random(seeds)

    def texts(count, shortest, longest):
        return ["".join(draw.choices(alphabet, k=draw.randint(shortest, longest))) for _ in range(count)]

    for shortest, longest in ((0, 4), (1, 9), (5, 40)):
        targets, queries = texts(150, shortest, longest), texts(200, 0, longest)
        assert nearest_texts(queries, targets).tolist() == plain_texts(queries, targets)
    far = texts(20, 30, 60)
    assert nearest_texts(far, ["", "a"]).tolist() == plain_texts(far, ["", "a"])


def test_nearest_texts_at_the_edges():
    assert nearest_texts([], ["a"]).tolist() == []
    assert nearest_texts(["abc", "", "abc"], ["abd", "ab", "xbc"]).tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="targets must hold at least one text, got none"):
        nearest_texts(["a"], [])


@pytest.mark.parametrize(("first", "second"), [("llama-3", "mistral-7b-v0.3"), ("mistral-7b-v0.3", "llama-3")])
def test_nearest_texts_of_real_vocabularies(real_tokenizer, first, second):
    """A sample of one vocabulary against all of the other."""
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    texts = []
    for vocabulary in VocabAlignment.from_tokenizers([real_tokenizer(first), real_tokenizer(second)]).vocabularies:
        distinct = dict.fromkeys(data for data in vocabulary.token_bytes if data)
        texts.append([data.decode("utf-8", errors="surrogateescape") for data in distinct])
    queries = random.Random(0).sample(texts[0], 1500)
    distances = cdist(queries, texts[1], scorer=Levenshtein.distance, dtype=np.uint16)
    assert nearest_texts(queries, texts[1]).tolist() == distances.argmin(axis=1).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("close", [1.0, 1e-3, 0.0])
def test_nearest_vectors_are_the_plain_ones(monkeypatch, dtype, close):
    """Also where all targets but a few lie so close together that the fast product cannot tell them apart."""
    monkeypatch.setattr(cosine, "_fastest_type", lambda queries, targets: dtype)
    monkeypatch.setattr(cosine, "_PAIRS", 20_000)
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1, 48, generator=generator)
    targets = torch.nn.functional.normalize(base + close * torch.randn(400, 48, generator=generator), dim=1)
    queries = torch.nn.functional.normalize(base + torch.randn(300, 48, generator=generator), dim=1)
    found = nearest_vectors(queries, targets)
    if close:
        assert torch.equal(found, plain_vectors(queries, targets))
    else:  # all equal: the first
        assert not found.any()


def test_many_vectors_are_multiplied_in_the_type_that_is_fastest(monkeypatch):
    types = []
    fastest = cosine._fastest_type
    monkeypatch.setattr(cosine, "_ROWS", 64)
    monkeypatch.setattr(cosine, "_fastest_type", lambda *given: types.append(fastest(*given)) or types[-1])
    generator = torch.Generator().manual_seed(1)
    queries, targets = (torch.nn.functional.normalize(torch.randn(n, 16, generator=generator)) for n in (100, 300))
    assert torch.equal(nearest_vectors(queries, targets), plain_vectors(queries, targets))
    assert types[0] in (torch.float32, torch.bfloat16)
    nearest_vectors(queries[:9], targets)
    assert types[1] == torch.float32


def test_nearest_vectors_at_the_edges():
    unit = torch.eye(3)
    assert nearest_vectors(unit, unit[[1, 0, 2, 1]]).tolist() == [1, 0, 2]
    assert nearest_vectors(-unit, unit[:2]).tolist() == [1, 0, 0]
    assert nearest_vectors(unit[:0], unit).tolist() == []
    with pytest.raises(ValueError, match="queries must be finite, got NaN"):
        nearest_vectors(unit * torch.nan, unit)


class FakeMember:
    """A member that is nothing but its embeddings."""

    def __init__(self, embeddings):
        self.weight = embeddings

    def input_embeddings(self):
        return self.weight


@pytest.fixture
def alignment():
    return VocabAlignment.from_tokenizers([toy_tokenizers.byte_level(), toy_tokenizers.sentencepiece()])


@pytest.fixture
def members(alignment):
    generator = torch.Generator().manual_seed(0)
    return [FakeMember(torch.randn(v.size, 8, generator=generator)) for v in alignment.vocabularies]


@pytest.fixture
def searches(monkeypatch, tmp_path):
    """How often each method has searched, with a cache folder of the test's own."""
    monkeypatch.setenv("UNITE_CACHE", str(tmp_path / "cache"))
    counts = {MinED: 0, EVA: 0}

    def counted(cls, search):
        def nearest(self, *arguments):
            counts[cls] += 1
            return search(self, *arguments)

        return nearest

    for cls in counts:
        monkeypatch.setattr(cls, "nearest", counted(cls, cls.nearest))
    return counts


def maps(method):
    return [targets.tolist() for _, targets in method._maps]


@pytest.mark.parametrize("cls", [MinED, EVA])
def test_maps_are_kept(cls, alignment, members, searches, tmp_path, monkeypatch):
    first = maps(cls(alignment, members, STEP))
    assert searches[cls] == 1
    assert maps(cls(alignment, members, STEP)) == first
    assert searches[cls] == 1
    cls(alignment, members, StepOptions(primary=1))  # the other way is another map
    assert searches[cls] == 2
    monkeypatch.setattr(map_files, "VERSION", map_files.VERSION + 1)  # so are other rules
    cls(alignment, members, STEP)
    assert searches[cls] == 3
    assert len(list((tmp_path / "cache").glob(f"{cls.name}-*.safetensors"))) == 3
    assert not list((tmp_path / "cache").glob(".*"))


def test_maps_of_other_embeddings_are_others(alignment, members, searches):
    EVA(alignment, members, STEP)
    changed = FakeMember(members[1].weight.clone())
    changed.weight[5, 3] += 1
    EVA(alignment, [members[0], changed], STEP)
    EVA(alignment, [members[0], FakeMember(members[1].weight.half())], STEP)
    assert searches[EVA] == 3
    EVA(alignment, members, STEP)
    assert searches[EVA] == 3
    MinED(alignment, members, STEP)
    MinED(alignment, [members[0], changed], STEP)  # knows of no embeddings
    assert searches[MinED] == 1


@pytest.mark.parametrize("damage", [lambda b: b[:40], lambda b: b[:-4] + bytes([1, 0, 0, 0]), lambda b: b""])
def test_damaged_maps_are_made_again(alignment, members, searches, tmp_path, caplog, damage):
    first = maps(MinED(alignment, members, STEP))
    (path,) = (tmp_path / "cache").glob("mined-*")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert maps(MinED(alignment, members, STEP)) == first
    assert searches[MinED] == 2
    assert "is made again" in caplog.text
    assert path.read_bytes() == whole


def test_a_cache_folder_that_cannot_be_written_only_warns(alignment, members, searches, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNITE_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="a map of tokens could not be kept"):
        method = MinED(alignment, members, STEP)
    assert len(maps(method)) == 2
