"""Traces of steps with exact boundaries: a step is a byte, and shows what every member thought of it."""

from __future__ import annotations

import numpy as np
import pytest
import toy_tokenizers
from chromium import all_of, look, one
from toy_models import toy_model
from typer.testing import CliRunner

from unite_ext import Trace, UniteEnsemble
from unite_ext._host import END_OF_TEXT, SortedTokens, walk
from unite_ext.cli import app
from unite_ext.demo import COMPARABLE, load_member

PROMPTS = ["Once upon a time", "A", "2024 was"]
PROBLEM = "Lucy has 36 apples and gets 5 new ones. How many has Lucy now?\n"


@pytest.fixture(scope="module")
def two():
    loaders = [("llama", toy_tokenizers.byte_level), ("mistral", toy_tokenizers.sentencepiece)]
    models = [toy_model(kind, load(), seed=i) for i, (kind, load) in enumerate(loaders)]
    return UniteEnsemble(models, [load() for _, load in loaders], boundaries="exact", weights=[1, 3])


def test_candidates_by_hand():
    """The first is for a, a or ab: 0.5, then b; the second for d. Together d 0.4, a 0.35, b 0.15, c 0.1."""
    first = SortedTokens([b"a", b"ab", b"b", b"c"]), np.array([0.0, 0.4, 0.5, 0.8, 1.0])
    second = SortedTokens([b"a", b"d"]), np.array([0.0, 0.2, 1.0])
    members = [(tokens, [(sums, 0, 0, len(tokens), 0, 1.0, 0.0)], 0.5) for tokens, sums in (first, second)]
    options = {"primary": 0, "max_ended": 0.01, "unlikely_share": 0.1, "max_bytes": 1, "allow_eos": True}

    def candidates(**more):
        [[step], _, _] = walk(members, **options, **more)
        return [(chr(s), round(p, 9), [round(q, 9) for q in own]) for s, p, own in step[4]]

    assert candidates() == []
    assert candidates(recorded=1) == [("d", 0.4, [0, 0.8]), ("a", 0.35, [0.5, 0.2])]
    assert candidates(recorded=2) == [*candidates(recorded=1), ("b", 0.15, [0.3, 0])]
    assert candidates(recorded=1, forced=[ord("c")]) == [*candidates(recorded=1), ("c", 0.1, [0.2, 0])]


def test_a_step_is_a_byte(two):
    texts = two.generate(PROMPTS, max_new_tokens=12)
    for text, trace in zip(texts, two.trace(PROMPTS, max_new_tokens=12)):
        assert trace.text == text
        assert "".join(step.piece for step in trace.steps) == text
        symbols = [step.ids[step.winner][0] for step in trace.steps]
        ends = trace.finish_reason == "eos"
        assert bytes(symbols[:-1] if ends else symbols).decode(errors="replace") == text
        assert (symbols[-1] == END_OF_TEXT) == ends
        for step in trace.steps:
            assert step.winner == 0
            assert step.averages == sorted(step.averages, reverse=True)
            assert len(step.averages) >= 10 or sum(step.averages) == pytest.approx(1, abs=1e-4)  # all there are
            for probs, average in zip(step.probs, step.averages):
                assert average == pytest.approx(0.25 * probs[0] + 0.75 * probs[1], rel=1e-4)
            for m, favorite in enumerate(step.favorites):
                assert step.probs[favorite][m] == max(own[m] for own in step.probs)
    assert any(trace.overruled[0] for trace in two.trace(PROMPTS, max_new_tokens=12))


def test_what_a_limit_or_a_stop_string_cuts_off_is_not_shown_as_text(two):
    whole = two.generate(PROMPTS[0], max_new_tokens=12)
    for limit in range(1, 12):
        [cut] = two.trace([PROMPTS[0]], max_new_tokens=limit, do_sample=True, seed=5, min_new_tokens=limit)
        [request] = two.generate_each(
            [PROMPTS[0]], max_new_tokens=limit, do_sample=True, seed=5, min_new_tokens=limit, trace=True
        )
        assert "".join(step.piece for step in cut.steps) == cut.text
        assert len(cut.steps) == len(request.text)
    stop = whole[3:6]
    stopped = two.trace(PROMPTS[0], max_new_tokens=12, stop=[stop])
    assert stopped.text == whole[: whole.index(stop)]
    assert "".join(step.piece for step in stopped.steps) == stopped.text
    assert "".join(step.cut for step in stopped.steps).startswith(stop)


def test_the_end_of_a_text_is_a_step():
    ensemble = UniteEnsemble([load_member(name) for name in COMPARABLE], boundaries="exact")
    trace = ensemble.trace(PROBLEM, max_new_tokens=60)
    assert trace.finish_reason == "eos"
    assert len(trace.steps) == len(trace.text.encode()) + 1
    last = trace.steps[-1]
    assert last.ids[last.winner] == [END_OF_TEXT] * 3
    assert trace.eos_token_ids == [[END_OF_TEXT]] * 3
    eos = ensemble.members[0].tokenizer.eos_token
    assert [trace.slot_text(last, last.winner), last.piece, last.spellers[last.winner]] == [eos, "", 0]
    assert not any(trace.is_first_sub_token(step, slot, m) for step in trace.steps for slot in (0, 1) for m in range(3))


def test_members_keep_what_they_gave_to_every_byte(two):
    [request] = two.generate_each(PROMPTS[:1], max_new_tokens=12, trace=True)
    for m, covers in enumerate(request.exact.members):
        given = [record.member_probs[record.winner][m] for record in request.byte_records]
        assert covers.byte_probs == given[: len(request.text)]


def test_records_are_kept_only_where_they_are_wanted(two):
    output = two.generate(PROMPTS, max_new_tokens=4, return_dict=True)
    assert [len(own) for own in output.records] == [0, 0, 0]
    assert all(len(own) >= 4 for own in output.byte_records)
    [request] = two.generate_each(PROMPTS[:1], max_new_tokens=4)
    assert request.byte_records == []
    with pytest.raises(ValueError, match="must have a record of each of its"):
        two.trace_of(request, PROMPTS[0], max_new_tokens=4)


def test_a_trace_is_saved_and_shown(two, tmp_path):
    trace = two.trace(PROMPTS[0], max_new_tokens=6)
    trace.save(tmp_path / "trace.json")
    assert Trace.load(tmp_path / "trace.json") == trace
    assert trace.options["boundaries"] == "exact"
    assert "unite-trace" in trace.to_html()
    parts = [step for step in trace.steps if step.ids[step.winner][0] >= 0x80]
    assert all(trace.slot_text(step, step.winner).startswith("<0x") for step in parts)


def test_sampled_bytes_are_among_the_candidates(two):
    traces = two.trace(PROMPTS, max_new_tokens=12, do_sample=True, seed=3, temperature=2.0)
    assert any(step.winner > 0 for trace in traces for step in trace.steps)
    for trace in traces:
        assert "".join(step.piece for step in trace.steps) == trace.text


def test_the_page_and_the_terminal_count_bytes(browser, two, tmp_path):
    trace = two.trace(PROMPTS[0], max_new_tokens=6)
    for suffix in ("html", "json"):
        trace.save(tmp_path / f"trace.{suffix}")
    look(browser, width=1280, height=900, dark=False)
    browser.get((tmp_path / "trace.html").as_uri() + "#2")
    assert len(all_of(browser, ".token")) == len(trace.steps)
    assert one(browser, "#panel h2").text == f"Byte 2 of {len(trace.steps)}"
    assert "Wanted another byte than the one taken" in one(browser, "#totals").text
    assert browser.get_log("browser") == []
    shown = CliRunner().invoke(app, ["trace", str(tmp_path / "trace.json")]).stdout
    assert "wanted another byte" in shown
