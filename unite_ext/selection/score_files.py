"""Read models' scores for `select_models`: folders of lm-evaluation-harness results, JSON and CSV files."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .harness_results import note_differing, read_folders
from .rule import ModelScore

logger = logging.getLogger(__name__)

_COLUMNS = ("model", "accuracy", "mean_length", "task", "chance", "problems")


def read_scores(
    paths: Sequence[str | os.PathLike[str]],
    *,
    tasks: Sequence[str] | None = None,
    metric: str | None = None,
    chance: float | None = None,
    note: Callable[[str], object] = logger.warning,
) -> dict[str, ModelScore]:
    """Read the scores of several models.

    Parameters
    ----------
    paths : sequence of path
        Folders that `lm_eval --output_path ... --log_samples` or `unite eval --output` wrote, see `read_folders`.
        And .json or .csv files with model, accuracy (points), mean_length and optionally task, chance and problems:
        in JSON an object per model, keyed by name.
    tasks : sequence of str, optional
        Use only these tasks. Accuracy and length are averaged over them; every model must have all of them.
    metric : str, optional
        The harness's metric, such as "exact_match" or "exact_match,strict-match".
    chance : float, optional
        The accuracy of guessing in points, for all models whose file does not have it.
    note : callable
        Called with a sentence about what was left out, and about what makes scores hard to compare, such as different
        numbers of problems; by default it is logged.

    Returns
    -------
    dict of str to ModelScore
        A length is the mean number of characters of a response, None if no samples with text were logged.
    """
    if isinstance(paths, (str, os.PathLike)):
        raise TypeError(f"paths must be a list of paths, got {type(paths).__name__}")
    parts: list[tuple[str, dict[str, ModelScore]]] = []
    folders = []
    for path in map(Path, paths):
        if path.is_dir():
            folders.append(path)
        elif path.suffix.lower() == ".json":
            parts.append((str(path), _read_json(path)))
        elif path.suffix.lower() == ".csv":
            parts.append((str(path), _read_csv(path)))
        elif path.exists():
            raise ValueError(f"paths must be folders, .json or .csv files, got {path}")
        else:
            raise ValueError(f"paths must exist, but {path} does not")
    if folders:
        parts.insert(0, (", ".join(map(str, folders)), read_folders(folders, tasks, metric, note)))
    scores: dict[str, ModelScore] = {}
    for source, found in parts:
        for name, score in found.items():
            if name in scores:
                raise ValueError(f"paths must hold every model once, got {name!r} again in {source}")
            scores[name] = replace(score, chance=chance) if chance is not None and score.chance == 0 else score
    if len(parts) > 1 or not folders:  # read_folders notes it for folders alone, task by task
        note_differing("problems", {name: score.problems for name, score in scores.items()}, note)
    return scores


def _read_json(path: Path) -> dict[str, ModelScore]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be JSON, got {error}") from error
    if isinstance(data, dict) and "results" in data and "config" in data:
        raise ValueError(f"{path} is a result of lm_eval; give its folder, which also holds the samples")
    if isinstance(data, dict):
        if any(not isinstance(entry, dict) for entry in data.values()):
            raise ValueError(f"{path} must hold an object per model, keyed by name")
        data = [{"model": name, **entry} for name, entry in data.items()]
    if not isinstance(data, list) or any(not isinstance(entry, dict) for entry in data):
        raise ValueError(f"{path} must hold an object per model, keyed by name, or a list of objects with 'model'")
    return _from_entries(path, data)


def _read_csv(path: Path) -> dict[str, ModelScore]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = {"model", "accuracy", "mean_length"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path} must have the columns model, accuracy and mean_length, got {reader.fieldnames}")
        return _from_entries(path, list(reader))


def _from_entries(path: Path, entries: Sequence[Mapping[str, object]]) -> dict[str, ModelScore]:
    scores: dict[str, ModelScore] = {}
    for i, entry in enumerate(entries, start=1):
        unknown = entry.keys() - set(_COLUMNS)
        if unknown:
            raise ValueError(f"{path}: unknown {sorted(map(str, unknown))[0]!r}; the fields are {', '.join(_COLUMNS)}")
        name = str(entry.get("model") or "")
        if not name:
            raise ValueError(f"{path}: entry {i} has no model name")
        if name in scores:
            raise ValueError(f"{path}: {name!r} occurs twice")
        numbers = {key: _number(path, name, key, entry.get(key)) for key in _COLUMNS if key not in ("model", "task")}
        scores[name] = ModelScore(
            numbers["accuracy"],
            numbers["mean_length"],
            str(entry.get("task") or "") or None,
            numbers["chance"] or 0.0,
            None if numbers["problems"] is None else int(numbers["problems"]),
        )
    return scores


def _number(path: Path, name: str, key: str, value: object) -> float | None:
    if value is None or value == "":
        return None
    try:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            return float(value)
    except ValueError:
        pass
    raise ValueError(f"{path}: {key} of {name!r} must be a number, got {value!r}")
