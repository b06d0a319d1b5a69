"""Know again what a run was: which models and options made the rows that a file or folder holds already.

A run is described in a small JSON file beside its rows. Going on with other models or options would mix two runs in one
file, so that is refused, and what differs is named.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Described = Mapping[str, Any]
"""JSON that describes a run or a model."""

VERSION = 1  # of the file and of how models are told apart

# Arguments that decide no row's text: models are described by their content, and every row holds its prompt.
_INDECISIVE = {
    "model", "prompt", "file", "output", "resume", "as_json", "trace", "batch_size", "device", "trust_remote_code",
    "member_api_key_env", "member_timeout", "rank_timeout",
}  # fmt: skip
# Files that decide what a model says, by the end of their names.
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
_TEXTS = (".json", ".jinja", ".model", ".txt", ".py")
_WHOLE = 2**26  # bytes of a file of weights that are read; of a larger one only parts
_PARTS, _PART = 64, 2**14


def run_file(rows: Path) -> Path:
    """The file beside a file of rows that says what made them."""
    return rows.with_name(rows.name + ".run.json")


def describe_run(models: Sequence[str], options: Described, *, revision: str | None = None) -> Described:
    """Describe models and options so that they can be compared with those of a later run.

    Parameters
    ----------
    models : sequence of str
        Folders, .gguf files or Hugging Face names.
    options : mapping
        Whatever decides the rows, by the names under which a person knows it.
    revision : str, optional
        Of all models.
    """
    described = {"version": VERSION, "models": [describe_model(name, revision) for name in models], "options": options}
    return json.loads(json.dumps(described, default=str))


def describe_model(name: str, revision: str | None = None) -> Described:
    """Describe what a name stands for now: the content of a folder, or the commit of a downloaded model."""
    path = Path(name)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.name.endswith(_WEIGHTS + _TEXTS) and p.is_file())
    elif path.is_file():
        files = [path]
    else:
        return {"name": name, "revision": revision, "commit": _commit(name, revision)}
    written = {p.name: p.stat().st_mtime_ns for p in files if _is_sampled(p)}
    return {"name": name, "files": {p.name: _digest(p) for p in files}, "written": written}


def keep_run(rows: Path, run: Described | None) -> None:
    """Write what `check_rows` returned beside the rows, before the first of them."""
    if run is not None:
        write_run(run_file(rows), run)


def check_rows(rows: Path, options: Described) -> Described | None:
    """Describe a run, and check that rows that are there already are of the same run. Nothing is written.

    Parameters
    ----------
    rows : Path
        The file of rows, which need not exist.
    options : mapping
        All arguments of the command; those that do not decide a row's text are left out here.

    Returns
    -------
    dict or None
        What `keep_run` has to write; None where a description is there, or none is wanted.
    """
    if rows.exists() and not rows.is_file():
        return None  # a terminal or pipe, which nothing goes on with
    if not rows.parent.is_dir():
        raise ValueError(f"--output: the folder {rows.parent} does not exist")
    decisive = {name: value for name, value in options.items() if name not in _INDECISIVE}
    run = describe_run(options["model"], decisive)
    if rows.exists() and rows.stat().st_size:
        check_run(rows, run)
        return None
    return run


def keep_answers(folder: Path, run: Described) -> tuple[Path, list[str]]:
    """Find the answers that `unite eval` kept of this run in a folder, or make a place for them.

    Returns
    -------
    path : Path
        Where they are; what stores them adds to the name.
    others : list of str
        What differs in other runs of models with these names, whose answers are not used.
    """
    others = []
    names = [model["name"] for model in run["models"]]
    for path in sorted(folder.glob("answers_*.run.json")):
        try:
            kept = read_run(path)
        except ValueError:
            continue  # whatever it is, it does not stand for answers that could be used
        found = differences(kept, run) if kept else ["it is gone"]
        if not found:
            return path.with_name(path.name.removesuffix(".run.json")), []
        if kept and [model["name"] for model in kept["models"]] == names:
            others.append("; ".join(found))
    place = folder / f"answers_{hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:16]}"
    write_run(run_file(place), run)
    return place, others


def check_run(path: Path, run: Described) -> None:
    """Raise ValueError unless a file of rows was made by this very run, and say what differs."""
    kept = read_run(run_file(path))
    if kept is None:
        raise ValueError(
            f"{path} has no {run_file(path).name} beside it, so its rows may be those of other models or options; "
            "name another file"
        )
    found = differences(kept, run)
    if found:
        raise ValueError(f"{path} holds rows of another run: {'; '.join(found)}; name another file")


def read_run(path: Path) -> Described | None:
    """The description that a file holds; None if there is none.

    Raises
    ------
    ValueError
        The file is something else.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be the description of a run, got {error}") from error
    good = (
        isinstance(kept, dict)
        and isinstance(kept.get("models"), list)
        and all(isinstance(model, dict) and isinstance(model.get("name"), str) for model in kept["models"])
        and isinstance(kept.get("options"), dict)
    )
    if not good:
        raise ValueError(f"{path} must be the description of a run, got other JSON")
    if kept.get("version") != VERSION:
        raise ValueError(f"{path} must be of version {VERSION}, got {kept.get('version')}: it is of another unite_ext")
    return kept


def write_run(path: Path, run: Described) -> None:
    """Keep a description, whole or not at all. Call it before the first row is written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_text(json.dumps(run, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def differences(kept: Described, run: Described) -> list[str]:
    """Say in short sentences what differs between two described runs; empty if nothing does."""
    found = []
    old, new = kept["models"], run["models"]
    if len(old) != len(new):
        found.append(f"it had {len(old)} models, now {len(new)}")
    for i, (before, now) in enumerate(zip(old, new)):
        found += _model_differences(i, before, now)
    missing = object()
    for name in (*kept["options"], *(name for name in run["options"] if name not in kept["options"])):
        before, now = kept["options"].get(name, missing), run["options"].get(name, missing)
        if before != now:
            words = ["not given" if value is missing else _short(value) for value in (before, now)]
            found.append(f"{name} was {words[0]}, now {words[1]}")
    return found


def _model_differences(i: int, before: Described, now: Described) -> list[str]:
    name = f"model {i} ({now['name']})"
    if "files" in before and "files" in now:
        changed = _changed(before["files"], now["files"])
        # A copy elsewhere is the same model, whenever it was written. In its place, weights that were written again are
        # other ones, because not all of a large file is read.
        if before["name"] == now["name"]:
            changed = changed or _changed(before.get("written", {}), now.get("written", {}))
        if not changed:
            return []
        if before["name"] == now["name"]:
            return [f"{name} has changed: {', '.join(changed[:3])}" + (" and more" if len(changed) > 3 else "")]
    if before["name"] != now["name"]:
        return [f"model {i} was {before['name']}, now {now['name']}"]
    for key in ("revision", "commit"):
        # What was not downloaded yet has no commit that could differ.
        old, new = before.get(key), now.get(key)
        if old != new and (key != "commit" or (old and new)):
            return [f"{key} of {name} was {old}, now {new}"]
    return [] if ("files" in before) == ("files" in now) else [f"{name} was not the folder that it is now"]


def _changed(old: Described, new: Described) -> list[str]:
    return [name for name in {**old, **new} if old.get(name) != new.get(name)]


def _is_sampled(path: Path) -> bool:
    """Whether a file is too large to be read as a whole."""
    return path.name.endswith(_WEIGHTS) and path.stat().st_size > _WHOLE


def _digest(path: Path) -> str:
    """A digest of a file's size and content, or of parts of it."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if _is_sampled(path):
            for i in range(_PARTS):
                file.seek(i * (size - _PART) // (_PARTS - 1))
                digest.update(file.read(_PART))
        else:
            for block in iter(lambda: file.read(2**20), b""):
                digest.update(block)
    return digest.hexdigest()[:32]


def _commit(name: str, revision: str | None) -> str | None:
    """The commit of a model in Hugging Face's own cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except ValueError:  # not a name that could be there
        return None
    return Path(found).parent.name if isinstance(found, str) else None


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
