"""The demo: its problems, its models, its command and its training script."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from fractions import Fraction
from itertools import combinations, islice
from pathlib import Path

import pytest
import torch
import train_models as training
from demo_tokenizers import continuation
from recipes import RECIPES
from typer.testing import CliRunner

from unite_ext import Trace, UniteEnsemble
from unite_ext.cli import app
from unite_ext.demo import COMPARABLE, MODELS, WEAK, load_member, model_folder, run
from unite_ext.demo.problems import (
    FRACTIONS,
    KINDS,
    SPLITS,
    draw_problems,
    make_problem,
    problem_set,
    read_answer,
    split_of,
)

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
# What each kind asks, from the numbers in its question, written down apart from the grammar.
ANSWERS = {
    "gain and loss": lambda a, b, c: a + b - c,
    "boxes": lambda a, b, c: a * b + c,
    "sharing": lambda a, b, c: Fraction(a + b, c),
    "times as many": lambda a, b, c: a * (b + 1) - c,
    "change": lambda a, b, c: a - b * c,
    "fractions": lambda a, b, c: a * Fraction(b - 1, b) + c,
    "work": lambda a, b, c: a * b - c,
    "comparing": lambda a, b: 2 * a - b,
    "three days": lambda a, b: 3 * a + b,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use one thread: models this small gain nothing from a second."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def members():
    return {name: load_member(name) for name in MODELS}


def drawn(split: str, count: int) -> list:
    return list(islice(draw_problems(split, seed=5), count))


def test_every_answer_is_right_by_independent_evaluation():
    for problem in drawn("train", 1500):
        assert ANSWERS[problem.kind](*problem.numbers) == problem.answer, problem.question
        assert problem.answer >= 0


def test_questions_say_their_numbers():
    for problem in drawn("train", 1500):
        said = Counter(map(int, re.findall(r"\d+", problem.question)))
        numbers = list(problem.numbers)
        if problem.kind == "fractions":
            assert FRACTIONS[numbers.pop(1)] in problem.question
        assert said == Counter(numbers), problem.question


def test_worked_steps_are_true_and_lead_to_the_answer():
    for problem in drawn("train", 1500):
        steps = re.findall(r"(\d+)([-+*/])(\d+)=(\d+)", problem.solution)
        assert len(steps) == len(problem.steps) >= 2
        known = set(problem.numbers)
        for left, sign, right, result in steps:
            a, b = int(left), int(right)
            expected = {"+": a + b, "-": a - b, "*": a * b, "/": Fraction(a, b)}[sign]
            assert expected == int(result), problem.solution
            assert {a, b} <= known, f"a number from nowhere: {problem.solution}"
            known.add(int(result))
        assert int(steps[-1][3]) == problem.answer == read_answer(problem.solution)


def test_every_kind_and_phrasing_is_drawn():
    problems = drawn("train", 1500)
    assert {p.kind for p in problems} == KINDS.keys() == ANSWERS.keys()
    # Without names, things and numbers, what is left of a question is its phrasing.
    words = re.compile(r"\d+|\b[A-ZÀ-Ý]\w+\b")
    for kind in KINDS:
        shapes = {words.sub("", p.question).split(" ", 3)[-1][-20:] for p in problems if p.kind == kind}
        assert len(shapes) > 1, kind


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("7*7=49 in boxes. The answer is 49.", 49),
        ("The answer is 4. No. The answer is 5", 5),
        ("The answer is .", None),
        ("The answer is -3.", None),
        ("The answer is ²", None),
        ("7*7=49", None),
        ("49", None),
        ("", None),
    ],
)
def test_reading_an_answer(text, answer):
    assert read_answer(text) == answer


def test_splits_are_disjoint_and_complete():
    skeletons = {split: {p.skeleton for p in drawn(split, 1200)} for split in SPLITS}
    for a, b in combinations(SPLITS, 2):
        assert not skeletons[a] & skeletons[b], (a, b)
    share = Counter(split_of(f"boxes {i} 0 0") for i in range(20_000))
    assert share.keys() == set(SPLITS)
    assert 0.68 < share["train"] / 20_000 < 0.72
    assert 0.09 < share["dev"] / 20_000 < 0.11


def test_a_split_is_decided_by_kind_and_numbers_alone():
    import random

    a, b = (make_problem("boxes", (3, 5, 7), random.Random(seed)) for seed in (1, 2))
    assert a.question != b.question
    assert a.split == b.split
    with pytest.raises(ValueError, match="split must be one of"):
        next(draw_problems("tests", 1))


def test_the_test_problems_are_fixed_held_out_and_different():
    test = problem_set(run.TEST_SPLIT, run.TEST_SEED, run.TEST_SIZE)
    assert test == problem_set(run.TEST_SPLIT, run.TEST_SEED, run.TEST_SIZE)
    assert len({p.skeleton for p in test}) == run.TEST_SIZE
    assert set(Counter(p.kind for p in test).values()) == {run.TEST_SIZE // len(KINDS)}
    seen = {p.skeleton for p in drawn("train", 5000)} | {p.skeleton for p in problem_set("dev", run.DEV_SEED, 360)}
    assert not seen & {p.skeleton for p in test}
    with pytest.raises(ValueError, match="size must be at most the number of different problems"):
        problem_set("test-1", 1, 5000)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"), [(0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (50, 100, 0.4038, 0.5962)]
)
def test_wilson_interval(right, total, low, high):
    assert run.wilson(right, total) == pytest.approx((low, high), abs=1e-4)


def test_wilson_refuses_nonsense():
    with pytest.raises(ValueError, match="3 of 2"):
        run.wilson(3, 2)


def test_models_load_plainly_and_offline(monkeypatch):
    import socket
    import time

    from transformers import AutoModelForCausalLM, AutoTokenizer

    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    kinds, seconds = set(), {}
    for name in (MODELS[0], *MODELS):  # the first time for its imports
        started = time.process_time()
        tokenizer = AutoTokenizer.from_pretrained(model_folder(name))
        model = AutoModelForCausalLM.from_pretrained(model_folder(name))
        seconds[name] = time.process_time() - started
        assert model.dtype == torch.float32
        assert model.num_parameters() < 1_000_000
        assert len(tokenizer) == model.config.vocab_size
        kinds.add(model.config.model_type)
    assert kinds == {"llama", "qwen2", "gpt_neox", "mistral"}
    assert sum(seconds.values()) < 2
    with pytest.raises(ValueError, match="name must be one of"):
        model_folder("gpt-4")


def test_packaged_sizes():
    sizes = {n: sum(f.stat().st_size for f in model_folder(n).iterdir()) for n in MODELS}
    assert all(100_000 < size < 4_000_000 for size in sizes.values()), sizes
    assert sum(sizes.values()) < 16_000_000


def test_tokenizers_cut_the_same_text_differently(members):
    text = "Zoë has 12*3=36 shells."
    cut = {}
    for name, member in members.items():
        ids = member.tokenizer(text, add_special_tokens=False).input_ids
        assert member.tokenizer.decode(ids).strip() == text
        cut[name] = tuple(member.tokenizer.convert_ids_to_tokens(ids))
    assert len(set(cut.values())) == len(MODELS)
    assert cut["mistral"][0].startswith("▁")
    assert "<0xC3>" in cut["mistral"]
    assert "Ġ12" in cut[WEAK]
    assert "Ġ1" in cut["llama"]
    assert "Ġ1" not in cut["qwen2"]


def test_training_and_ensemble_continue_a_text_alike(members):
    problems = drawn("dev", 40)
    ensemble = UniteEnsemble(list(members.values()))
    for m, member in enumerate(ensemble.members):
        encode = continuation(member.tokenizer)
        for problem in problems:
            text = problem.solution
            for start in (0, 3, len(text) // 2):
                ids = encode.encode(text[start:]).ids
                assert ids == list(ensemble.alignment.encode_continuation(m, text[start:].encode()))


def test_three_are_comparable_and_the_fourth_is_not(members):
    """On fewer development problems than the committed numbers, with room for chance."""
    problems = problem_set("dev", run.DEV_SEED, 90)
    results = {name: run.work([members[name]], problems) for name in MODELS}
    good = [results[name].accuracy for name in COMPARABLE]
    assert max(good) - min(good) < 0.2
    assert min(good) - results[WEAK].accuracy > 0.1
    lengths = [results[name].mean_length for name in COMPARABLE]
    assert max(lengths) < 2 * min(lengths)
    together = run.work([members[name] for name in COMPARABLE], problems)
    assert together.accuracy > max(good)


def read_results(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"demo_{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_committed_numbers_keep_the_promises():
    alone = {r["members"]: r for r in read_results("dev") if r["members"] in MODELS}
    good = [float(alone[name]["accuracy"]) for name in COMPARABLE]
    assert good == sorted(good, reverse=True), "COMPARABLE must be best first"
    assert good[0] - good[-1] <= 10
    assert good[-1] - float(alone[WEAK]["accuracy"]) > 10
    lengths = [float(alone[name]["mean_length"]) for name in COMPARABLE]
    assert max(lengths) < 2 * min(lengths)


def test_the_test_was_run_with_todays_models(members):
    """The committed test numbers belong to these models: the first line of the last run can be reproduced."""
    last = [r for r in read_results("test") if r["split"] == run.TEST_SPLIT and r["members"] == COMPARABLE[0]][-1]
    assert int(last["seed"]) == run.TEST_SEED
    problems = problem_set(run.TEST_SPLIT, run.TEST_SEED, run.TEST_SIZE)
    right = sum(run.work([members[COMPARABLE[0]]], problems).right)
    # Another CPU may round another way now and then.
    assert abs(right - int(last["right"])) <= 3


def test_the_page_says_nothing_that_was_not_measured():
    page = (RESULTS.parent.parent / "docs" / "demo.md").read_text()
    measured = {
        f"{abs(float(value)) / (1000 if column == 'kilobytes' else 1):.1f}"
        for name in ("dev", "test", "kinds", "k", "gap", "rounds", "training")
        for row in read_results(name)
        for column, value in row.items()
        if re.fullmatch(r"-?\d+(\.\d+)?", value)
    }
    said = re.findall(r"(?<![\d.])\d+\.\d(?![\d.])", page.split("## The models")[1])
    assert len(said) > 50
    assert [number for number in said if number not in measured] == []


def test_the_demo_command_prints_a_table_and_a_worked_problem():
    result = CliRunner().invoke(app, ["demo", "--problems", "9"], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    for names in run.lineups():
        assert " + ".join(names) in result.output
    assert "9 held-out problems" in result.output
    assert f"overruled {COMPARABLE[0]}" in result.output


def test_a_problem_of_ones_own(tmp_path):
    question = "Leo has 23 stamps, finds 18 more and then loses 5. How many stamps does Leo have now?"
    path = tmp_path / "trace.json"
    result = CliRunner().invoke(app, ["demo", "--problem", question, "--json", "--trace", str(path)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["results"] == []
    worked = found["worked"]
    assert worked["question"] == question
    assert worked["alone"].keys() == set(MODELS)
    assert worked["together"] == Trace.load(path).text
    assert worked["together"] == "".join(step["text"] for step in worked["steps"])
    assert all(step["overruled"] == (step["primary_text"] is not None) for step in worked["steps"])
    assert all(step["votes"].keys() == set(COMPARABLE) for step in worked["steps"])


@pytest.mark.parametrize(
    ("problem", "message"), [("  ", "must be a question in quotes"), ("How many pens? " * 200, "context holds")]
)
def test_a_problem_that_cannot_be_worked(problem, message):
    result = CliRunner().invoke(app, ["demo", "--problem", problem], env={"COLUMNS": "300"})
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_overruled_steps_are_those_where_the_primary_wanted_something_else(members):
    problems = problem_set("dev", run.DEV_SEED, 60)
    three = [members[n] for n in COMPARABLE]
    alone, together = run.work(three[:1], problems), run.work(three, problems)
    differs = next(p for p, a, b in zip(problems, alone.texts, together.texts) if a != b)
    trace = run.work_one(three, differs.question)
    first = next(i for i, step in enumerate(trace.steps) if step.decided == "overruled")
    said = "".join(step.piece for step in trace.steps[:first])
    step = trace.steps[first]
    own = alone.texts[problems.index(differs)]
    # Up to there the primary alone says the same, then what it wanted.
    assert own.startswith(said + trace.token_text(0, step.ids[step.favorites[0]][0]))
    assert trace.text.startswith(said + step.piece)
    assert run.work_one(three[:1], differs.question).agreement_rate == 1


@pytest.mark.parametrize("name", MODELS)
def test_training_makes_a_model_that_loads(name, tmp_path, monkeypatch):
    trained_with = training.build_tokenizer(RECIPES[name])
    monkeypatch.setattr(training, "build_tokenizer", lambda recipe: trained_with)  # once, which takes a while
    for constant in ("BATCH", "POOL"):
        monkeypatch.setattr(training, constant, 4)
    folder = training.train(RECIPES[name], tmp_path / "out", steps=4, checkpoints=tmp_path / "checkpoints")
    member = load_member(name, folder)
    assert member.model.dtype == torch.float32
    text = "Zoë has 12*3=36 shells."
    assert member.tokenizer(text).input_ids == trained_with(text).input_ids
    assert member.tokenizer.get_vocab() == load_member(name).tokenizer.get_vocab(), "the package's is another one"
    assert UniteEnsemble([member]).generate("How many?\n", max_new_tokens=3)
    facts = json.loads((folder / "training.json").read_text())
    assert facts["steps"] == 4
    assert facts["vocabulary"] == RECIPES[name].vocab_size
    assert any((tmp_path / "checkpoints").iterdir())


def test_only_the_solution_is_learned():
    recipe = RECIPES["llama"]
    tokenizer = training.build_tokenizer(recipe)
    ids, labels = next(training.batches(recipe, tokenizer))
    for row, learned in zip(ids, labels):
        solution = tokenizer.decode(learned[learned >= 0])
        assert re.match(r".*The answer is \d+\.<\|end_of_text\|>$", solution)
        assert (row[learned >= 0] == learned[learned >= 0]).all()
        assert "?" not in solution
