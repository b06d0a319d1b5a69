"""Alignment files and the cache: files keep everything; damaged and stale files and bad folders are detected."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import warnings

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import toy_tokenizers as toys
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from unite_ext.vocab import alignment_files
from unite_ext.vocab.alignment import VocabAlignment

TOKENIZERS = (toys.byte_level, toys.sentencepiece, toys.gemma)


@pytest.fixture(scope="module")
def tokenizers():
    return [make() for make in TOKENIZERS]


@pytest.fixture(scope="module")
def alignment(tokenizers):
    return VocabAlignment.from_tokenizers(tokenizers, cache=False)


@pytest.fixture
def path(alignment, tmp_path):
    alignment.save(tmp_path / "alignment.safetensors")
    return tmp_path / "alignment.safetensors"


def assert_same(one: VocabAlignment, two: VocabAlignment) -> None:
    for name in ("table", "class_ids", "eligible"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    for name in ("log2_capacity", "eligible_offsets", "vocab_sizes", "eos_ids", "fingerprints", "num_classes"):
        assert getattr(one, name) == getattr(two, name), name
    assert all(torch.equal(a, b) for a, b in zip(one.classes, two.classes))
    for a, b in zip(one.vocabularies, two.vocabularies):
        assert a.token_bytes == b.token_bytes
        assert a.representatives() == b.representatives()
        assert (a.eos_token_ids, a.eos_token_id, a.kind, a.size) == (b.eos_token_ids, b.eos_token_id, b.kind, b.size)


def test_round_trip(alignment, tokenizers, path):
    assert_same(alignment, VocabAlignment.load(path))
    loaded = VocabAlignment.load(path, tokenizers)
    assert_same(alignment, loaded)
    for m in range(3):
        data = " James met\n\xff \u2581 中".encode()
        assert loaded.encode_continuation(m, data) == alignment.encode_continuation(m, data)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_round_trip_of_odd_members(tmp_path):
    """No EOS, an ordinary token that ends the text, no byte tokens, several EOS ids."""
    newline = toys.byte_level().convert_tokens_to_ids("Ċ")
    alignment = VocabAlignment.from_tokenizers(
        [toys.wordpiece(), toys.byte_level()], eos_token_ids=[None, [newline]], cache=False
    )
    alignment.save(tmp_path / "a")
    loaded = VocabAlignment.load(tmp_path / "a", [toys.wordpiece(), toys.byte_level()])
    assert_same(alignment, loaded)
    assert loaded.encode_continuation(1, b"a\n") == alignment.encode_continuation(1, b"a\n")


def test_saving_what_was_loaded_gives_the_same_file(path, tmp_path):
    VocabAlignment.load(path).save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_without_tokenizers_it_steps_but_does_not_tokenize(path):
    loaded = VocabAlignment.load(path)
    assert loaded.token_bytes(0, toys.byte_level().convert_tokens_to_ids("ĠJames")) == b" James"
    with pytest.raises(ValueError, match="loaded without tokenizers; pass them"):
        loaded.encode_continuation(0, b"x")


def test_truncated_files_are_refused(path):
    data = path.read_bytes()
    for length in (0, 5, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"alignment\.safetensors"):
            VocabAlignment.load(path)


def test_flipped_bits_are_refused(path):
    data = path.read_bytes()
    for position in [*range(0, 1200, 37), *range(1200, len(data), len(data) // 60)]:
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"alignment\.safetensors"):
            VocabAlignment.load(path)


def header_of(path) -> dict:
    with safetensors.safe_open(str(path), framework="numpy") as file:
        return json.loads(file.metadata()[alignment_files.FORMAT])


def rewrite(path, **changes) -> None:
    """The file with another header and a right checksum."""
    tensors = safetensors.numpy.load_file(path)
    header = {**header_of(path), **changes}
    header.pop("checksum")
    header["checksum"] = alignment_files._checksum(tensors, header)
    path.write_bytes(safetensors.numpy.save(tensors, {alignment_files.FORMAT: json.dumps(header)}))


def test_other_versions_and_other_files_are_refused(path, tmp_path):
    rewrite(path, format_version=0)
    with pytest.raises(ValueError, match="must have alignment format version 1, got 0; build the alignment again"):
        VocabAlignment.load(path)
    safetensors.torch.save_file({"x": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors must be an alignment file"):
        VocabAlignment.load(tmp_path / "model.safetensors")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="damaged"):
        VocabAlignment.load(tmp_path / "text")
    with pytest.raises(FileNotFoundError, match="nothing"):
        VocabAlignment.load(tmp_path / "nothing")


def test_other_tokenizers_are_refused(path, tokenizers):
    with pytest.raises(ValueError, match=r"tokenizers\[1\] must have the fingerprint"):
        VocabAlignment.load(path, [tokenizers[0], tokenizers[2], tokenizers[1]])
    with pytest.raises(ValueError, match="tokenizers must be 3"):
        VocabAlignment.load(path, tokenizers[:2])
    with pytest.raises(TypeError, match="tokenizers must be a list"):
        VocabAlignment.load(path, tokenizers[0])
    other_eos = PreTrainedTokenizerFast(tokenizer_object=tokenizers[0].backend_tokenizer, eos_token="<|eos|>")
    with pytest.raises(ValueError, match=r"tokenizers\[0\] must have the EOS ids \[562\].*got \[561, 562\]"):
        VocabAlignment.load(path, [other_eos, *tokenizers[1:]])


def test_a_failed_save_leaves_the_old_file(alignment, path, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        alignment.save(path)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1


# --- the cache folder --------------------------------------------------------------------------------


@pytest.fixture
def builds(monkeypatch):
    """How often an alignment was built, not read."""
    from unite_ext.vocab import alignment as module

    calls = []
    original = module.relate
    monkeypatch.setattr(module, "relate", lambda *a, **k: calls.append(1) or original(*a, **k))
    return calls


def test_the_cache_is_used(alignment, tokenizers, tmp_path, builds):
    for _ in range(3):
        assert_same(alignment, VocabAlignment.from_tokenizers(tokenizers, cache=tmp_path))
    assert len(builds) == 1
    VocabAlignment.from_tokenizers(tokenizers, cache=False)
    assert len(builds) == 2
    cached = VocabAlignment.from_tokenizers(tokenizers, cache=str(tmp_path))
    assert cached.encode_continuation(1, b" James") == alignment.encode_continuation(1, b" James")


def test_other_members_get_other_files(tokenizers, tmp_path, builds):
    eos = tokenizers[0].convert_tokens_to_ids("<|eos|>")
    changed = Tokenizer.from_str(tokenizers[1].backend_tokenizer.to_str())
    changed.add_tokens(["<extra>"])
    for members, options in [
        (tokenizers, {}),
        (tokenizers[::-1], {}),
        (tokenizers[:2], {}),
        (tokenizers, {"eos_token_ids": [[eos], None, None]}),
        ([tokenizers[0], changed, tokenizers[2]], {}),
    ]:
        for _ in range(2):
            VocabAlignment.from_tokenizers(members, cache=tmp_path, **options)
    assert len(builds) == len(list(tmp_path.iterdir())) == 5


def test_lossy_consent_is_asked_for_in_spite_of_the_cache(tmp_path):
    members = [toys.wordpiece_lowercase()]
    VocabAlignment.from_tokenizers(members, cache=tmp_path, lossy=True)
    with pytest.raises(ValueError, match="pass lossy=True"):
        VocabAlignment.from_tokenizers(members, cache=tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "version", "fingerprint"])
def test_a_bad_cache_file_is_rebuilt(alignment, tokenizers, tmp_path, builds, caplog, damage):
    VocabAlignment.from_tokenizers(tokenizers, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(good[:-9])
    elif damage == "flipped":
        file.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
    elif damage == "version":
        rewrite(file, format_version=99)
    else:
        members = header_of(file)["members"]
        members[1]["fingerprint"] = "0" * 64
        rewrite(file, members=members)
    with caplog.at_level(logging.WARNING):
        assert_same(alignment, VocabAlignment.from_tokenizers(tokenizers, cache=tmp_path))
    assert "cached alignment is rebuilt" in caplog.text
    assert len(builds) == 2
    assert file.read_bytes() == good


def test_default_folder(tokenizers, tmp_path, monkeypatch, builds):
    monkeypatch.setenv("UNITE_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    for folder in ("a", "b/unite_ext", "c/.cache/unite_ext"):
        VocabAlignment.from_tokenizers(tokenizers[:1])
        VocabAlignment.from_tokenizers(tokenizers[:1])
        assert len(list((tmp_path / folder).iterdir())) == 1
        monkeypatch.delenv("UNITE_CACHE" if folder == "a" else "XDG_CACHE_HOME", raising=False)
    assert len(builds) == 3


def test_an_unwritable_folder_only_warns(alignment, tokenizers, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="could not be kept in the cache folder"):
        built = VocabAlignment.from_tokenizers(tokenizers, cache=tmp_path / "file" / "sub")
    assert_same(alignment, built)
    (tmp_path / "cache").mkdir()
    file = alignment_files.cache_path(tmp_path / "cache", [])
    file.mkdir()  # unreadable as a file
    assert alignment_files.read_cached(tmp_path / "cache", []) is None


def _save_often(alignment: VocabAlignment, path: str) -> None:
    for _ in range(25):
        alignment.save(path)


def test_two_processes_may_write_and_one_read(alignment, path):
    expected = path.read_bytes()
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_save_often, args=(alignment, path)) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads
        for writer in writers:
            writer.start()
    reads = 0
    while any(w.is_alive() for w in writers) or not reads:
        assert path.read_bytes() == expected
        VocabAlignment.load(path)
        reads += 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("header", ["[]", "5", "null", '"text"'])
def test_metadata_that_is_no_object_is_a_damaged_file(alignment, tokenizers, tmp_path, header):
    path = tmp_path / "alignment.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(1, np.int8)}, path, {alignment_files.FORMAT: header})
    with pytest.raises(ValueError, match="its header is no JSON object"):
        VocabAlignment.load(path)


def test_without_a_home_there_is_no_cache(monkeypatch, caplog):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("UNITE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(alignment_files.Path, "home", homeless)
    assert alignment_files.cache_folder(True) is None
    assert "UNITE_CACHE names a folder" in caplog.text
    assert VocabAlignment.from_tokenizers([toys.byte_level()]).num_members == 1
