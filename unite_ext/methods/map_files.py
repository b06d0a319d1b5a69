"""Keep maps between vocabularies, which take up to a minute to compute, in the cache folder of alignments."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..vocab import alignment_files
from ..vocab.alignment import VocabAlignment

logger = logging.getLogger(__name__)

FORMAT = "unite_ext.token_map"
VERSION = 1  # raise it whenever the format or the rules that fill it change


def keep_map(
    make: Callable[[], Tensor], method: str, alignment: VocabAlignment, m: int, primary: int, ids: Tensor, source: str
) -> Tensor:
    """Read a map from the cache folder, or make it and store it there.

    Parameters
    ----------
    make : callable
        Makes the map: int64 [N], the primary's id for each of `ids`.
    method : str
        The method's name.
    alignment : VocabAlignment
    m, primary : int
        The member whose ids are mapped, and the member that they are mapped to.
    ids : Tensor, int64 [N]
        The ids of member m that are mapped.
    source : str
        What the map depends on beside the two vocabularies, such as a digest of embeddings; else empty.
    """
    try:
        folder = alignment_files.cache_folder(True)
    except (RuntimeError, OSError):  # there is no home folder
        folder = None
    if folder is None:
        return make()
    members = [
        [v.fingerprint, list(v.eos_token_ids), v.eos_token_id]
        for v in (alignment.vocabularies[m], alignment.vocabularies[primary])
    ]
    key = json.dumps([FORMAT, VERSION, alignment_files.VERSION, method, members, source])
    path = folder / f"{method}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    kept = _read(path, key, ids, alignment.vocabularies[primary].size)
    if kept is None:
        made = make()
        _write(path, key, ids, made)
        return made
    return kept.to(ids.device)


def digest_of(*tensors: Tensor) -> str:
    """A digest of tensors' types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        for part in tensor.detach().split(4096):  # a copy of all embeddings may take a gigabyte
            digest.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path, key: str, ids: Tensor, size: int) -> Tensor | None:
    """Read a stored map. None if there is none, or, with a line in the log, if it cannot be used."""
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            header = json.loads((file.metadata() or {})[FORMAT])
            kept = {name: file.get_tensor(name) for name in ("ids", "targets")}
        if header != {"key": key, "checksum": _checksum(kept)}:
            raise ValueError("its content does not match its key or checksum")
        if not np.array_equal(kept["ids"], ids.cpu().numpy()) or not (kept["targets"] >= 0).all():
            raise ValueError("it maps other ids")
        if (kept["targets"] >= size).any():
            raise ValueError("it maps to ids that the primary does not have")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError, safetensors.SafetensorError) as error:
        logger.warning("the map of tokens in %s is made again: %s", path, error)
        return None
    return torch.from_numpy(kept["targets"].astype(np.int64))


def _write(path: Path, key: str, ids: Tensor, made: Tensor) -> None:
    """Store a map atomically. A folder that cannot be written is a warning, not an error."""
    tensors = {"ids": ids.cpu().numpy().astype(np.int32), "targets": made.cpu().numpy().astype(np.int32)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        header = json.dumps({"key": key, "checksum": _checksum(tensors)})
        try:
            temporary.write_bytes(safetensors.numpy.save(tensors, {FORMAT: header}))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(f"a map of tokens could not be kept in the cache folder {path.parent}: {error}", stacklevel=3)


def _checksum(tensors: Mapping[str, NDArray[np.integer]]) -> str:
    digest = hashlib.sha256()
    for name in ("ids", "targets"):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()
