"""A program that uses the public API, for mypy --strict: what its author's editor says the calls return.

Never run; `test_style.py` checks it.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor
from typing_extensions import assert_type

import unite_ext
from unite_ext import (
    BaseMember,
    GenerateOutput,
    GenerationOptions,
    Member,
    ModelScore,
    Selection,
    StepRecord,
    StepResult,
    TextStream,
    Trace,
    UniteEnsemble,
    VocabAlignment,
    Vocabulary,
    select_models,
    step_workspace,
    unite_step,
)

assert_type(unite_ext.__version__, str)


def generate(ensemble: UniteEnsemble, several: Sequence[str], whole: bool) -> None:
    chat = [{"role": "user", "content": "Hi"}]
    assert_type(ensemble.generate("one"), str)
    assert_type(ensemble.generate(chat, max_new_tokens=8, stop=["\n"]), str)
    assert_type(ensemble.generate(["one", "two"], k=5), list[str])
    assert_type(ensemble.generate(several), list[str])
    assert_type(ensemble.generate([chat, chat], batch_size=2), list[str])
    assert_type(ensemble.generate("one", return_dict=True), GenerateOutput)
    assert_type(ensemble.generate(["one", "two"], return_dict=True).records[0], list[StepRecord])
    assert_type(ensemble.generate("one", return_dict=whole), str | list[str] | GenerateOutput)
    pieces: Iterator[str] = ensemble.stream("one")
    assert_type(next(pieces), str)
    assert_type(ensemble.stream("one"), TextStream)
    assert_type(ensemble.trace("one"), Trace)
    assert_type(ensemble.trace(["one", "two"], k=5), list[Trace])
    assert_type([request.decoded() for request in ensemble.generate_each(several)], list[str])
    assert_type(ensemble.members, list[BaseMember])
    assert_type(ensemble.alignment, VocabAlignment)
    ensemble.generate(7)  # type: ignore[call-overload]
    ensemble.genrate("one")  # type: ignore[attr-defined]


def load(names: list[str]) -> UniteEnsemble:
    assert_type(Member.from_pretrained(names[0], device="cpu"), Member)
    return UniteEnsemble.from_pretrained(names, k=5, dtype="auto")


def step(logits: list[Tensor], tokenizers: list[object]) -> Tensor:
    alignment = VocabAlignment.from_tokenizers(tokenizers, eos_token_ids=[[2], None])
    assert_type(alignment.to("cuda"), VocabAlignment)
    assert_type(alignment.vocabularies, tuple[Vocabulary, ...])
    assert_type(alignment.encode_continuation(1, b"text"), list[int])
    assert_type(alignment.token_bytes(0, 7), bytes)
    result = unite_step(logits, alignment, k=5, workspace=step_workspace(logits, alignment, k=5))
    assert_type(result, StepResult)
    unite_step(logits, alignment, k="5")  # type: ignore[arg-type]
    unite_ext.unite_stepp  # type: ignore[attr-defined]  # noqa: B018
    return result.check().next_ids


def choose() -> list[str]:
    selection = select_models({"a": ModelScore(73.5, 120.0), "b": ModelScore(71.0, 300.0)}, max_models=1)
    assert_type(selection, Selection)
    assert_type(selection.adaptive_weights(), list[float])
    assert_type(GenerationOptions(max_new_tokens=8).temperature, float)
    return selection.chosen
