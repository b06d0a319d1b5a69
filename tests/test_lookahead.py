"""Members asked ahead of time: fewer passes, and the same texts and numbers. And paths, by which this is told."""

from __future__ import annotations

import math

import pytest
import toy_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_models import toy_model

from unite_ext import UniteEnsemble
from unite_ext.decoding.paths import Path
from unite_ext.demo import COMPARABLE, model_folder
from unite_ext.members.context import TransformersContext

QUESTIONS = [
    "Mia has 12 pens, finds 18 more and then loses 5. How many pens does Mia have now?\n",
    "Tom buys 3 boxes with 7 apples each. How many apples does Tom have?\n",
]
PROMPTS = ["Once upon a time", "2024 was", "def main():\n"]


@pytest.fixture(scope="module")
def three():
    loaders = [
        ("llama", toy_tokenizers.byte_level),
        ("qwen2", toy_tokenizers.byte_level_digits),
        ("mistral-window", toy_tokenizers.sentencepiece),
    ]
    models = [toy_model(kind, load(), seed=i) for i, (kind, load) in enumerate(loaders)]
    return UniteEnsemble(models, [load() for _, load in loaders], boundaries="exact")


class Passes:
    """Counts the passes of an ensemble's models, and the ids that they read."""

    def __init__(self, ens: UniteEnsemble) -> None:
        self.count = self.ids = 0
        self._handles = [member.model.register_forward_pre_hook(self._note, with_kwargs=True) for member in ens.members]

    def _note(self, _, __, arguments):
        self.count += 1
        self.ids += arguments["input_ids"].numel()

    def close(self) -> Passes:
        for handle in self._handles:
            handle.remove()
        return self


def scored(ens: UniteEnsemble, texts: list[tuple[str, bytes]], *, ahead: bool) -> tuple[list[float], Passes]:
    """Every text's log-probability, and what passes all took."""
    plan = ens.plan({}, generates=False)
    engine = ens.new_engine(plan, max_requests=len(texts))
    if not ahead:
        engine.runner.exact.lookahead.max_places = 1
    passes = Passes(ens)
    for prompt, text in texts:
        engine.submit(prompt, plan.token_method, targets=ens.alignment.encode_continuation(0, text))
    requests = sorted(engine.run(), key=lambda request: request.index)
    return [math.fsum(s.log_prob for s in request.scores) for request in requests], passes.close()


def test_unlikely_texts_have_the_same_probability(three):
    """Members that think everything possible: most ways of reading a text count."""
    texts = [(prompt, b"qe 7 James\n\n    met") for prompt in PROMPTS]
    assert scored(three, texts, ahead=True)[0] == pytest.approx(scored(three, texts, ahead=False)[0], abs=2e-3)


def test_given_texts_are_scored_in_few_passes(monkeypatch):
    """Members that have learned something: a pass over the whole text, and a few more. Branches that count stay."""
    ens = UniteEnsemble.from_pretrained([str(model_folder(name)) for name in COMPARABLE], boundaries="exact")
    texts = [(question, ens.generate(question, max_new_tokens=40).encode()) for question in QUESTIONS]
    plain, slow = scored(ens, texts, ahead=False)
    ahead, fast = scored(ens, texts, ahead=True)
    assert ahead == pytest.approx(plain, abs=2e-3)  # the float32 logits of other passes
    assert fast.count < 0.75 * slow.count
    assert fast.ids < 1.5 * slow.ids  # the text is read once, whatever hangs from it
    monkeypatch.setattr(TransformersContext, "hold", lambda *_: None)
    again, anew = scored(ens, texts, ahead=False)
    assert again == pytest.approx(plain, abs=2e-3)
    assert anew.count == slow.count
    assert slow.ids < 0.8 * anew.ids


def test_what_is_foreseen_changes_no_text(three, monkeypatch):
    options = {"max_new_tokens": 16, "batch_size": 1}
    seen = three.generate(PROMPTS, **options)
    drawn = three.generate(PROMPTS, **options, do_sample=True, seed=7)
    monkeypatch.setattr("unite_ext.decoding.exact.ExactRunner._foresee", lambda *_: b"")
    assert three.generate(PROMPTS, **options) == seen
    assert three.generate(PROMPTS, **options, do_sample=True, seed=7) == drawn
    monkeypatch.setattr("unite_ext.decoding.exact.ExactRunner._foresee", lambda *_: b" and the other\n")
    assert three.generate(PROMPTS, **options) == seen


def test_nobody_waits_for_what_another_one_asks(three):
    """In a batch of which some take a step and others ask once more, a pass asks for more requests than one."""

    def generated(prompts):
        plan = three.plan({"max_new_tokens": 16}, generates=True)
        engine = three.new_engine(plan, max_requests=len(prompts))
        requests = [engine.submit(prompt, plan.token_method, plan.generation) for prompt in prompts]
        passes, apart = Passes(three), 0
        while engine.has_work:
            running = engine.num_running
            apart += 0 < len(engine.step()) < running
        return [bytes(request.text) for request in requests], passes.close().count, apart

    alone = [generated([prompt]) for prompt in PROMPTS]
    texts, count, apart = generated(PROMPTS)
    assert texts == [text for [text], _, _ in alone]
    assert apart > 10
    assert count < 0.55 * sum(own for _, own, _ in alone)  # three fifths if any other member is asked next


IDS = st.lists(st.integers(0, 2), max_size=6)


@settings(deadline=None)
@given(paths=st.lists(IDS, min_size=2, max_size=2))
def test_paths_change_to_each_other(paths):
    root, sizes = Path(), [b"a", b"bc", b"def"]
    first, second = (root.along(ids, sizes)[-1] if ids else root for ids in paths)
    drop, append = first.change_to(second)
    ids = paths[0][: len(paths[0]) - drop] + append
    assert ids == paths[1] == second.ids()
    assert (first is second) == (paths[0] == paths[1])
    shared = len(paths[0]) - drop
    assert paths[0][:shared] == paths[1][:shared]
    assert shared == min(map(len, paths)) or paths[0][shared] != paths[1][shared]  # nothing is dropped in vain
    assert second.length == len(paths[1])
    assert second.end == sum(len(sizes[i]) for i in paths[1])
