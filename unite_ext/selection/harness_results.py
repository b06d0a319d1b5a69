"""Read each model's results per task from folders that lm-evaluation-harness and `unite eval` wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .rule import ModelScore

# The harness's metrics that are the share of right answers; the first that a task has is used.
_METRICS = ("acc", "exact_match", "acc_norm")
# Arguments of lm_eval that select another model under the same name, and their defaults.
_VARIANTS = {"revision": "main", "subfolder": "", "peft": "", "delta": "", "gguf_file": ""}
# How a task was run: keys of a result file, and their names in notes. Accuracies of different settings do not compare.
_SETTINGS = {"n-shot": "examples in the prompt", "versions": "versions of the task"}


@dataclass(frozen=True)
class TaskResult:
    """One model's result of one run of one task."""

    path: Path
    accuracy: float
    """In points."""
    mean_length: float | None
    problems: int | None
    settings: Mapping[str, object]
    """How the task was run, by the names in `_SETTINGS`, and whether with a chat template."""


def read_folders(
    folders: Sequence[Path], tasks: Sequence[str] | None, metric: str | None, note: Callable[[str], object]
) -> dict[str, ModelScore]:
    """Read the score of every model under some folders, averaged over its tasks.

    Of several results of one model and task the one on the most problems counts, and of these the newest. Results of
    ensembles are left out.

    Parameters
    ----------
    folders : sequence of Path
        Searched to any depth.
    tasks : sequence of str, optional
        Use only these.
    metric : str, optional
    note : callable
        Called with a sentence about what was left out, and about what makes scores hard to compare.
    """
    found: dict[str, dict[str, TaskResult]] = {}
    ensembles: dict[str, None] = {}
    replaced: dict[str, None] = {}
    for path in _result_files(folders):
        members, results = _read_file(path, tasks, metric)
        if len(members) != 1:
            ensembles[" + ".join(Path(member).name for member in members)] = None
            continue
        (name,) = members
        own = found.setdefault(name, {})
        for task, result in results.items():
            if task in own:
                replaced[f"{name} on {task}"] = None
                if (own[task].problems or 0) > (result.problems or 0):
                    continue
            own[task] = result
    found = {name: by_task for name, by_task in found.items() if by_task}
    if ensembles:
        note(f"results of ensembles are no candidates and left out: {_listed(ensembles)}")
    if replaced:
        note(f"several results of {_listed(replaced)}: the one on most problems counts, then the newest")
    if not found:
        wanted = "" if tasks is None else f" for {', '.join(tasks)}"
        alone = " of a model alone" if ensembles else ""
        places = ", ".join(map(str, folders))
        raise ValueError(f"paths must hold results_*.json of lm_eval{alone}{wanted}, got none in {places}")
    _note_settings(found, note)
    return {name: _score(name, by_task, tasks) for name, by_task in found.items()}


def _result_files(folders: Sequence[Path]) -> list[Path]:
    """All files of results, each once, in the order of their names, which are times: the newest last."""
    files = {path.resolve(): path for folder in folders for path in folder.rglob("results_*.json")}
    return sorted(files.values(), key=lambda path: (path.name, path))


def _read_file(path: Path, tasks: Sequence[str] | None, metric: str | None) -> tuple[list[str], dict[str, TaskResult]]:
    """Read the evaluated models and the result of every task from one file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a result of lm_eval, got {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("results"), dict):
        raise ValueError(f"{path} must be a result of lm_eval, got JSON without 'results'")
    members = _members(data, path)
    if len(members) != 1:
        return members, {}
    found = {}
    parts = _object(data, "group_subtasks") if tasks is None else {}
    for task, values in data["results"].items():
        if tasks is not None and task not in tasks:
            continue
        if parts.get(task):
            continue  # a group's average would count its tasks twice
        if not isinstance(values, dict):
            raise ValueError(f"{path}: results of {task} must be an object, got {type(values).__name__}")
        length, answers = _read_samples(path.parent / f"samples_{task}_{path.stem.removeprefix('results_')}.jsonl")
        effective = _object(_object(data, "n-samples"), task).get("effective")
        problems = effective if isinstance(effective, int) else 0
        settings = {words: _object(data, key).get(task) for key, words in _SETTINGS.items()}
        settings["chat templates"] = "with" if data.get("chat_template_sha") or data.get("chat_template") else "without"
        found[task] = TaskResult(
            path, 100 * _metric(path, task, values, metric), length, problems or answers or None, settings
        )
    return members, found


def _members(data: Mapping[str, object], path: Path) -> list[str]:
    """The evaluated models: one, or the members of an ensemble."""
    config = _object(data, "config")
    given = config.get("model_args")
    if isinstance(given, str):
        given = dict(part.split("=", 1) for part in given.split(",") if "=" in part)
    arguments: Mapping[str, object] = given if isinstance(given, dict) else {}
    # `UniteLM` and the demo list their members. Older results have them as one string.
    named = config.get("members") or _object(data, "measured").get("members") or arguments.get("models")
    if not named and config.get("model") in ("unite", "UniteLM"):
        named = arguments.get("pretrained")
    if named:
        members = named.split(";") if isinstance(named, str) else list(named) if isinstance(named, list) else [named]
    else:
        members = [str(data.get("model_name") or arguments.get("pretrained") or path.parent.name)]
    names = [_same_name(str(name).strip()) for name in members]
    if len(names) == 1:
        values = {key: str(arguments.get(key) or usual) for key, usual in _VARIANTS.items()}
        variant = ", ".join(f"{key} {values[key]}" for key, usual in _VARIANTS.items() if values[key] != usual)
        names = [f"{names[0]} ({variant})" if variant else names[0]]
    return names


def _same_name(name: str) -> str:
    """Give a model's folder the same name however its path is written."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _score(name: str, by_task: Mapping[str, TaskResult], tasks: Sequence[str] | None) -> ModelScore:
    missing = set(tasks or ()) - by_task.keys()
    if missing:
        tasks_missing = ", ".join(sorted(missing))
        raise ValueError(f"paths must hold every task of every model, but {name!r} has no result for {tasks_missing}")
    lengths = [result.mean_length for result in by_task.values()]
    known = [length for length in lengths if length is not None]
    counts = [result.problems for result in by_task.values()]
    return ModelScore(
        accuracy=_mean(result.accuracy for result in by_task.values()),
        mean_length=_mean(known) if len(known) == len(lengths) else None,
        task="+".join(sorted(by_task)),
        problems=None if None in counts else sum(count or 0 for count in counts),
    )


def _note_settings(found: Mapping[str, Mapping[str, TaskResult]], note: Callable[[str], object]) -> None:
    """Note the tasks on which models had different problems, or were run in different ways."""
    for task in sorted({task for by_task in found.values() for task in by_task}):
        results = {name: by_task[task] for name, by_task in found.items() if task in by_task}
        kinds: dict[str, dict[str, object]] = {"problems": {name: result.problems for name, result in results.items()}}
        for words in next(iter(results.values())).settings:
            kinds[words] = {name: result.settings[words] for name, result in results.items()}
        for words, values in kinds.items():
            note_differing(f"{task}: {words}", values, note)


def note_differing(what: str, values: Mapping[str, object], note: Callable[[str], object]) -> None:
    """Note which models differ in a value that makes accuracies hard to compare; None is an unknown value."""
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        if value is not None:
            groups.setdefault(str(value), []).append(name)
    if len(groups) > 1:
        listed = "; ".join(f"{value} ({_listed(names)})" for value, names in groups.items())
        note(f"{what} differ, so accuracies can hardly be compared: {listed}")


def _metric(path: Path, task: str, values: Mapping[str, object], wanted: str | None) -> float:
    """The accuracy on one task, from 0 to 1."""
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


def _read_samples(path: Path) -> tuple[float | None, int]:
    """Read a task's logged samples: the mean number of characters of a response, None without text; and how many."""
    if not path.exists():
        return None, 0
    lengths: dict[str, int | None] = {}  # by document: a sample is logged once per filter, with the same response
    with path.open("rb") as file:  # binary, because only \n ends a line of JSON
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                sample = json.loads(line.decode("utf-8-sig"))
                response = sample["resps"][0]
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, IndexError, TypeError) as error:
                raise ValueError(f"{path}: line {number} is not a sample of lm_eval: {error!r}") from error
            response = response[0] if isinstance(response, list) and len(response) == 1 else response
            # The response of a multiple-choice task is log-likelihoods, and has no length.
            lengths[str(sample.get("doc_id", number))] = len(response) if isinstance(response, str) else None
    known = [length for length in lengths.values() if length is not None]
    return (_mean(known) if known and len(known) == len(lengths) else None), len(lengths)


def _object(data: Mapping[str, object], key: str) -> Mapping[str, object]:
    """The object under a key; an empty one if it is missing or no object."""
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def _listed(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
