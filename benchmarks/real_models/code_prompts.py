"""Python code that ensembles of real models write, greedily: does it compile, and is it indented by fours?

    python benchmarks/real_models/code_prompts.py --models FOLDER    (results/code_prompts.csv)

Every prompt of `code_prompts.jsonl` is the beginning of a function or class. What is written after it is kept up to the
first line that is no part of it any more. A text that was cut off loses its last line, and those that leave a bracket
or a string open. Blank lines are counted apart: a text that falls into them compiles. Rules: `alone`, one member;
`repeat` and `drop`, the paper's step with its `duplicates`, by either member leading; `exact`, `boundaries="exact"`.
The first half of the prompts decides defaults; `--half second` is kept for afterwards.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
import tokenize
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # to find lib

import torch
from lib.measure import RESULTS, append_csv, machine
from lib.real_models import ensembles, load, orders

from unite_ext import UniteEnsemble

RULES = ("alone", "repeat", "drop", "exact")


def kept_lines(prompt: str, answer: str, finished: bool) -> list[str]:
    """The lines of an answer that belong to the function or class that the prompt begins."""
    lines = answer.split("\n")
    for n, line in enumerate(lines):
        if line and not line[0].isspace() and (n or prompt.endswith("\n")):
            return lines[:n]
    if finished:
        return lines
    lines = lines[:-1]
    while lines and not is_closed(prompt + "\n".join(lines) + "\n"):
        lines.pop()
    return lines


def is_closed(source: str) -> bool:
    """Whether no bracket or string is open at the end."""
    try:
        for _ in tokenize.generate_tokens(io.StringIO(source).readline):
            pass
    except tokenize.TokenError:
        return False
    except SyntaxError:  # wrong before its end
        return True
    return True


def compiles(source: str) -> bool:
    """Whether Python takes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            compile(source, "answer", "exec")
        except (SyntaxError, ValueError):
            return False
    return True


def is_regular(lines: list[str]) -> bool:
    """Whether every line is indented by a multiple of four spaces."""
    return all((len(line) - len(line.lstrip())) % 4 == 0 and "\t" not in line for line in lines if line.strip())


def main() -> None:
    """Let every member, every pair and all three write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder of shared/models/get_models.py's models")
    parser.add_argument("--half", choices=("first", "second"), default="first")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    parser.add_argument("--members", nargs="+", help="only these members and ensembles, such as qwen+gemma")
    parser.add_argument("--tokens", type=int, default=64, help="the primary's, per answer")
    parser.add_argument("--prompts", type=int, help="only so many")
    parser.add_argument("--batch", type=int, help="how many are written at once; all by default")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--show", action="store_true", help="print every answer and what is wrong with it")
    parser.add_argument("--out", type=Path, default=RESULTS / "code_prompts.csv")
    arguments = parser.parse_args()
    rows = (Path(__file__).parent / "code_prompts.jsonl").read_text(encoding="utf-8").split("\n")
    prompts = [row["prompt"] for line in rows if line and (row := json.loads(line))["half"] == arguments.half]
    prompts = prompts[: arguments.prompts]
    try:
        wanted = ensembles(arguments.members)
    except ValueError as error:
        parser.error(str(error))
    members = load(arguments.models, wanted, getattr(torch, arguments.dtype))
    facts = machine()
    for names in wanted:
        for rule in arguments.rules:
            if (rule == "alone") != (len(names) == 1):
                continue
            options = {"boundaries": "exact"} if rule == "exact" else {}
            if rule in ("repeat", "drop"):
                options["duplicates"] = rule
            for order in orders(names, rule):
                start = time.perf_counter()
                ensemble = UniteEnsemble([members[name] for name in order])
                requests = list(
                    ensemble.generate_each(
                        prompts, batch_size=arguments.batch, max_new_tokens=arguments.tokens, **options
                    )
                )
                good = regular = written = blank = 0
                for request in requests:
                    prompt = prompts[request.index]
                    lines = kept_lines(prompt, request.decoded(), request.finish_reason == "eos")
                    source = prompt + "\n".join(lines) + "\n"
                    verdict = bool(lines) and compiles(source), bool(lines) and is_regular(lines)
                    good, regular = good + verdict[0], regular + verdict[1]
                    empty = sum(not line.strip() for line in lines)
                    written, blank = written + len(lines) - empty, blank + empty
                    if arguments.show:
                        print(f"--- compiles, regular: {verdict}\n{source}")
                row = {
                    "half": arguments.half, "dtype": arguments.dtype, "members": "+".join(order), "rule": rule,
                    "prompts": len(prompts), "compile": good, "regular": regular, "lines": written, "blank": blank,
                    "steps": sum(request.num_steps for request in requests),
                }  # fmt: skip
                append_csv(arguments.out, [facts | row])
                shown = " ".join(
                    str(row[name]) for name in ("members", "rule", "compile", "regular", "lines", "blank", "steps")
                )
                print(f"{shown} of {len(prompts)}, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
