"""Read the data of the six benchmarks, make prompts, and score answers, for the task files.

The data are JSON lines in a folder with one subfolder per benchmark, as the paper's authors distribute them. The folder
is given by ``--metadata '{"benchmarks": "FOLDER"}'``, by `unite eval --benchmarks FOLDER`, or by the environment
variable UNITE_BENCHMARKS.
"""

from __future__ import annotations

import os
import re
import string
from pathlib import Path
from typing import Any

import datasets

from unite_ext._jsonl import decode, read_records

_FEW_SHOT = 5
_FINAL = re.compile(r"(?:the answer is|boxed|####)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")

Problem = dict[str, Any]
"""One line of a benchmark's file, as datasets holds it."""


def gsm8k(benchmarks: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """GSM8K: 4 worked examples from prompt.txt, then the question."""
    examples = _read_text("gsm8k/prompt.txt", benchmarks).rstrip("\n")
    rows = [
        {**row, "prompt": f"{examples}\n\nQuestion: {row['question']}\nLet's think step by step\n"}
        for row in _read("gsm8k/test.jsonl", benchmarks)
    ]
    return _dataset(rows)


def arc_challenge(benchmarks: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """ARC-Challenge, zero-shot."""
    return _dataset([{**row, "prompt": _choices(row)} for row in _read("arc_challenge/test.jsonl", benchmarks)])


def piqa(benchmarks: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """PIQA, zero-shot."""
    return _dataset([{**row, "prompt": _choices(row)} for row in _read("piqa/validation.jsonl", benchmarks)])


def piqa_options(benchmarks: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """PIQA, for `options`."""
    return _with_options(_read("piqa/validation.jsonl", benchmarks))


def arc_challenge_options(benchmarks: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """ARC-Challenge, for `options`."""
    return _with_options(_read("arc_challenge/test.jsonl", benchmarks))


def mmlu(benchmarks: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """MMLU, all subjects: 5 examples from a subject's dev file, then the question."""
    rows = []
    for path in sorted((_folder(benchmarks) / "mmlu" / "test").glob("*.jsonl")):
        dev = _read(f"mmlu/dev/{path.name}", benchmarks)[:_FEW_SHOT]
        examples = "".join(f"{_choices(row)} {row['answer']}\n\n" for row in dev)
        rows += [{**row, "prompt": examples + _choices(row)} for row in _read(f"mmlu/test/{path.name}", benchmarks)]
    if not rows:
        raise ValueError(f"benchmarks must hold mmlu/test/*.jsonl, got none in {_folder(benchmarks)}")
    return _dataset(rows)


def nq(benchmarks: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """Natural Questions: 5 examples from prompt.txt, then the question."""
    return _open_questions("nq", benchmarks)


def triviaqa(benchmarks: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """TriviaQA: 5 examples from prompt.txt, then the question."""
    return _open_questions("triviaqa", benchmarks)


def options(doc: Problem) -> list[str]:
    """The texts of a multiple-choice problem's options."""
    return [doc[letter] for letter in _letters(doc)]


def right_option(doc: Problem) -> int:
    """Which of the options is right, counted from 0."""
    return _letters(doc).index(doc["answer"])


def score_number(doc: Problem, results: list[str]) -> dict[str, float]:
    """Score 1 if the last number after "the answer is" or "boxed" is the reference's."""
    found, wanted = final_number(results[0]), final_number(doc["answer"])
    return {"exact_match": float(found is not None and found == wanted)}


def score_letter(doc: Problem, results: list[str]) -> dict[str, float]:
    """Score 1 if the answer begins with the right letter."""
    return {"exact_match": float(results[0].strip()[:1] == doc["answer"])}


def score_alias(doc: Problem, results: list[str]) -> dict[str, float]:
    """Score 1 if the first line of the answer equals a reference, ignoring case, punctuation and articles."""
    first = results[0].strip().split("\n")[0]
    return {"exact_match": float(normalized(first) in {normalized(alias) for alias in doc["answer"]})}


def final_number(text: str) -> float | None:
    """Find the last number after the last "the answer is", "boxed" or "####" with a number after it, else None."""
    for start in reversed([match.end() for match in _FINAL.finditer(text)]):
        numbers = _NUMBER.findall(text[start:])
        if numbers:
            return float(numbers[-1].replace(",", ""))
    return None


def normalized(text: str) -> str:
    """Normalize as the official scripts of both data sets: lower case, no punctuation, no articles, single blanks."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _open_questions(name: str, benchmarks: str | None) -> dict[str, datasets.Dataset]:
    examples = _read_text(f"{name}/prompt.txt", benchmarks).rstrip("\n")
    return _dataset(
        [
            {**row, "prompt": f"{examples}\n\nQuestion: {row['question']}\nAnswer:"}
            for row in _read(f"{name}/test.jsonl", benchmarks)
        ]
    )


def _with_options(rows: list[Problem]) -> dict[str, datasets.Dataset]:
    """Without problems whose options are empty, as those are of ARC whose answers were numbered."""
    return _dataset([row for row in rows if row.get(row["answer"])])


def _letters(row: Problem) -> list[str]:
    return [letter for letter in "ABCD" if row.get(letter) is not None]


def _choices(row: Problem) -> str:
    letters = _letters(row)
    listed = ", ".join(letters[:-1]) + f" or {letters[-1]}"
    lines = [f"Answer the question by replying {listed}.", f"Question: {row['question']}"]
    return "\n".join([*lines, *(f"{letter}: {row[letter]}" for letter in letters), "Answer:"])


def _folder(benchmarks: str | None) -> Path:
    folder = benchmarks or os.environ.get("UNITE_BENCHMARKS")
    if not folder:
        raise ValueError(
            'benchmarks must be the folder with the data sets, given by --metadata \'{"benchmarks": "FOLDER"}\' or by '
            "the environment variable UNITE_BENCHMARKS, got none"
        )
    return Path(folder)


def _path(name: str, benchmarks: str | None) -> Path:
    path = _folder(benchmarks) / name
    if not path.exists():
        raise ValueError(f"benchmarks must hold {name}, but {path} does not exist")
    return path


def _read_text(name: str, benchmarks: str | None) -> str:
    return decode(_path(name, benchmarks).read_bytes(), place=name).replace("\r\n", "\n")


def _read(name: str, benchmarks: str | None) -> list[Problem]:
    path, rows = _path(name, benchmarks), []
    try:
        for number, record in read_records(path, expected="a JSON object"):
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {number}: must be a JSON object, got {type(record).__name__}")
            rows.append(record)
    except ValueError as error:
        raise ValueError(f"benchmarks: {error}") from error
    return rows


def _dataset(rows: list[Problem]) -> dict[str, datasets.Dataset]:
    return {"test": datasets.Dataset.from_list(rows)}
