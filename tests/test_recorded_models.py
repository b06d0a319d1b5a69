"""What ensembles of real models write where one member's token ends inside another's, from recorded logits.

`recorded/` holds three real models' vocabularies, cut down to some hundred tokens, and the likeliest logits after a few
prompts (`recorded/record.py` made them). Neither rule of the paper's step indents all of them by four spaces.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from unite_ext import UniteEnsemble, VocabAlignment
from unite_ext.testing import RecordedMember

FOLDER = Path(__file__).parent / "recorded"
TOKENS = 10
ADD = "def add(a, b):"
FOR = "for i in range(10):"
MEAN = 'def mean(values):\n    """The arithmetic mean of the values."""'
REPEAT, DROP, EXACT = {}, {"duplicates": "drop"}, {"boundaries": "exact"}


@cache
def tokenizer(name: str) -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / f"{name}.json"))


@cache
def member(name: str) -> RecordedMember:
    data = np.load(FOLDER / f"{name}.npz")
    size = tokenizer(name).get_vocab_size()
    logits = {}
    for ids, best, values, rest in zip(data["ids"], data["best"], data["logits"], data["rest"]):
        row = torch.full((size,), float(rest))
        row[torch.from_numpy(best.astype(np.int64))] = torch.from_numpy(values.astype(np.float32))
        logits[tuple(ids[ids >= 0].tolist())] = row
    prompts = {repr(prompt): tokenizer(name).encode(prompt).ids for prompt in (ADD, FOR, MEAN)}
    return RecordedMember(prompts, logits, name=name, num_logits=size, eos_token_ids=data["eos"].tolist(), whole=True)


def written(names: tuple[str, ...], prompt: str, **rule: str) -> str:
    members = [member(name) for name in names]
    alignment = VocabAlignment.from_tokenizers(
        [tokenizer(name) for name in names], eos_token_ids=[m.eos_token_ids for m in members]
    )
    return UniteEnsemble(members, alignment=alignment).generate(prompt, max_new_tokens=TOKENS, **rule)


CASES = [
    # Three spaces: in gemma's own tokens the fourth would have belonged to the token before.
    (("smol", "gemma"), ADD, REPEAT, "\n   return a + b\n"),
    (("smol", "gemma"), ADD, DROP, "\n    return a + b\n"),
    (("smol", "gemma"), ADD, EXACT, "\n    return a + b\n"),
    (("smol", "gemma"), FOR, REPEAT, "\n       print(i)\n"),  # seven
    (("smol", "gemma"), FOR, EXACT, "\n    print(i)\n    print(i)"),
    # A blank line ends as every other does, and once there is one there are only those.
    (("smol", "gemma"), MEAN, DROP, "\n    \n    \n    \n    \n    "),
    (("smol", "gemma"), MEAN, EXACT, "\n    return sum(values) / len(values"),
    (("qwen", "gemma"), MEAN, REPEAT, "\n   \n   \n   \n   \n   "),
    (("qwen", "gemma"), MEAN, DROP, "\n     return sum(values) / len(values)"),  # five spaces
    (("qwen", "gemma"), MEAN, EXACT, "\n    return sum(values) / len(values)"),
    (("qwen", "smol"), FOR, REPEAT, "\n    print(i)\n```"),
    (("qwen", "smol"), FOR, EXACT, "\n    print(i)\n```"),
]


@pytest.mark.parametrize(("names", "prompt", "rule", "text"), CASES)
def test_what_is_written(names, prompt, rule, text):
    assert written(names, prompt, **rule)[: len(text)] == text
