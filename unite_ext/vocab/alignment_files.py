"""Write and read alignment files, detect damaged and stale ones, and keep a cache of them.

A file holds the class of every id, the ids of every class, and the bytes of every id. The hash map and the eligibility
bits are not stored: they are rebuilt from these in a few milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from .vocabulary import OpenedTokenizer, Vocabulary

logger = logging.getLogger(__name__)

FORMAT = "unite_ext.alignment"
VERSION = 1  # raise it whenever the format or the rules that fill it change

Array = NDArray[np.integer]
Tensors = dict[str, Array]

Stored = tuple[list[Vocabulary], list[NDArray[np.int32]], NDArray[np.int32]]
"""The vocabularies, the class of every member's ids, and the tagged ids of every class."""
Related = tuple[list[NDArray[np.int32]], NDArray[np.int32]]
"""The last two of these."""


class StartHeader(TypedDict):
    """What a file's header says of an alignment in which some members are in the start state."""

    members: list[str]
    """Their fingerprints."""
    start: list[bool]


class StoredMember(TypedDict):
    """What a file's header says of one member."""

    kind: str
    eos_token_ids: list[int]
    eos_token_id: int | None
    fingerprint: str


def cache_folder(cache: bool | str | os.PathLike[str]) -> Path | None:
    """The folder that the argument ``cache`` names, None for no cache."""
    if cache is False or cache is None:
        return None
    if cache is not True:
        return Path(cache)
    if os.environ.get("UNITE_CACHE"):
        return Path(os.environ["UNITE_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "unite_ext"
    except RuntimeError as error:  # neither HOME nor an entry in passwd, as in containers
        logger.warning("no cache of alignments: %s; UNITE_CACHE names a folder for it", error)
        return None


def cache_path(folder: Path, opened: list[OpenedTokenizer]) -> Path:
    """The file of one list of tokenizers and EOS ids."""
    return _path_of(folder, [o.identity for o in opened])


def _path_of(folder: Path, key: object) -> Path:
    digest = hashlib.sha256(json.dumps([FORMAT, VERSION, key]).encode()).hexdigest()
    return folder / f"alignment-{digest[:32]}.safetensors"


def _start_file(folder: Path, vocabularies: Sequence[Vocabulary], flags: Sequence[bool]) -> tuple[Path, StartHeader]:
    """The file of an alignment in the start state, and its header. It holds no bytes: those are its alignment's."""
    key = [(v.fingerprint, v.eos_token_ids, v.eos_token_id) for v in vocabularies]
    header: StartHeader = {"members": [v.fingerprint for v in vocabularies], "start": list(flags)}
    return _path_of(folder, [key, list(flags)]), header


def read_start(folder: Path, vocabularies: Sequence[Vocabulary], flags: Sequence[bool]) -> Related | None:
    """Read a cached alignment in which some members are in the start state, see `read_cached`."""
    path, header = _start_file(folder, vocabularies, flags)
    if not path.exists():
        return None
    try:
        tensors, found = _read_file(path)
        if found != {"format_version": VERSION, **header}:
            raise ValueError(f"{path} must be the start state of these members, got another file")
    except (ValueError, OSError) as error:
        logger.warning("cached alignment is rebuilt: %s", error)
        return None
    classes = [tensors[f"classes.{m}"].astype(np.int32, copy=False) for m in range(len(vocabularies))]
    return classes, tensors["class_ids"].astype(np.int32, copy=False)


def write_start(folder: Path, vocabularies: Sequence[Vocabulary], flags: Sequence[bool], related: Related) -> None:
    """Store an alignment in which some members are in the start state, see `write_cached`."""
    classes, class_ids = related
    path, header = _start_file(folder, vocabularies, flags)
    tensors: Tensors = {"class_ids": class_ids, **{f"classes.{m}": own for m, own in enumerate(classes)}}
    _keep(folder, lambda: _write_file(path, tensors, dict(header)))


def read_cached(folder: Path, opened: list[OpenedTokenizer]) -> Stored | None:
    """Read a cached alignment. None if there is none, or, with a line in the log, if it cannot be used."""
    path = cache_path(folder, opened)
    if not path.exists():
        return None
    try:
        return _attach(path, *_read_members(path), opened)
    except (ValueError, OSError) as error:
        logger.warning("cached alignment is rebuilt: %s", error)
        return None


def write_cached(folder: Path, opened: list[OpenedTokenizer], stored: Stored) -> None:
    """Store an alignment in the cache. A folder that cannot be written is a warning, not an error."""
    _keep(folder, lambda: write(cache_path(folder, opened), stored))


def _keep(folder: Path, writes: Callable[[], None]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writes()
    except OSError as error:
        warnings.warn(f"the alignment could not be kept in the cache folder {folder}: {error}", stacklevel=4)


def write(path: Path, stored: Stored) -> None:
    """Write one alignment file atomically: a temporary file in the same folder, then a rename."""
    vocabularies, classes, class_ids = stored
    tensors: Tensors = {"class_ids": class_ids}
    members: list[StoredMember] = []
    for m, vocabulary in enumerate(vocabularies):
        lengths = np.fromiter(map(len, vocabulary.pieces), np.int32, vocabulary.size)
        tensors[f"classes.{m}"] = classes[m]
        tensors[f"lengths.{m}"] = lengths
        tensors[f"bytes.{m}"] = np.frombuffer(b"".join(vocabulary.pieces), np.uint8)
        tensors[f"byte_pieces.{m}"] = np.flatnonzero(vocabulary.is_byte_piece).astype(np.int32)
        members.append(
            {
                "kind": vocabulary.kind,
                "eos_token_ids": list(vocabulary.eos_token_ids),
                "eos_token_id": vocabulary.eos_token_id,
                "fingerprint": vocabulary.fingerprint,
            }
        )
    _write_file(path, tensors, {"members": members})


def _write_file(path: Path, tensors: Tensors, described: Mapping[str, object]) -> None:
    header: dict[str, object] = {"format_version": VERSION, **described}
    header["checksum"] = _checksum(tensors, header)
    # One metadata entry, because safetensors writes several in random order
    metadata = {FORMAT: json.dumps(header)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_bytes(safetensors.numpy.save(tensors, metadata))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path, tokenizers: Sequence[object] | None) -> Stored:
    """Read and check one alignment file, and compare it with the tokenizers if they are given."""
    tensors, members = _read_members(path)
    if tokenizers is None:
        return _attach(path, tensors, members, None)
    if not isinstance(tokenizers, (list, tuple)):
        raise TypeError(f"tokenizers must be a list of tokenizers, got {type(tokenizers).__name__}")
    if len(tokenizers) != len(members):
        raise ValueError(f"tokenizers must be {len(members)}, as in {path}, got {len(tokenizers)}")
    opened = [
        OpenedTokenizer(t, eos_token_ids=member["eos_token_ids"], lossy=True, name=f"tokenizers[{m}]")
        for m, (t, member) in enumerate(zip(tokenizers, members))
    ]
    return _attach(path, tensors, members, opened)


def _read_members(path: Path) -> tuple[Tensors, list[StoredMember]]:
    tensors, header = _read_file(path)
    if "start" in header:
        raise ValueError(f"{path} must be an alignment file, got one of the cache for the start state")
    return tensors, header["members"]


def _read_file(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The tensors and the header of one file, which is not damaged."""
    if not path.exists():
        raise FileNotFoundError(f"path must be an alignment file, but {path} does not exist")
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            if FORMAT not in metadata:
                raise ValueError(f"{path} must be an alignment file, got safetensors metadata {metadata}")
            header = json.loads(metadata[FORMAT])
            if not isinstance(header, dict):
                raise ValueError(f"{path} must be an alignment file, got a damaged one: its header is no JSON object")
            if header.get("format_version") != VERSION:
                raise ValueError(
                    f"{path} must have alignment format version {VERSION}, got {header.get('format_version')}; "
                    "build the alignment again"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be an alignment file, got a damaged one: {error}") from error
    checksum = header.pop("checksum", None)
    if checksum != _checksum(tensors, header):
        raise ValueError(f"{path}: the alignment file is damaged: its content does not match its checksum")
    return tensors, header


def _attach(
    path: Path,
    tensors: Tensors,
    members: list[StoredMember],
    opened: list[OpenedTokenizer] | None,
) -> Stored:
    """Make vocabularies from stored arrays, with the tokenizers if they are given."""
    vocabularies, classes = [], []
    for m, member in enumerate(members):
        if opened is not None:
            _check_same(path, m, member, opened[m])
        class_of = tensors[f"classes.{m}"]
        is_byte_piece = np.zeros(len(class_of), bool)
        is_byte_piece[tensors[f"byte_pieces.{m}"]] = True
        vocabularies.append(
            Vocabulary(
                kind=member["kind"],
                pieces=partial(_split_bytes, tensors[f"bytes.{m}"], tensors[f"lengths.{m}"]),
                size=len(class_of),
                is_byte_piece=is_byte_piece,
                eos_token_ids=tuple(member["eos_token_ids"]),
                eos_token_id=member["eos_token_id"],
                fingerprint=member["fingerprint"],
                parts=None if opened is None else opened[m].parts,
                eligible=class_of >= 0,
                name=f"tokenizers[{m}]",
            )
        )
        classes.append(class_of.astype(np.int32, copy=False))
    return vocabularies, classes, tensors["class_ids"].astype(np.int32, copy=False)


def _check_same(path: Path, m: int, member: StoredMember, opened: OpenedTokenizer) -> None:
    if opened.fingerprint != member["fingerprint"]:
        raise ValueError(
            f"tokenizers[{m}] must have the fingerprint {member['fingerprint'][:12]}, for which {path} was made, "
            f"got {opened.fingerprint[:12]}; build the alignment again"
        )
    if [list(opened.eos_token_ids), opened.eos_token_id] != [member["eos_token_ids"], member["eos_token_id"]]:
        raise ValueError(
            f"tokenizers[{m}] must have the EOS ids {member['eos_token_ids']}, represented by "
            f"{member['eos_token_id']}, for which {path} was made, got {list(opened.eos_token_ids)}, represented by "
            f"{opened.eos_token_id}; build the alignment again"
        )


def _split_bytes(blob: Array, lengths: Array) -> list[bytes]:
    data = blob.tobytes()
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    return [data[a:b] for a, b in zip([0, *ends[:-1]], ends)]


def _checksum(tensors: Tensors, header: Mapping[str, object]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()
