"""Traces for tests: from small models, and made up."""

from __future__ import annotations

import random

import toy_tokenizers
from toy_models import toy_model

from unite_ext import Trace, UniteEnsemble
from unite_ext.trace import TraceStep


def toy_ensemble() -> UniteEnsemble:
    """Two members that never agree for long."""
    tokenizers = [toy_tokenizers.byte_level(), toy_tokenizers.sentencepiece()]
    models = [toy_model(kind, t, seed=i) for i, (kind, t) in enumerate(zip(("llama", "mistral"), tokenizers))]
    return UniteEnsemble(models, tokenizers)


def made_up_trace(pieces: list[str], *, members: int = 3, slots: int = 12, seed: int = 0) -> Trace:
    """A trace that says these pieces; every slot of a step has a text of its own."""
    rng = random.Random(seed)
    tokens: list[dict[int, str]] = [{} for _ in range(members)]
    steps = []
    for number, piece in enumerate(pieces):
        ids = [[slots * number + s + m for m in range(members)] for s in range(slots)]
        for s, row in enumerate(ids):
            for m, i in enumerate(row):
                tokens[m][i] = piece if s == 0 else f" {piece}{s}"
        probs = [[rng.random() for _ in range(members)] for _ in range(slots)]
        columns = list(zip(*probs))
        favorites = [column.index(max(column)) for column in columns]
        decided = "agreement" if not any(favorites) else "primary" if favorites[0] == 0 else "overruled"
        averages = [sum(row) / members for row in probs]
        steps.append(TraceStep(piece, "", decided, 0, favorites, ids, probs, averages, [0] * slots))
    names = ["alpha/first", "second", "third-with-a-long-name", "fourth", "5", "6", "7", "8"][:members]
    options = {"k": slots, "primary": 0, "score": "logits", "weights": None, "method": "unite"}
    return Trace(
        names, 0, options, "A <b>prompt</b>", "".join(pieces), "length", steps, tokens, [[] for _ in range(members)]
    )
