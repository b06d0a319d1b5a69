"""Arguments that are wrong wherever they are given: what was expected, what came, before any work."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from unite_ext import GenerationOptions, StepOptions, UniteEnsemble, select_models
from unite_ext.cli import app
from unite_ext.methods.registry import check_method
from unite_ext.methods.unite import Unite
from unite_ext.options import check_boundaries
from unite_ext.selection.rule import adaptive_weights
from unite_ext.selection.score_files import read_scores
from unite_ext.structured.compiled import MAX_LENGTH

CALLS = [
    (lambda: StepOptions(weights="12"), TypeError, "weights must be numbers, one per member, got '12'"),
    (
        lambda: check_boundaries(StepOptions(boundaries="exact", combine="product"), GenerationOptions()),
        ValueError, "combine must be 'mean' with boundaries='exact', got 'product'",
    ),
    (lambda: UniteEnsemble("gpt2"), TypeError, "models must be a list of loaded models, got str"),
    (lambda: select_models({}), ValueError, "candidates must hold at least two models to choose from, got none"),
    (lambda: adaptive_weights([]), ValueError, "scores must hold at least one model, got none"),
    (lambda: read_scores("scores.csv"), TypeError, "paths must be a list of paths, got str"),
    (lambda: check_method("deepen-avg", {"eta": "much"}, 2), TypeError, "eta must be a number, got str"),
    (lambda: check_method(Unite.__new__(Unite), {"k": 3}, 2), TypeError, "method_options must be None if method is"),
    (lambda: GenerationOptions(regex="a" * (MAX_LENGTH + 1)), ValueError, f"at most {MAX_LENGTH} characters"),
    (lambda: GenerationOptions(grammar="a" * (MAX_LENGTH + 1)), ValueError, f"at most {MAX_LENGTH} characters"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), CALLS, ids=[message for _, _, message in CALLS])
def test_what_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '[{"model": "a", "accuracy": 50, "mean_length": 9}, {"model": "a", "accuracy": 60, "mean_length": 9}]',
            "'a' occurs twice",
        ),
        ('{"results": {}, "config": {}}', "is a result of lm_eval; give its folder"),
        ("[1]", "must hold an object per model"),
    ],
)
def test_files_of_scores(tmp_path, content, message):
    file = tmp_path / "scores.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_scores([file])


def test_a_file_without_a_trace(tmp_path):
    file = tmp_path / "traces.json"
    file.write_text(json.dumps({"format": "unite-trace", "version": 1, "traces": []}))
    result = CliRunner().invoke(app, ["trace", str(file)], env={"COLUMNS": "300"})
    assert result.exit_code == 1
    assert "traces.json must hold a trace, got none" in result.output
