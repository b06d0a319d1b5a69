"""Traces say what happened: pieces add up to the text, decisions are those of the probabilities, files lose nothing."""

from __future__ import annotations

import html
import json
import re
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from trace_cases import made_up_trace, toy_ensemble
from typer.testing import CliRunner

from unite_ext import StepRecord, Trace
from unite_ext.cli import app
from unite_ext.decoding.tracing import text_pieces, token_text, trace_step
from unite_ext.trace import TraceStep, load_traces, save_traces
from unite_ext.trace.terminal import print_step, print_trace

runner = CliRunner()
PROMPTS = ["James", "2024 was", "Füße über"]


@pytest.fixture(scope="module")
def ensemble():
    return toy_ensemble()


@pytest.fixture(scope="module")
def traces(ensemble):
    return ensemble.trace(PROMPTS, max_new_tokens=40, min_new_tokens=40)


def test_a_trace_is_that_of_generate(ensemble, traces):
    output = ensemble.generate(PROMPTS, max_new_tokens=40, min_new_tokens=40, return_dict=True)
    assert [t.prompt for t in traces] == PROMPTS
    assert [t.text for t in traces] == output.texts
    assert [t.finish_reason for t in traces] == output.finish_reasons
    for trace, steps in zip(traces, output.records):
        assert len(trace.steps) == len(steps)
        for ours, theirs in zip(trace.steps, steps):
            assert (ours.winner, ours.ids) == (theirs.winner, theirs.union_ids)
            assert ours.averages == pytest.approx(theirs.union_probs, rel=1e-5)
            assert [p for row in ours.probs for p in row] == pytest.approx(
                [p for row in theirs.member_probs for p in row], rel=1e-5
            )
    assert traces[0].options["max_new_tokens"] == 40
    assert "temperature" not in traces[0].options


def test_pieces_add_up_to_the_text(traces):
    for trace in traces:
        assert "".join(step.piece for step in trace.steps) == trace.text


def test_every_slot_is_spelled_by_its_members(ensemble, traces):
    """One member's token is the slot's text; another's is the same, or begins it."""
    for trace in traces:
        for step in trace.steps:
            for ids, speller in zip(step.ids, step.spellers):
                data = [b"" if i < 0 else ensemble.alignment.token_bytes(m, i) for m, i in enumerate(ids)]
                assert all(data[speller].startswith(d) for d in data)
                assert ids[speller] >= 0
                for m, (i, d) in enumerate(zip(ids, data)):
                    if d and i >= 0:
                        assert trace.token_text(m, i) == token_text(d)


def test_totals_count_the_steps(traces):
    for trace in traces:
        wanted = [[max(column) for column in zip(*step.probs)] for step in trace.steps]
        agreed = sum(all(p >= w for p, w in zip(s.probs[s.winner], best)) for s, best in zip(trace.steps, wanted))
        assert trace.count("agreement") == agreed
        assert trace.agreement_rate == agreed / len(trace.steps)
        assert sum(map(trace.count, ("agreement", "primary", "overruled", "gated"))) == len(trace.steps)
        assert trace.overruled[trace.primary] == trace.count("overruled")
        for m, times in enumerate(trace.overruled):
            assert times == sum(s.probs[s.winner][m] < best[m] for s, best in zip(trace.steps, wanted))
    assert any(trace.count("overruled") for trace in traces)


def test_gated_steps_ask_nobody(ensemble):
    trace = ensemble.trace("James", max_new_tokens=20, min_new_tokens=20, gate=0.0)
    assert trace.count("gated") == 20
    assert trace.asked == 0
    assert trace.agreement_rate == 1
    assert trace.overruled == [0, 0]
    assert trace.options["gate"] == 0.0


def test_a_gated_step_overrules_nobody():
    trace = made_up_trace(["a", "b", "c", "d"])
    steps = [TraceStep(**{**vars(step), "favorites": [1, 1, 1]}) for step in trace.steps]
    steps[0] = TraceStep(**{**vars(steps[0]), "decided": "gated"})
    assert Trace(**{**vars(trace), "steps": steps}).overruled == [3, 3, 3]


def test_a_stop_string_is_marked_as_cut(ensemble):
    full = ensemble.generate("James", max_new_tokens=40, min_new_tokens=40)
    stop = full[9:12]
    trace = ensemble.trace("James", max_new_tokens=40, min_new_tokens=40, stop=stop)
    assert trace.text == full[: full.index(stop)]
    assert "".join(step.piece for step in trace.steps) == trace.text
    assert "".join(step.piece + step.cut for step in trace.steps).startswith(trace.text + stop)


def test_eos_is_a_name_that_says_nothing():
    ensemble = toy_ensemble()
    for member in ensemble.members:
        eos = member.eos_token_ids[0]
        member.model.lm_head.register_forward_hook(
            lambda _, __, out, eos=eos: out.index_fill(2, out.new_tensor([eos]).long(), 1e4)
        )
    trace = ensemble.trace("James", max_new_tokens=3)
    [step] = trace.steps
    assert (trace.text, trace.finish_reason, step.piece, step.decided) == ("", "eos", "", "agreement")
    [eos] = trace.eos_token_ids[0]
    assert step.ids[step.winner][0] == eos
    assert trace.token_text(0, eos) == ensemble.members[0].tokenizer.convert_ids_to_tokens(eos)


DECIDED = [  # member_probs [U][2], winner, decision, each member's choice
    ([[0.9, 0.8], [0.1, 0.2]], 0, "agreement", [0, 0]),
    ([[0.9, 0.3], [0.1, 0.7]], 0, "primary", [0, 1]),
    ([[0.4, 0.9], [0.6, 0.1]], 0, "overruled", [1, 0]),
    ([[0.4, 0.1], [0.6, 0.1], [0.0, 0.8]], 0, "overruled", [1, 2]),
    ([[0.5, 0.9], [0.5, 0.1]], 1, "primary", [1, 0]),  # a tie is no other wish
    ([[0.5, 0.5], [0.5, 0.5]], 1, "agreement", [1, 1]),
]


@pytest.mark.parametrize(("probs", "winner", "decided", "favorites"), DECIDED)
def test_who_decided(probs, winner, decided, favorites):
    ids = [[i, i] for i in range(len(probs))]
    step = trace_step(StepRecord(ids, [sum(p) / 2 for p in probs], probs, winner), 0, "x", "", lambda m, i: 1)
    assert (step.decided, step.favorites) == (decided, favorites)


def test_who_decided_depends_on_who_leads():
    trace = StepRecord([[0, 0], [1, 1]], [0.65, 0.35], [[0.4, 0.9], [0.6, 0.1]], 0)
    assert trace_step(trace, 0, "", "", lambda m, i: 1).decided == "overruled"
    assert trace_step(trace, 1, "", "", lambda m, i: 1).decided == "primary"


@given(st.text(), st.lists(st.integers(0, 6)), st.integers(0, 60))
def test_pieces_of_any_cut(text, lengths, kept):
    """Wherever tokens begin inside a character, and wherever a stop string cuts."""
    data, tokens = text.encode(), []
    for length in lengths:
        tokens.append(data[:length])
        data = data[length:]
    tokens.append(data)
    whole = text.encode()
    pieces = text_pieces(tokens, kept)
    assert len(pieces) == len(tokens)
    assert "".join(piece for piece, _ in pieces) == whole[:kept].decode("utf-8", "replace")
    assert "".join(cut for _, cut in pieces) == whole[kept:].decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("data", "text"),
    [(b" the", " the"), (b"", ""), ("é".encode(), "é"), (b"\xe2\x82", "<0xE2><0x82>"), (b"a\xff", "a<0xFF>")],
)
def test_token_texts(data, text):
    assert token_text(data) == text


def test_files_lose_nothing(ensemble, traces, tmp_path):
    options = {"stop": ["\n", "###"], "weights": (0.25, 0.75), "gate": 0.9, "do_sample": True, "seed": 3}
    trace = ensemble.trace("James", max_new_tokens=9, **options)
    assert trace.options.items() >= {**options, "weights": [0.25, 0.75]}.items()
    trace.save(tmp_path / "options.json")
    assert Trace.load(tmp_path / "options.json") == trace
    save_traces(traces, tmp_path / "all.json")
    assert load_traces(tmp_path / "all.json") == traces
    traces[1].save(tmp_path / "one.json")
    assert Trace.load(tmp_path / "one.json") == traces[1]
    with pytest.raises(ValueError, match="holds 3 traces"):
        Trace.load(tmp_path / "all.json")


def test_half_a_character_in_a_prompt_is_saved(tmp_path):
    trace = made_up_trace(["a"])
    trace = Trace(**{**vars(trace), "prompt": "half \udc80"})
    trace.save(tmp_path / "t.json")
    assert Trace.load(tmp_path / "t.json") == trace
    trace.save(tmp_path / "t.html")


DAMAGE = [
    (lambda d: d.update(format="other"), "is not a trace: it must be an object whose format is 'unite-trace'"),
    (lambda d: d.update(version=9), "must be a trace of version 1, got version 9"),
    (lambda d: d["traces"][0].pop("steps"), "is a damaged trace: KeyError"),
    (lambda d: d["traces"][0]["steps"][0].update(winner=99), "step 1 names a slot"),
    (lambda d: d["traces"][0]["steps"][0].update(decided="chance"), "step 1 names a slot or a decision"),
    (lambda d: d["traces"][0]["steps"][1]["ids"].pop(), "step 2 does not hold 12 slots of 3 members"),
    (lambda d: d["traces"][0]["tokens"][0].clear(), "is a damaged trace: KeyError"),
    (lambda d: d["traces"][0].update(primary=3), "must fit the members"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damaged_files_are_refused(damage, message, tmp_path):
    path = tmp_path / "t.json"
    made_up_trace(["a", "b"]).save(path)
    data = json.loads(path.read_text())
    damage(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=re.escape(message)):
        load_traces(path)


def test_paths_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"written as \.html"):
        made_up_trace(["a"]).save(tmp_path / "t.txt")
    with pytest.raises(ValueError, match="does not exist"):
        made_up_trace(["a"]).save(tmp_path / "none" / "t.json")
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(ValueError, match="is not a trace"):
        load_traces(tmp_path / "t.json")


def test_a_page_holds_texts_as_data_only():
    trace = made_up_trace(["</script>", "<script>alert(1)</script>", "<!--", "&amp;"])
    page = trace.to_html()
    assert page.count("</script>") == 2  # the data's and the program's
    assert "<script>alert" not in page
    assert "src=" not in page
    assert "http" not in page.replace("http-equiv", "")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert [s["piece"] for s in json.loads(data)["traces"][0]["steps"]] == [s.piece for s in trace.steps]
    frame = trace._repr_html_()
    assert html.unescape(re.search(r'srcdoc="(.*?)"', frame, re.DOTALL)[1]) == page


def test_methods_that_choose_answers_have_no_steps(ensemble):
    with pytest.raises(ValueError, match="chooses among whole answers: it has no steps to trace"):
        ensemble.trace("James", method="voting")
    [request] = ensemble.generate_each(["James"], max_new_tokens=2)
    with pytest.raises(ValueError, match="got 0: generate with trace=True"):
        ensemble.trace_of(request, "James")


def printed(show, *arguments, **options) -> str:
    out = StringIO()
    show(*arguments, Console(file=out, width=120, **options))
    return out.getvalue()


def test_the_terminal_shows_text_and_totals(traces):
    trace = max(traces, key=lambda t: t.count("overruled"))
    plain = printed(print_trace, trace)
    assert "\x1b" not in plain
    assert plain.count("⟦") == sum(s.decided == "overruled" and bool(s.piece) for s in trace.steps) + 1
    totals = f"agreement {trace.count('agreement')}, primary {trace.count('primary')}"
    assert totals in plain
    assert f"{len(trace.steps)} steps" in plain
    colored = printed(print_trace, trace, force_terminal=True, color_system="standard")
    assert "⟦" not in colored
    assert "\x1b[1;7;33m" in colored


def test_the_terminal_is_not_written_to_by_tokens():
    trace = made_up_trace(["\x1b]0;title\x07", "[red]", "a\nb"])
    plain = printed(print_trace, trace)
    assert "\x1b" not in plain
    assert "\\x1b]0;title\\x07" in plain
    assert "[red]" in plain
    assert "a\nb" in plain
    assert "\x1b" not in printed(print_step, trace, 1)


def test_the_terminal_shows_a_step(traces):
    step = traces[0].steps[4]
    text = printed(print_step, traces[0], 5)
    assert "step 5" in text
    number = f"{step.averages[step.winner]:.3f}".removeprefix("0")
    assert number in text
    with pytest.raises(ValueError, match="step must be from 1 to 40, got 41"):
        print_step(traces[0], 41, Console(file=StringIO()))


def test_trace_command(traces, tmp_path):
    path = tmp_path / "t.json"
    save_traces(traces, path)
    shown = runner.invoke(app, ["trace", str(path), "--text", "2"])
    assert shown.exit_code == 0
    assert f"agreement {traces[1].count('agreement')}" in shown.output
    assert "step 3" in runner.invoke(app, ["trace", str(path), "--step", "3"]).output
    page = tmp_path / "t.html"
    assert runner.invoke(app, ["trace", str(path), "--html", str(page)]).exit_code == 0
    assert page.read_text().startswith("<!doctype html>")
    for arguments, message in (
        ([str(path), "--text", "4"], "--text must be from 1 to 3"),
        ([str(path), "--step", "0"], "step must be from 1 to 40, got 0"),
        ([str(path), "--html", str(tmp_path / "t.json")], "--html must be a .html file"),
        (["none.json"], "No such file"),
        (["[red]none\x1b.json"], "'[red]none\\x1b.json'"),  # a name is no markup and no command to the terminal
    ):
        result = runner.invoke(app, ["trace", *arguments])
        assert result.exit_code == 1
        assert message in " ".join(result.output.split())
