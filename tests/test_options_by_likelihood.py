"""The task files that choose an option by its likelihood: what is asked, and that a single member answers as itself."""

from __future__ import annotations

import json

import pytest
import torch
import toy_tokenizers
from toy_models import toy_model
from typer.testing import CliRunner

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'unite_ext[eval]'")

from unite_ext import VocabAlignment
from unite_ext.cli import app
from unite_ext.harness.tasks import utils

PROBLEMS = [
    {"question": "What cuts paper?", "A": "A spoon", "B": "Scissors", "answer": "B"},
    {"question": "What is cold?", "A": "Ice", "B": "Fire and flame", "answer": "A"},
]
EMPTY = {"question": "Which?", "A": "", "B": "", "C": "", "D": "", "answer": "2"}
"""As the authors' file has those of ARC whose options were numbered."""
FOUR = {"question": "Which is a colour?", "A": "Red", "B": "Two", "C": "Loud", "D": None, "answer": "A"}


def test_options_are_the_letters_with_a_text():
    assert utils.options(PROBLEMS[0]) == ["A spoon", "Scissors"]
    assert utils.right_option(PROBLEMS[0]) == 1
    assert utils.options(FOUR) == ["Red", "Two", "Loud"]
    assert utils.right_option(FOUR) == 0


def test_a_single_member_scores_the_options_as_its_own_model(tmp_path):
    """log P(" option" | "Question: …\\nAnswer:") of a plain forward; acc and acc_norm are the harness's."""
    tokenizer = toy_tokenizers.byte_level()
    model = toy_model("llama", tokenizer, seed=0, context=512).eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data = tmp_path / "data"
    for name, rows in {"piqa/validation.jsonl": PROBLEMS, "arc_challenge/test.jsonl": [EMPTY, FOUR]}.items():
        (data / name).parent.mkdir(parents=True)
        (data / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--model", str(tmp_path / "model"), "--benchmarks", str(data), "--output", str(tmp_path / "results")]
    tasks = "unite_piqa_likelihood,unite_arc_challenge_likelihood"
    done = CliRunner().invoke(app, ["eval", *arguments, "--tasks", tasks], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output

    for task, rows in {"unite_piqa_likelihood": PROBLEMS, "unite_arc_challenge_likelihood": [FOUR]}.items():
        (path,) = (tmp_path / "results").rglob(f"samples_{task}_*.jsonl")
        samples = sorted(map(json.loads, path.read_text().splitlines()), key=lambda sample: sample["doc_id"])
        assert len(samples) == len(rows)
        for sample, row in zip(samples, rows, strict=True):
            options = utils.options(row)
            expected = [
                own_likelihood(model, tokenizer, f"Question: {row['question']}\nAnswer:", f" {text}")
                for text in options
            ]
            found = [float(answer[0][0]) for answer in sample["resps"]]
            assert found == pytest.approx(expected, abs=1e-3)
            best = max(range(len(options)), key=expected.__getitem__)
            per_byte = max(range(len(options)), key=lambda n: expected[n] / len(options[n]))
            right = utils.right_option(row)
            assert (sample["acc"], sample["acc_norm"]) == (best == right, per_byte == right)


def own_likelihood(model, tokenizer, context: str, continuation: str) -> float:
    """log P(continuation | context) over the eligible ids, split as lm-evaluation-harness does."""
    start = len(tokenizer(context).input_ids)
    ids = torch.tensor([tokenizer(context + continuation).input_ids])
    classes = VocabAlignment.from_tokenizers([tokenizer]).classes[0]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, start - 1 : -1, : len(classes)].float()
    logits = logits.masked_fill(classes[: logits.shape[1]] < 0, -torch.inf)
    return float(logits.log_softmax(-1).gather(1, ids[0, start:, None]).sum())
