"""The plug-in for lm-evaluation-harness, the task files, `unite eval`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import toy_tokenizers
from toy_models import toy_model
from typer.testing import CliRunner

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'unite_ext[eval]'")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import TemplateLM  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402

from unite_ext import StepOptions, UniteEnsemble  # noqa: E402
from unite_ext.cli import app  # noqa: E402
from unite_ext.decoding.likelihood import score_continuations  # noqa: E402
from unite_ext.harness import adapter  # noqa: E402
from unite_ext.harness.adapter import UniteLM  # noqa: E402
from unite_ext.harness.tasks import utils  # noqa: E402
from unite_ext.selection.score_files import read_scores  # noqa: E402

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two saved toy models."""
    paths = []
    for i, (kind, tokenizer) in enumerate(
        [("llama", toy_tokenizers.byte_level()), ("mistral", toy_tokenizers.sentencepiece())]
    ):
        path = tmp_path_factory.mktemp(f"model{i}")
        toy_model(kind, tokenizer, seed=i, context=512).save_pretrained(path)
        tokenizer.save_pretrained(path)
        paths.append(str(path))
    return paths


@pytest.fixture(scope="module")
def ensemble(folders):
    return UniteEnsemble.from_pretrained(folders)


@pytest.fixture
def model(ensemble):
    return UniteLM(ensemble=ensemble, batch_size=3, progress=False)


def request(*args):
    return SimpleNamespace(args=args)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    """The six data sets in small, in the shape of the real files."""
    root = tmp_path_factory.mktemp("benchmarks")
    choices = {"question": "Which?", "A": "one", "B": "two", "C": "three", "D": "four", "answer": "B"}
    write(
        root / "gsm8k/test.jsonl", [{"question": f"{i} + 1?", "answer": f"So the answer is {i + 1}"} for i in range(3)]
    )
    (root / "gsm8k/prompt.txt").write_text("Question: 1 + 1?\nLet's think step by step\nThe answer is \\boxed{2}\n")
    write(root / "arc_challenge/test.jsonl", [choices])
    write(root / "piqa/validation.jsonl", [{k: v for k, v in choices.items() if k not in "CD"}])
    write(root / "mmlu/dev/law.jsonl", [{**choices, "domain": "law", "question": f"dev {i}"} for i in range(7)])
    write(root / "mmlu/test/law.jsonl", [{**choices, "domain": "law"}])
    for name in ("nq", "triviaqa"):
        write(root / name / "test.jsonl", [{"question": "who", "answer": ["The Beatles", "Beatles"]}])
        (root / name / "prompt.txt").write_text("Question: x\nAnswer: y\n")
    return root


def test_it_is_registered():
    assert get_model("unite") is UniteLM


def test_generate_until(model, ensemble):
    options = {"until": ["e", "</s>"], "max_gen_toks": 8, "do_sample": False, "temperature": 0.0}
    requests = [request("A", options), request("James met", {"max_gen_toks": 5}), request("The quick", options)]
    expected = [
        ensemble.generate("A", stop=["e", "</s>"], max_new_tokens=8),
        ensemble.generate("James met", max_new_tokens=5),
        ensemble.generate("The quick", stop=["e", "</s>"], max_new_tokens=8),
    ]
    assert model.generate_until(requests) == expected
    with pytest.raises(ValueError, match="generation option 'num_beams' is not known"):
        model.generate_until([request("A", {"num_beams": 2})])


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 0.0},
        {"temperature": "0.5"},
        {"do_sample": False, "temperature": 0.7},
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.9},
        {"do_sample": None, "temperature": 0.3},
        {"max_gen_toks": 7, "max_tokens": 9},
        {"max_tokens": 9},
        {"max_completion_tokens": 5, "until": None},
        {"until": "x"},
    ],
)
def test_generation_options_are_the_harness_own(model, given):
    """Whether a request samples, how, and how long: as the harness's normalisation for its own models says."""
    from lm_eval.models.utils import normalize_gen_kwargs

    expected = normalize_gen_kwargs(dict(given), default_max_gen_toks=model.max_gen_toks)
    got = model._generation_options(given)
    assert got["do_sample"] == expected["do_sample"]
    assert got["max_new_tokens"] == expected["max_gen_toks"]
    assert got["stop"] == [s for s in expected["until"] if s]
    if got["do_sample"]:
        assert got["temperature"] == float(given["temperature"])
        assert got.get("top_p") == given.get("top_p")
    else:
        assert "temperature" not in got


def test_a_temperature_alone_samples(model, ensemble):
    options = {"temperature": 0.7, "seed": 5, "max_gen_toks": 12}
    (text,) = model.generate_until([request("James met", options)])
    sampled = ensemble.generate("James met", do_sample=True, temperature=0.7, seed=5, max_new_tokens=12)
    greedy = ensemble.generate("James met", max_new_tokens=12)
    assert text == sampled != greedy


@pytest.mark.parametrize("space", [" ", "\n", "\n\n", " \n\t ", "\u3000", "\xa0"])
def test_white_space_moves_to_the_continuation(model, ensemble, space):
    """All of it, as in the harness's own models: their `_encode_pair` leaves `context.rstrip()`."""
    pairs = []
    harness = SimpleNamespace(backend="causal", tok_encode=lambda text, **_: pairs.append(text) or [])
    TemplateLM._encode_pair(harness, f"James met{space}", "Jam")
    assert pairs == [f"James met{space}Jam", "James met"]  # the whole, and what is left of the context
    encode = ensemble.alignment.encode_continuation
    ((got, _),) = model.loglikelihood([request(f"James met{space}", "Jam")])
    (found,) = score_continuations(ensemble, [("James met", encode(0, f"{space}Jam".encode()))], likelihood="full")
    assert got == pytest.approx(found.log_prob, abs=1e-4)
    ((got, _),) = model.loglikelihood([request(space, "Jam")])
    assert got == pytest.approx(model.loglikelihood([request("", f"{space}Jam")])[0][0], abs=1e-4)


def test_loglikelihood(model, ensemble):
    encode = ensemble.alignment.encode_continuation
    requests = [request("A", " the"), request("James met ", "Jam"), request("", "The")]
    got = model.loglikelihood(requests)
    pairs = [("A", encode(0, b" the")), ("James met", encode(0, b" Jam"))]
    scored = score_continuations(ensemble, pairs, batch_size=1, likelihood="full")
    first, second = sorted(scored, key=lambda own: own.index)
    assert got[0] == (pytest.approx(first.log_prob, abs=1e-4), first.is_greedy)
    assert got[1] == (pytest.approx(second.log_prob, abs=1e-4), second.is_greedy)
    # Llama's BOS, Mistral's BOS: the same as an empty prompt through each tokenizer.
    start = [member.encode_prompt("") for member in ensemble.members]
    (alone,) = score_continuations(ensemble, [(start, encode(0, b"The"))], likelihood="full")
    assert got[2][0] == pytest.approx(alone.log_prob, abs=1e-4)
    text = ensemble.generate("A", max_new_tokens=3)
    assert model.loglikelihood([request("A", text)])[0][1] == (encode(0, text.encode()) == ensemble.generate(
        "A", max_new_tokens=3, return_dict=True).token_ids[0][0])  # fmt: skip
    with pytest.raises(ValueError, match="a continuation must not be empty"):
        model.loglikelihood([request("A", "")])


class PlainModel(TemplateLM):
    """A transformers model under the harness: its way of splitting ids, and one plain pass per pair."""

    def __init__(self, model, tokenizer):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    @property
    def eot_token_id(self):
        return self.tokenizer.eos_token_id

    def tok_encode(self, string, **_):
        return self.tokenizer.encode(string)

    def _loglikelihood_tokens(self, requests, **_):
        found = []
        for _, context, continuation in requests:
            logits = self.model(torch.tensor([context + continuation])).logits[0, -len(continuation) - 1 : -1]
            log_probs = logits.detach().float().log_softmax(dim=1)
            targets = torch.tensor(continuation)
            greedy = bool((log_probs.argmax(dim=1) == targets).all())
            found.append((float(log_probs.gather(1, targets[:, None]).sum()), greedy))
        return found

    def loglikelihood_rolling(self, requests, **_):
        raise NotImplementedError

    def generate_until(self, requests, **_):
        raise NotImplementedError


@pytest.mark.parametrize("m", [0, 1])
def test_a_member_alone_gives_the_numbers_of_the_harness_own_model(folders, m):
    """Special tokens are not eligible; a trained model gives them nearly nothing, and so are these toys made to."""
    alone = UniteEnsemble.from_pretrained(folders[m : m + 1])
    member = alone.members[0]
    eligible = alone.alignment.classes[0][: alone.alignment.vocab_sizes[0]] >= 0
    ineligible = torch.ones(member.num_logits, dtype=torch.bool)
    ineligible[: len(eligible)] = ~eligible

    def forget_special_tokens(_model, _inputs, output):
        output.logits[..., ineligible] = -100.0

    handle = member.model.register_forward_hook(forget_special_tokens)
    try:
        pairs = [("A", " the"), ("James met ", "Jam"), ("The quick", " brown fox, 中文 and 2024"), ("x:", "y")]
        ours = UniteLM(ensemble=alone, progress=False).loglikelihood([request(*pair) for pair in pairs])
        harness = PlainModel(member.model, member.tokenizer)
        theirs = harness.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs])
        union = UniteLM(ensemble=alone, progress=False, likelihood="union")
        flattered = union.loglikelihood([request(*pair) for pair in pairs])
    finally:
        handle.remove()
    for (got, greedy), (expected, expected_greedy), (more, _) in zip(ours, theirs, flattered):
        assert got == pytest.approx(expected, abs=1e-4)
        assert greedy == expected_greedy
        assert more > expected


def test_likelihoods_are_full_where_the_method_takes_a_mean(ensemble, folders):
    assert UniteLM(ensemble=ensemble).likelihood == "full"
    assert UniteLM(ensemble=ensemble).get_model_info()["likelihood"] == "full"
    assert UniteLM(folders, method="gac", progress=False).likelihood == "union"
    assert UniteLM(folders, combine="product", weights="1.5;-0.5", progress=False).likelihood == "union"
    with pytest.raises(ValueError, match="likelihood must be one of 'union', 'full', got 'own'"):
        UniteLM(ensemble=ensemble, likelihood="own")


def test_loglikelihood_rolling(model, ensemble, monkeypatch):
    text = "James met Jam at the Jamboree: 2024 feet, or 1,234.5 metres"
    whole = model.loglikelihood_rolling([request(text), request("")])
    assert whole[0] == pytest.approx(model.loglikelihood([request("", text)])[0][0], abs=1e-3)
    assert whole[1] == 0
    # In windows of 4: every token once, each with up to four before it.
    monkeypatch.setattr(UniteLM, "_window", lambda self: 4)
    windows, short = model.loglikelihood_rolling([request(text), request("Jam")])
    assert short == pytest.approx(model.loglikelihood([request("", "Jam")])[0][0], abs=1e-3)
    encode = ensemble.alignment.encode_continuation
    ids, starts = encode(0, text.encode()), [member.encode_prompt("") for member in ensemble.members]
    total = 0.0
    for start in range(0, len(ids), 4):
        targets = ids[start : start + 4]
        # The last window is filled up with ids that come before it
        before = ids[max(0, start - 1 - (4 - len(targets))) : start]
        data = b"".join(ensemble.alignment.token_bytes(0, i) for i in before)
        prompt = [own + encode(m, data) for m, own in enumerate(starts)]
        total += next(score_continuations(ensemble, [(prompt, targets)], likelihood="full")).log_prob
    assert len(ids) > 8
    assert windows == pytest.approx(total, abs=1e-3)


def test_chat_goes_through_every_members_own_template(folders):
    ensemble = UniteEnsemble.from_pretrained(folders)
    model = UniteLM(ensemble=ensemble, progress=False)
    history = [{"role": "user", "content": "Hi é"}]
    with pytest.raises(ValueError, match=r"chat templates are asked for, but .* has none"):
        model.chat_template(True)
    for i, member in enumerate(ensemble.members):
        member.tokenizer.chat_template = TEMPLATE + "AB"[i]
    assert model.chat_template(True) == f"{TEMPLATE}A\n\n{TEMPLATE}B"
    context = model.apply_chat_template(history)
    got = model.generate_until([request(context, {"max_gen_toks": 4})])
    assert got == [ensemble.generate(history, max_new_tokens=4)]
    assert got != ensemble.generate(["Hi é"], max_new_tokens=4)
    started = [*history, {"role": "assistant", "content": "Well,"}]  # as a task's gen_prefix
    context = model.apply_chat_template(started, add_generation_prompt=False)
    got = model.generate_until([request(context, {"max_gen_toks": 4})])
    assert got == [ensemble.generate(started, max_new_tokens=4)]
    assert all(m.tokenizer.decode(m.encode_prompt(started)).endswith("Well,") for m in ensemble.members)
    with pytest.raises(ValueError, match="must end with an assistant's message"):
        model.apply_chat_template(history, add_generation_prompt=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("k=3", "models must name the members"),
        ("models=a;;b", "models must be names separated by ';'"),
        ("models=a;b,batch_size=auto", "batch_size must be a number, got 'auto'"),
        ("models=a;b,weights=1;x", "weights must be numbers separated by ';'"),
        ("models=a;b,method=nope", "method must be one of"),
        ("models=a;b,method=deepen-avg,method_options=eta", "method_options must be 'name:value"),
        ("models=a;b,k=0", "k must be from 1"),
    ],
)
def test_bad_arguments_before_any_model_is_loaded(arguments, message):
    with pytest.raises(ValueError, match=message):
        UniteLM.create_from_arg_string(arguments)


def test_arguments_reach_the_ensemble(folders):
    options = "primary=1,k=4,weights=1;3,method=deepen-adapt,method_options=eta:0.2;anchors:20"
    model = UniteLM.create_from_arg_string(f"models={';'.join(folders)},{options}", {"batch_size": "2"})
    assert model.ensemble.step_options == StepOptions(k=4, primary=1, weights=(1.0, 3.0))
    assert model.ensemble.method == "deepen-adapt"
    assert model.ensemble.method_options == {"eta": 0.2, "anchors": 20}
    assert (model.batch_size, model.primary) == (2, 1)


def test_devices(monkeypatch, caplog):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert adapter._device("cuda:0") == {}
    assert "no CUDA device here" in caplog.text
    assert adapter._device("cpu") == {"device": "cpu"}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert adapter._device("cuda:0;cuda:1") == {"device": ["cuda:0", "cuda:1"]}


def test_output_methods_generate_and_have_no_likelihoods(folders):
    model = UniteLM(folders, method="voting", progress=False)
    assert len(model.generate_until([request("A", {"max_gen_toks": 3})])) == 1
    with pytest.raises(ValueError, match="method 'voting' chooses among whole answers"):
        model.loglikelihood([request("A", "b")])


def test_results_are_kept_as_they_come(model):
    """What a stopped evaluation has computed is in the harness's cache."""
    kept = []
    model.set_cache_hook(SimpleNamespace(add_partial=lambda name, args, result: kept.append((name, args, result))))
    requests = [request("A", {"max_gen_toks": 2}), request("James", {"max_gen_toks": 2})]
    texts = model.generate_until(requests)
    assert sorted(kept) == sorted(("generate_until", r.args, t) for r, t in zip(requests, texts))
    kept.clear()
    model.loglikelihood([request("A", "b")])
    model.loglikelihood_rolling([request("b")])
    assert [name for name, *_ in kept] == ["loglikelihood", "loglikelihood_rolling"]


# The tasks


def test_prompts_of_the_paper(benchmarks):
    folder = str(benchmarks)
    (arc,) = utils.arc_challenge(folder)["test"]["prompt"]
    question = "Question: Which?\nA: one\nB: two\nC: three\nD: four\nAnswer:"
    assert arc == f"Answer the question by replying A, B, C or D.\n{question}"
    (piqa,) = utils.piqa(folder)["test"]["prompt"]
    assert piqa == "Answer the question by replying A or B.\nQuestion: Which?\nA: one\nB: two\nAnswer:"
    gsm8k = utils.gsm8k(folder)["test"]["prompt"]
    assert gsm8k[2] == (
        "Question: 1 + 1?\nLet's think step by step\nThe answer is \\boxed{2}\n\n"
        "Question: 2 + 1?\nLet's think step by step\n"
    )
    (mmlu,) = utils.mmlu(folder)["test"]["prompt"]
    assert mmlu.count("Answer:") == 6
    assert mmlu.startswith("Answer the question by replying A, B, C or D.\nQuestion: dev 0\n")
    assert "Answer: B\n\nAnswer the question by replying A, B, C or D.\nQuestion: dev 4" in mmlu
    assert mmlu.endswith(f"Answer the question by replying A, B, C or D.\n{question}")
    assert utils.nq(folder)["test"]["prompt"] == ["Question: x\nAnswer: y\n\nQuestion: who\nAnswer:"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("the answer is 1. But no: the answer is 2,340.5 dollars", 2340.5),
        ("3 + 4 = 7, The answer is \\boxed{7}", 7),
        ("so boxed{-3}. 99 bottles", 99),  # the last number after it, as the paper has it
        ("there are 5", None),
        ("the answer is unclear", None),
        ("the answer is 5. I think the answer is right", 5),
    ],
)
def test_final_numbers(text, number):
    assert utils.final_number(text) == number


def test_scores():
    assert utils.score_letter({"answer": "B"}, [" B"]) == {"exact_match": 1.0}
    assert utils.score_letter({"answer": "B"}, ["A"]) == {"exact_match": 0.0}
    doc = {"answer": ["The Beatles", "Fab Four"]}
    assert utils.score_alias(doc, [" the beatles!\nQuestion: B"]) == {"exact_match": 1.0}
    assert utils.score_alias(doc, ["Fab"]) == {"exact_match": 0.0}
    assert utils.score_number({"answer": "So the answer is 1,000"}, ["the answer is 1000.0"]) == {"exact_match": 1.0}
    assert utils.score_number({"answer": "the answer is 3"}, ["no idea"]) == {"exact_match": 0.0}


def test_missing_data(tmp_path, monkeypatch):
    monkeypatch.delenv("UNITE_BENCHMARKS", raising=False)
    with pytest.raises(ValueError, match="UNITE_BENCHMARKS"):
        utils.piqa()
    with pytest.raises(ValueError, match=r"piqa.validation.jsonl does not exist"):
        utils.piqa(str(tmp_path))


def test_eval_command(folders, benchmarks, tmp_path, monkeypatch):
    """All six tasks through the harness; the folder feeds select; a second run takes everything from the cache."""
    tasks = "unite_gsm8k,unite_piqa,unite_arc_challenge,unite_mmlu,unite_triviaqa,unite_nq"
    arguments = [
        "eval",
        "--tasks",
        tasks,
        "--benchmarks",
        str(benchmarks),
        "--output",
        str(tmp_path),
        "--batch-size",
        "2",
    ]
    calls = []
    generate = UniteLM.generate_until
    monkeypatch.setattr(UniteLM, "generate_until", lambda self, r: calls.append(len(r)) or generate(self, r))
    for models, expected in ((folders, [7]), (folders[:1], [7]), (folders, [])):
        calls.clear()
        members = [part for folder in models for part in ("--model", folder)]
        done = CliRunner().invoke(app, [*arguments, *members, "--limit", "2"], env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        assert calls == expected  # another ensemble computes its own answers, the same one takes them from the cache
    assert "unite_gsm8k" in done.stdout
    prompt = utils.nq(str(benchmarks))["test"]["prompt"][0]
    answers = {
        json.loads(line)["resps"][0][0]: path.parent.name
        for path in tmp_path.rglob("samples_unite_nq_*.jsonl")
        for line in path.read_text().splitlines()
    }
    alone = UniteEnsemble.from_pretrained(folders[:1]).generate(prompt, max_new_tokens=10, stop="\n")
    assert alone in answers
    assert len(answers) == 2
    read = read_scores([tmp_path], tasks=["unite_gsm8k"])
    assert set(read) == {folders[0]}  # the ensemble is no candidate
    assert all(score.mean_length > 0 and score.problems == 2 for score in read.values())
    # Other options are another run, whose answers are computed; it is said what differs.
    calls.clear()
    members = [part for folder in folders for part in ("--model", folder)]
    done = CliRunner().invoke(app, [*arguments, *members, "--limit", "2", "--k", "4"], env={"COLUMNS": "200"})
    assert calls == [7]
    assert "answers of another run are not used: k was 10, now 4" in done.stderr


def test_eval_command_complains_early(folders, benchmarks):
    def refused(message, *arguments):
        done = CliRunner().invoke(app, ["eval", *arguments])
        assert done.exit_code == 1
        assert message in " ".join(done.stderr.split())

    members = ["--model", "nowhere/a", "--model", "nowhere/b"]
    refused("method must be one of", *members, "--tasks", "unite_piqa", "--method", "nope")
    refused("unite_no_such_task", *members, "--tasks", "unite_no_such_task")
    refused("does not exist", *members, "--tasks", "unite_piqa", "--benchmarks", str(benchmarks / "nowhere"))


@pytest.mark.parametrize("method", ["gac", "voting"])
def test_generate_command_takes_a_method(folders, ensemble, method):
    members = [part for folder in folders for part in ("--model", folder)]
    arguments = ["generate", *members, "--prompt", "James met", "--max-new-tokens", "6", "--method", method]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout == ensemble.generate("James met", max_new_tokens=6, method=method) + "\n"
    done = CliRunner().invoke(app, [*arguments, "--method-options", "eta:1"])
    assert done.exit_code == 1
    assert f"method '{method}' has no option 'eta'" in " ".join(done.stderr.split())


def test_the_module_takes_the_harness_arguments(folders, benchmarks, tmp_path):
    """For our ensembles and for the harness's own models; outside a repository git's complaint is not shown."""
    common = ["--tasks", "unite_nq", "--include_path", str(Path(utils.__file__).parent), "--limit", "1"]
    ours = ["--model", "unite", "--model_args", f"models={';'.join(folders)},k=4", *common]
    code = """
import functools, sys
from lm_eval.tasks.manager import TaskManager
# Reading all of the harness's tasks takes as long as all the rest.
TaskManager.__init__ = functools.partialmethod(TaskManager.__init__, include_defaults=False)
from unite_ext.harness import adapter
common = sys.argv[5:]
adapter.main()
sys.argv[1:] = ["--model", "dummy", *common]
adapter.main()
from lm_eval.api.registry import model_registry
print("models:", *model_registry)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *ours],
        env={**os.environ, "UNITE_BENCHMARKS": str(benchmarks)}, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("exact_match") == 2
    assert "fatal" not in done.stderr
    assert {"hf", "vllm", "unite"} <= {*done.stdout.partition("models:")[2].split()}


def test_eval_does_not_show_gits_complaint(capfd, monkeypatch, tmp_path):
    from lm_eval import evaluator

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    before = evaluator.get_git_commit_hash
    with adapter.quiet_git():
        assert evaluator.get_git_commit_hash() is None
        monkeypatch.setenv("PATH", "")
        assert evaluator.get_git_commit_hash() is None  # no git at all
    assert evaluator.get_git_commit_hash is before
    assert "fatal" not in "".join(capfd.readouterr())
