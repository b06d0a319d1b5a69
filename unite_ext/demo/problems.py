"""Draw short word problems with worked steps from a grammar.

A problem is a kind (the operations and their order), its numbers, a phrasing, names and things. Kind and numbers are
its *skeleton*. A hash of the skeleton decides the split that the problem belongs to, so that training never sees a test
problem with other names or another phrasing. There are five test splits, which share no skeleton either. Each is used
once, and only after training has changed since the one before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from random import Random

NAMES = ("Mia", "Leo", "Ana", "Tom", "Eva", "Sam", "Nora", "Ben", "Lucy", "Omar", "Ivy", "Max", "Zoë", "José", "Ruth",
         "Paul")  # fmt: skip
THINGS = ("shells", "stamps", "apples", "books", "cards", "coins", "pens", "stones", "plums", "rings", "nuts",
          "balloons", "tickets", "marbles")  # fmt: skip
FRACTIONS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}

SPLITS = ("train", "dev", "test-1", "test-2", "test-3", "test-4", "test-5")


@dataclass(frozen=True)
class Kind:
    """One kind of problem: how its numbers are drawn, its phrasings, and the steps of its solution."""

    name: str
    draw: Callable[[Random], tuple[int, ...]]
    """The numbers a, b, ... of the question."""
    solve: Callable[..., tuple[int, ...]]
    """The results u, v, ... of the steps; the last is the answer."""
    questions: tuple[str, ...]
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """A question, its worked steps and the answer."""

    kind: str
    numbers: tuple[int, ...]
    question: str
    steps: tuple[str, ...]
    answer: int

    @property
    def prompt(self) -> str:
        """The prompt for a model."""
        return prompt_of(self.question)

    @property
    def solution(self) -> str:
        """The text that a model should generate."""
        return f"{' '.join(self.steps)} The answer is {self.answer}."

    @property
    def skeleton(self) -> str:
        """Kind and numbers, which decide the split."""
        return f"{self.kind} {' '.join(map(str, self.numbers))}"

    @property
    def split(self) -> str:
        """The split this problem belongs to."""
        return split_of(self.skeleton)


def prompt_of(question: str) -> str:
    """Make the prompt for a question."""
    return question.strip() + "\n"


def read_answer(text: str) -> int | None:
    """Read the number after "The answer is" in a model's text; None if there is none."""
    _, found, rest = text.rpartition("The answer is ")
    digits = rest.strip().removesuffix(".")
    return int(digits) if found and digits.isascii() and digits.isdigit() else None


def split_of(skeleton: str) -> str:
    """The split of a skeleton: 70 % are for training, 10 % for development, 4 % for each of the five tests."""
    bucket = int.from_bytes(hashlib.sha256(skeleton.encode()).digest()[:4], "big") % 100
    if bucket < 70:
        return "train"
    return "dev" if bucket < 80 else SPLITS[2 + (bucket - 80) // 4]


def _gain_loss(r: Random) -> tuple[int, ...]:
    a, b = r.randint(5, 50), r.randint(3, 40)
    return a, b, r.randint(2, min(40, a + b - 1))


def _boxes(r: Random) -> tuple[int, ...]:
    return r.randint(2, 9), r.randint(2, 9), r.randint(2, 30)


def _share(r: Random) -> tuple[int, ...]:
    friends, each = r.randint(2, 9), r.randint(2, 9)
    a = r.randint(1, friends * each - 1)
    return a, friends * each - a, friends


def _times(r: Random) -> tuple[int, ...]:
    a, b = r.randint(2, 14), r.randint(2, 6)
    return a, b, r.randint(2, min(30, a * b))


def _change(r: Random) -> tuple[int, ...]:
    price, number = r.randint(2, 9), r.randint(2, 9)
    return r.randint(price * number, 99), number, price


def _fraction(r: Random) -> tuple[int, ...]:
    part = r.choice(list(FRACTIONS))
    return part * r.randint(2, 15), part, r.randint(2, 40)


def _rate(r: Random) -> tuple[int, ...]:
    per_hour, hours = r.randint(2, 9), r.randint(2, 9)
    return per_hour, hours, r.randint(1, per_hour * hours - 1)


def _compare(r: Random) -> tuple[int, ...]:
    a = r.randint(5, 60)
    return a, r.randint(2, min(40, a - 1))


def _week(r: Random) -> tuple[int, ...]:
    return r.randint(2, 35), r.randint(2, 45)


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "gain and loss",
            _gain_loss,
            lambda a, b, c: (a + b, a + b - c),
            (
                "{N} has {a} {things}, finds {b} more and then loses {c}. How many {things} does {N} have now?",
                "There were {a} {things}. {N} brought {b} and {M} took away {c}. How many {things} are there now?",
            ),
            ("{a}+{b}={u} {things}.", "{u}-{c}={v} are left."),
        ),
        Kind(
            "boxes",
            _boxes,
            lambda a, b, c: (a * b, a * b + c),
            (
                "{N} buys {a} boxes with {b} {things} in each and has {c} at home. How many {things} in all?",
                "In {a} boxes are {b} {things} each, and {c} are on the table. How many {things} are there?",
            ),
            ("{a}*{b}={u} in boxes.", "{u}+{c}={v} {things} in all."),
        ),
        Kind(
            "sharing",
            _share,
            lambda a, b, c: (a + b, (a + b) // c),
            (
                "{N} has {a} {things} and {M} has {b}. They give all to {c} children, each the same. How many does "
                "each get?",
                "{c} friends share the {a} {things} of {N} and the {b} of {M}. How many {things} does each get?",
            ),
            ("{a}+{b}={u} {things}.", "{u}/{c}={v} for each."),
        ),
        Kind(
            "times as many",
            _times,
            lambda a, b, c: (a * b, a + a * b, a + a * b - c),
            (
                "{N} has {a} {things}, {M} {b} times as many. They lose {c}. How many {things} do they have together?",
                "{M} has {b} times as many {things} as {N}, who has {a}. They sell {c}. How many do both have?",
            ),
            ("{M} has {a}*{b}={u} {things}.", "Together {a}+{u}={v}.", "{v}-{c}={w} in the end."),
        ),
        Kind(
            "change",
            _change,
            lambda a, b, c: (b * c, a - b * c),
            (
                "{N} has {a} dollars and buys {b} {things} for {c} dollars each. How many dollars are left?",
                "{b} {things} cost {c} dollars each. {N} pays with {a} dollars. How much does {N} get back?",
            ),
            ("The {things} cost {b}*{c}={u}.", "{a}-{u}={v} dollars."),
        ),
        Kind(
            "fractions",
            _fraction,
            lambda a, b, c: (a // b, a - a // b, a - a // b + c),
            (
                "{N} has {a} {things}, gives {M} {part} of them and then gets {c} new ones. How many has {N} now?",
                "Of {a} {things}, {part} got lost. Then {N} bought {c}. How many {things} are there now?",
            ),
            ("{a}/{b}={u} are gone.", "{a}-{u}={v} stay.", "{v}+{c}={w} {things}."),
        ),
        Kind(
            "work",
            _rate,
            lambda a, b, c: (a * b, a * b - c),
            (
                "{N} makes {a} {things} an hour for {b} hours and sells {c}. How many {things} does {N} keep?",
                "Every hour {N} paints {a} {things}. After {b} hours {M} buys {c}. How many {things} does {N} keep?",
            ),
            ("{N} makes {a}*{b}={u} {things}.", "{u}-{c}={v} to keep."),
        ),
        Kind(
            "comparing",
            _compare,
            lambda a, b: (a - b, a + a - b),
            (
                "{N} has {a} {things}, {b} more than {M}. How many {things} do they have together?",
                "{M} has {b} fewer {things} than {N}, who has {a}. How many do both have?",
            ),
            ("{M} has {a}-{b}={u} {things}.", "Together {a}+{u}={v}."),
        ),
        Kind(
            "three days",
            _week,
            lambda a, b: (a + a, a + b, a + b + a + a),
            (
                "{N} picks {a} {things} on Monday, {b} on Tuesday, and on Friday twice as many as on Monday. How many "
                "{things} in all?",
                "On Friday {N} sold twice as many {things} as on Monday. On Monday it was {a}, on Tuesday {b}. How "
                "many {things} in all?",
            ),
            ("Friday {a}+{a}={u}.", "{a}+{b}={v} {things} before.", "{v}+{u}={w} in all."),
        ),
    )
}


def make_problem(kind: str, numbers: tuple[int, ...], rng: Random) -> Problem:
    """Make a problem with this skeleton; `rng` chooses phrasing, names and things."""
    grammar = KINDS[kind]
    first, second = rng.sample(NAMES, 2)
    words: dict[str, object] = {"N": first, "M": second, "things": rng.choice(THINGS)}
    words.update(zip("abc", numbers))
    words["part"] = FRACTIONS.get(numbers[1], "")
    results = grammar.solve(*numbers)
    words.update(zip("uvw", results))
    question = rng.choice(grammar.questions).format(**words)
    return Problem(kind, numbers, question, tuple(s.format(**words) for s in grammar.steps), results[-1])


def draw_problems(split: str, seed: int, mixture: Mapping[str, float] | None = None) -> Iterator[Problem]:
    """Draw problems of a split without end; `mixture` weights the kinds, evenly by default."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    rng = Random(f"{split} {seed}")
    weights = mixture or dict.fromkeys(KINDS, 1.0)
    kinds, shares = list(weights), list(weights.values())
    while True:
        kind = rng.choices(kinds, shares)[0]
        problem = make_problem(kind, KINDS[kind].draw(rng), rng)
        if problem.split == split:
            yield problem


def problem_set(split: str, seed: int, size: int) -> list[Problem]:
    """Draw `size` problems with different skeletons, the kinds in turn."""
    streams = [draw_problems(split, seed, {kind: 1.0}) for kind in KINDS]
    problems: list[Problem] = []
    seen: set[str] = set()
    while len(problems) < size:
        stream = islice(streams[len(problems) % len(streams)], 5000)
        problem = next((p for p in stream if p.skeleton not in seen), None)
        if problem is None:
            raise ValueError(f"size must be at most the number of different problems in {split}, got {size}")
        seen.add(problem.skeleton)
        problems.append(problem)
    return problems
