"""Determine: the rule on the paper's tables, the result files, the command."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from unite_ext import ModelScore, select_models
from unite_ext.cli import app
from unite_ext.selection.rule import adaptive_weights
from unite_ext.selection.score_files import read_scores

# The paper prints no response lengths: every length in this file is invented.
INVENTED_LENGTH = 200.0


def scores(**accuracies: float) -> dict[str, ModelScore]:
    return {name: ModelScore(accuracy, INVENTED_LENGTH) for name, accuracy in accuracies.items()}


# Only differences enter the rule. 15.87 points is the gap of DeepSeek in the paper's Table 3; every level below, those
# of its GSM8K column and of Table 4 included, is invented, so that the order and the refusals are the paper's.
TABLE_3 = scores(DeepSeek=49.13, OpenChat=65.0, Mistral=61.0)
TABLE_3_GSM8K = scores(OpenChat=73.0, DeepSeek=59.0, Mistral=56.0)
TABLE_4 = scores(LLaMA3=68.0, LLaMA3_1=69.0, Qwen2=70.0)


def test_table_3_refuses_deepseek():
    selection = select_models(TABLE_3)
    assert selection.chosen == ["OpenChat", "Mistral"]
    assert list(selection.refused) == ["DeepSeek"]
    assert "15.87 points below that of OpenChat" in selection.refused["DeepSeek"]


def test_table_3_gsm8k_leaves_openchat_alone():
    selection = select_models(TABLE_3_GSM8K)
    assert selection.chosen == ["OpenChat"]
    assert "14.00 points" in selection.refused["DeepSeek"]
    assert "17.00 points" in selection.refused["Mistral"]


@pytest.mark.parametrize(
    ("maximum", "chosen"),
    [(1, ["Qwen2"]), (2, ["Qwen2", "LLaMA3_1"]), (3, ["Qwen2", "LLaMA3_1", "LLaMA3"])],
)
def test_table_4_up_to_a_maximum(maximum, chosen):
    selection = select_models(TABLE_4, max_models=maximum)
    assert selection.chosen == chosen
    assert all(f"there are {maximum} models already" in reason for reason in selection.refused.values())


@pytest.mark.parametrize(
    ("accuracy", "length", "good"),
    [
        (63.4, 100, True),  # 73.4 - 63.4 is a little more than 10 in floats
        (63.39, 100, False),
        (70.0, 200, True),
        (70.0, 201, False),
        (70.0, 50, True),
        (70.0, 49, False),
    ],
)
def test_borders_are_inclusive(accuracy, length, good):
    selection = select_models({"best": ModelScore(73.4, 100), "other": ModelScore(accuracy, length)})
    assert (selection.chosen == ["best", "other"]) == good


def test_a_refused_model_leaves_its_place_to_the_next():
    candidates = {
        "a": ModelScore(80, 100),
        "wordy": ModelScore(79, 250),
        "c": ModelScore(75, 120),
        "d": ModelScore(74, 99),
    }
    selection = select_models(candidates, max_models=2)
    assert selection.chosen == ["a", "c"]
    assert "2.50 times" in selection.refused["wordy"]
    assert "maximum" in selection.refused["d"]


def test_both_reasons_are_given_and_thresholds_move():
    candidates = {"a": ModelScore(80, 100), "b": ModelScore(60, 30)}
    reason = select_models(candidates).refused["b"]
    assert "20.00 points" in reason
    assert "1/3.33" in reason
    assert select_models(candidates, max_gap=20, max_length_ratio=4).chosen == ["a", "b"]


def test_equal_accuracies_keep_the_given_order():
    assert select_models(scores(b=50, a=50, c=50)).chosen == ["b", "a", "c"]


def test_adaptive_weights_are_deepens():
    # (75 - 25) : (50 - 25) : (20 - 25 < 0) = 50 : 25 : 0
    weights = adaptive_weights(
        [ModelScore(75, 1, chance=25), ModelScore(50, 1, chance=25), ModelScore(20, 1, chance=25)]
    )
    assert weights == pytest.approx([2 / 3, 1 / 3, 0])
    selection = select_models({"a": ModelScore(60, 10), "b": ModelScore(20, 10), "c": ModelScore(60, 10)})
    assert selection.adaptive_weights() == [0.5, 0.5]
    with pytest.raises(ValueError, match="above chance"):
        adaptive_weights([ModelScore(25, 1, chance=25)])


@pytest.mark.parametrize(
    ("candidates", "error", "message"),
    [
        ({}, ValueError, "at least two models to choose from, got none"),
        (scores(a=1), ValueError, "got only 'a'"),
        ([ModelScore(1, 1)], TypeError, "must map names to ModelScore, got list"),
        ({"a": 1.0, "b": 2.0}, TypeError, r"candidates\['a'\] must be a ModelScore, got float"),
        ({"a": ModelScore(1, 1), "b": ModelScore(None, 1)}, ValueError, "accuracy of 'b' is missing"),
        ({"a": ModelScore(1, 1), "b": ModelScore(1, None)}, ValueError, "mean_length of 'b' is missing.*log_samples"),
        ({"a": ModelScore(1, 1), "b": ModelScore(1, 0)}, ValueError, "mean_length of 'b' must be above 0"),
        (
            {"a": ModelScore(1, 1), "b": ModelScore(101, 1)},
            ValueError,
            "accuracy of 'b' must be from 0 to 100, got 101",
        ),
        ({"a": ModelScore(1, 1), "b": ModelScore(float("nan"), 1)}, ValueError, "got nan"),
        ({"a": ModelScore(1, 1), "b": ModelScore("1", 1)}, TypeError, "accuracy of 'b' must be a number, got str"),
        ({"a": ModelScore(1, 1, "x"), "b": ModelScore(1, 1, "y")}, ValueError, "same task, got a: x, b: y"),
    ],
)
def test_bad_candidates(candidates, error, message):
    with pytest.raises(error, match=message):
        select_models(candidates)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_models": 0}, "max_models must be from 1"),
        ({"max_gap": -1}, "max_gap must be at least 0, got -1"),
        ({"max_length_ratio": 0.5}, "max_length_ratio must be at least 1, got 0.5"),
    ],
)
def test_bad_thresholds(options, message):
    with pytest.raises(ValueError, match=message):
        select_models(TABLE_4, **options)


def write_lm_eval(folder, model, task, metrics, responses, date="2026-01-01T00-00-00.000001", model_args=None):
    """What `lm_eval --output_path folder --log_samples` leaves behind; every response is logged once per filter."""
    folder = folder / model.replace("/", "__")
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "results": {task: {"alias": task, **metrics}},
        "group_subtasks": {task: []},
        "config": {"model": "hf", "model_args": model_args or f"pretrained={model},dtype=float32"},
        "model_name": model,
    }
    (folder / f"results_{date}.json").write_text(json.dumps(result))
    lines = [
        json.dumps({"doc_id": i, "resps": [[response]], "filtered_resps": ["7"], "filter": name})
        for name in ("strict", "flexible")
        for i, response in enumerate(responses)
    ]
    if responses:
        (folder / f"samples_{task}_{date}.jsonl").write_text("\n".join(lines) + "\n")


def test_lm_eval_folders(tmp_path):
    write_lm_eval(
        tmp_path, "org/a", "gsm8k", {"exact_match,strict": 0.5, "exact_match_stderr,strict": 0.01}, ["abcd", "éé"]
    )
    write_lm_eval(tmp_path, "org/b", "gsm8k", {"exact_match,strict": 0.1}, ["old"])
    write_lm_eval(
        tmp_path, "org/b", "gsm8k", {"exact_match,strict": 0.45}, ["12345"], date="2026-01-02T00-00-00.000001"
    )
    write_lm_eval(tmp_path, "made_up_name", "gsm8k", {"exact_match,strict": 0.6}, ["xy"], model_args="models=a;b,k=10")
    assert read_scores([tmp_path]) == {
        "a;b": ModelScore(60.0, 2.0, "gsm8k"),
        "org/a": ModelScore(50.0, 3.0, "gsm8k"),
        "org/b": ModelScore(45.0, 5.0, "gsm8k"),
    }
    assert select_models(read_scores([tmp_path / "org__a", tmp_path / "org__b"])).chosen == ["org/a", "org/b"]


def test_several_tasks_are_averaged_and_must_be_the_same(tmp_path):
    for model, gap in (("a", 0.0), ("b", 0.1)):
        write_lm_eval(tmp_path, model, "x", {"acc,none": 0.8 - gap}, ["1234"], date="2026-01-01")
        write_lm_eval(tmp_path, model, "y", {"acc,none": 0.6 - gap}, ["12"], date="2026-01-02")
    read = read_scores([tmp_path])
    assert read["a"].accuracy == pytest.approx(70.0)
    assert (read["a"].mean_length, read["a"].task) == (3.0, "x+y")
    assert read_scores([tmp_path], tasks=["y"])["b"].task == "y"
    write_lm_eval(tmp_path, "c", "x", {"acc,none": 0.7}, ["1234"])
    with pytest.raises(ValueError, match=r"same task, got a: x\+y, b: x\+y, c: x"):
        select_models(read_scores([tmp_path]))
    with pytest.raises(ValueError, match="'c' has no result for y"):
        read_scores([tmp_path], tasks=["x", "y"])


def test_a_length_needs_the_samples_of_every_task(tmp_path):
    write_lm_eval(tmp_path, "a", "x", {"acc,none": 0.8}, ["1234"], date="2026-01-01")
    write_lm_eval(tmp_path, "a", "y", {"acc,none": 0.6}, [], date="2026-01-02")
    assert read_scores([tmp_path])["a"].mean_length is None
    assert read_scores([tmp_path], tasks=["x"])["a"].mean_length == 4.0


def test_metrics_and_missing_samples(tmp_path):
    both = {"exact_match,strict": 0.5, "exact_match,flexible": 0.75}
    write_lm_eval(tmp_path, "a", "gsm8k", both, [])
    with pytest.raises(ValueError, match="several values of exact_match; choose one with metric"):
        read_scores([tmp_path])
    read = read_scores([tmp_path], metric="exact_match,flexible")
    assert read == {"a": ModelScore(75.0, None, "gsm8k")}
    with pytest.raises(ValueError, match="no metric bleu; choose one with metric: exact_match,strict"):
        read_scores([tmp_path], metric="bleu")
    (tmp_path / "a" / "samples_gsm8k_2026-01-01T00-00-00.000001.jsonl").write_text('{"resps": [["-3.5", "True"]]}\n')
    assert read_scores([tmp_path], metric="exact_match,flexible")["a"].mean_length is None


def test_json_and_csv(tmp_path):
    (tmp_path / "s.json").write_text('{"a": {"accuracy": 70, "mean_length": 10, "task": "t"}}')
    (tmp_path / "s.csv").write_text("model,accuracy,mean_length,task,chance\nb,66.5,12,t,25\nc,60,,t,\n")
    assert read_scores([tmp_path / "s.json", tmp_path / "s.csv"], chance=50) == {
        "a": ModelScore(70.0, 10.0, "t", 50),
        "b": ModelScore(66.5, 12.0, "t", 25.0),
        "c": ModelScore(60.0, None, "t", 50),
    }
    with pytest.raises(ValueError, match="'a' occurs twice"):
        read_scores([tmp_path / "s.json", tmp_path / "s.json"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.csv", "model,accuracy\na,1\n", "expected the columns model, accuracy and mean_length"),
        ("s.csv", "model,accuracy,mean_length\na,high,1\n", "accuracy of 'a' must be a number, got 'high'"),
        ("s.json", "{", "expected JSON"),
        ("s.json", '{"a": 5}', "expected an object per model"),
        ("s.json", '{"a": {"acuracy": 5}}', "unknown 'acuracy'"),
        ("s.json", '[{"accuracy": 5}]', "entry 1 has no model name"),
        ("s.txt", "", r"expected a folder, a .json or a .csv file"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_scores([tmp_path / name])


def test_missing_paths(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_scores([tmp_path / "no"])
    with pytest.raises(ValueError, match=r"holds no results_\*.json"):
        read_scores([tmp_path])


def test_the_command(tmp_path):
    file = tmp_path / "scores.csv"
    file.write_text("model,accuracy,mean_length\nOpenChat,65.0,200\nMistral,61.0,200\nDeepSeek,49.13,200\n")
    done = CliRunner().invoke(app, ["select", str(file), "--json"])
    assert done.exit_code == 0
    result = json.loads(done.stdout)
    assert result["chosen"] == ["OpenChat", "Mistral"]
    assert result["weights"] == pytest.approx({"OpenChat": 65 / 126, "Mistral": 61 / 126})
    assert "15.87" in result["refused"]["DeepSeek"]
    done = CliRunner().invoke(app, ["select", str(file), "--max-gap", "3"], env={"COLUMNS": "400"})
    assert "refused: its accuracy of 49.13 is 15.87 points below" in done.stdout
    assert "Only one model is left" in done.stdout
    file.write_text("model,accuracy,mean_length\na,65.0,\nb,60,3\n")
    done = CliRunner().invoke(app, ["select", str(file)])
    assert done.exit_code == 1
    assert "mean_length of 'a' is missing" in done.stderr
