"""Reads models' scores for `select_models`: folders of lm-evaluation-harness results, JSON and CSV files."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .rule import ModelScore

# The harness's names for "the share of right answers", best first.
_METRICS = ("acc", "exact_match", "acc_norm")
_COLUMNS = ("model", "accuracy", "mean_length", "task", "chance")


def read_scores(
    paths: Sequence[str | os.PathLike[str]],
    *,
    tasks: Sequence[str] | None = None,
    metric: str | None = None,
    chance: float | None = None,
) -> dict[str, ModelScore]:
    """Scores of several models.

    Parameters
    ----------
    paths : sequence of path
        Each a folder that `lm_eval --output_path ... --log_samples` wrote (searched to any depth; of several results of
        one model and task the newest counts), or a .json or .csv file with model, accuracy (points), mean_length and
        optionally task and chance: in JSON an object per model, keyed by name.
    tasks : sequence of str, optional
        Use only these tasks. Several tasks are averaged, accuracy and length each; every model must have all of them.
    metric : str, optional
        The harness's metric, such as "exact_match" or "exact_match,strict-match".
    chance : float, optional
        The accuracy of guessing in points, for all models whose file does not say.

    Returns
    -------
    dict of str to ModelScore
        A length is the mean number of characters of a response, None where no samples with text were logged.
    """
    if isinstance(paths, (str, os.PathLike)):
        raise TypeError(f"paths must be a list of paths, got {type(paths).__name__}")
    scores: dict[str, ModelScore] = {}
    for path in map(Path, paths):
        if path.is_dir():
            found = _read_folder(path, tasks, metric)
        elif path.suffix.lower() == ".json":
            found = _read_json(path)
        elif path.suffix.lower() == ".csv":
            found = _read_csv(path)
        elif path.exists():
            raise ValueError(f"paths: expected a folder, a .json or a .csv file, got {path}")
        else:
            raise ValueError(f"paths: {path} does not exist")
        for name, score in found.items():
            if name in scores:
                raise ValueError(f"paths: {name!r} occurs twice, the second time in {path}")
            if chance is not None and score.chance == 0:
                score = ModelScore(score.accuracy, score.mean_length, score.task, chance)
            scores[name] = score
    return scores


def _read_json(path: Path) -> dict[str, ModelScore]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    if isinstance(data, dict) and "results" in data and "config" in data:
        raise ValueError(f"{path}: this is a result of lm_eval; give its folder, which also holds the samples")
    if isinstance(data, dict):
        if any(not isinstance(entry, dict) for entry in data.values()):
            raise ValueError(f"{path}: expected an object per model, keyed by name")
        data = [{"model": name, **entry} for name, entry in data.items()]
    if not isinstance(data, list) or any(not isinstance(entry, dict) for entry in data):
        raise ValueError(f"{path}: expected an object per model, keyed by name, or a list of objects with 'model'")
    return _from_entries(path, data)


def _read_csv(path: Path) -> dict[str, ModelScore]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = {"model", "accuracy", "mean_length"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path}: expected the columns model, accuracy and mean_length, got {reader.fieldnames}")
        return _from_entries(path, list(reader))


def _from_entries(path: Path, entries: list[dict[str, Any]]) -> dict[str, ModelScore]:
    scores: dict[str, ModelScore] = {}
    for i, entry in enumerate(entries, start=1):
        unknown = entry.keys() - set(_COLUMNS)
        if unknown:
            raise ValueError(f"{path}: unknown {sorted(map(str, unknown))[0]!r}; the fields are {', '.join(_COLUMNS)}")
        name = entry.get("model")
        if not name:
            raise ValueError(f"{path}: entry {i} has no model name")
        if name in scores:
            raise ValueError(f"{path}: {name!r} occurs twice")
        numbers = {key: _number(path, name, key, entry.get(key)) for key in ("accuracy", "mean_length", "chance")}
        scores[name] = ModelScore(
            numbers["accuracy"], numbers["mean_length"], entry.get("task") or None, numbers["chance"] or 0.0
        )
    return scores


def _number(path: Path, name: str, key: str, value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{path}: {key} of {name!r} must be a number, got {value!r}") from None


def _read_folder(folder: Path, tasks: Sequence[str] | None, metric: str | None) -> dict[str, ModelScore]:
    """Every model's newest result of every task under a folder, averaged over the tasks."""
    found: dict[str, dict[str, tuple[float, float | None]]] = {}
    for path in sorted(
        folder.rglob("results_*.json"), key=lambda p: (p.name, p)
    ):  # named by time: the newest comes last
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            results, name = data["results"], _model_name(data, path)
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: expected a result of lm_eval, got {type(error).__name__}: {error}") from error
        date = path.stem.removeprefix("results_")
        groups = set(data.get("group_subtasks", {})) if tasks is None else set()
        for task, values in results.items():
            if (tasks is not None and task not in tasks) or (task in groups and data["group_subtasks"][task]):
                continue  # a group's average would count its tasks twice
            accuracy = 100 * _metric(path, task, values, metric)
            found.setdefault(name, {})[task] = (accuracy, _mean_length(path.parent, task, date))
    if not found:
        wanted = "" if tasks is None else f" for {', '.join(tasks)}"
        raise ValueError(f"paths: {folder} holds no results_*.json of lm_eval{wanted}")
    scores = {}
    for name, by_task in found.items():
        missing = set(tasks or ()) - by_task.keys()
        if missing:
            raise ValueError(f"{folder}: {name!r} has no result for {', '.join(sorted(missing))}")
        lengths = [length for _, length in by_task.values()]
        known = [length for length in lengths if length is not None]
        scores[name] = ModelScore(
            accuracy=_mean(accuracy for accuracy, _ in by_task.values()),
            mean_length=_mean(known) if len(known) == len(lengths) else None,
            task="+".join(sorted(by_task)),
        )
    return scores


def _model_name(data: dict[str, Any], path: Path) -> str:
    """The evaluated model. The harness makes a name up for models without "pretrained=": those are named here."""
    arguments = data.get("config", {}).get("model_args")
    if isinstance(arguments, str):
        arguments = dict(part.split("=", 1) for part in arguments.split(",") if "=" in part)
    members = (arguments or {}).get("models")
    if members:
        return str(members if isinstance(members, str) else ";".join(members))
    return str(data.get("model_name") or path.parent.name)


def _metric(path: Path, task: str, values: dict[str, Any], wanted: str | None) -> float:
    """One task's accuracy, 0 to 1."""
    numbers = {
        key: value
        for key, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and "_stderr" not in key
    }
    names = (wanted,) if wanted else _METRICS
    for name in names:
        hits = [key for key in numbers if key == name or key.split(",")[0] == name]
        if len({numbers[key] for key in hits}) > 1:
            raise ValueError(f"{path}: {task} has several values of {name}; choose one with metric: {', '.join(hits)}")
        if hits:
            value = float(numbers[hits[0]])
            if not 0 <= value <= 1:
                raise ValueError(f"{path}: {hits[0]} of {task} must be from 0 to 1, got {value}")
            return value
    known = ", ".join(key for key in numbers if "," in key) or "none"
    raise ValueError(f"{path}: {task} has no metric {' or '.join(names)}; choose one with metric: {known}")


def _mean_length(folder: Path, task: str, date: str) -> float | None:
    """Mean number of characters of the responses in a task's logged samples; None without any."""
    path = folder / f"samples_{task}_{date}.jsonl"
    if not path.exists():
        return None
    lengths: dict[Any, int] = {}  # by document: a sample is logged once per filter, with the same response
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                sample = json.loads(line)
                response = sample["resps"][0]
            except (json.JSONDecodeError, KeyError, IndexError, TypeError) as error:
                raise ValueError(f"{path}: line {number} is not a sample of lm_eval: {error!r}") from error
            response = response[0] if isinstance(response, list) and len(response) == 1 else response
            if not isinstance(response, str):
                return None  # log-likelihoods of given answers: nothing was written
            lengths[sample.get("doc_id", number)] = len(response)
    return _mean(lengths.values()) if lengths else None


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
