"""Records what real models say after a few prompts, in vocabularies cut down to what they say there.

    python tests/recorded/record.py FOLDER    (of shared/models/get_models.py; writes MEMBER.json and MEMBER.npz here)

The tokens that are kept: every single byte, those of the texts, the likeliest at every place, and all that these are
merged from. A member's tokenizer and its model's rows are reduced to them, and the ensembles write once more.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from unite_ext import Member, UniteEnsemble
from unite_ext.testing import Recorder

HERE = Path(__file__).parent
FOLDERS = {"smol": "smollm2", "gemma": "gemma3", "qwen": "qwen25-coder"}
ADD = "def add(a, b):"
FOR = "for i in range(10):"
MEAN = 'def mean(values):\n    """The arithmetic mean of the values."""'
CASES = [
    (("smol", "gemma"), ADD), (("smol", "gemma"), FOR), (("smol", "gemma"), MEAN),
    (("qwen", "gemma"), MEAN), (("qwen", "smol"), FOR),
]  # fmt: skip
RULES: tuple[dict[str, str], ...] = ({}, {"duplicates": "drop"}, {"boundaries": "exact"})
TOKENS = 10
LIKELIEST = 12  # kept of the vocabulary at every place
RECORDED = 64  # logits that are written; the others are one number


def record(members: dict[str, Member]) -> dict[str, Recorder]:
    """All cases, by every rule."""
    recorders = {name: Recorder(member) for name, member in members.items()}
    for pair, prompt in CASES:
        ensemble = UniteEnsemble([recorders[name] for name in pair])
        for rule in RULES:
            text = ensemble.generate(prompt, max_new_tokens=TOKENS, **rule)
            print("+".join(pair), rule, json.dumps(prompt + text), flush=True)
    return recorders


def rounded(logits: torch.Tensor) -> torch.Tensor:
    """The likeliest logits in 16 bits; all others share what is left, in 16 bits as well."""
    best = logits.topk(RECORDED, dim=-1)
    others = logits.scatter(-1, best.indices, -torch.inf).logsumexp(dim=-1, keepdim=True)
    rest = others - math.log(logits.shape[-1] - RECORDED)
    values = rest.half().float().expand_as(logits)
    return values.scatter(-1, best.indices, best.values.half().float())


def kept_tokens(recorder: Recorder, tokenizer: dict[str, Any]) -> list[str]:
    """The tokens to keep, as the vocabulary writes them, in the order of their ids."""
    vocabulary = tokenizer["model"]["vocab"]
    names = {i: name for name, i in vocabulary.items()}
    ids = {i for path in recorder.logits for i in path}
    for row in recorder.logits.values():
        ids.update(row.topk(LIKELIEST).indices.tolist())
    wanted = {names[i] for i in ids if i in names}
    wanted |= {name for name in vocabulary if len(name) == 1 and name.isprintable() and ord(name) < 0x180}
    wanted |= {name for name in vocabulary if name.startswith("<0x")} | {"\n", "\t", "▁"} & set(vocabulary)
    while added := {part for pair in merges_within(tokenizer, wanted, parts=False) for part in pair} - wanted:
        wanted |= added
    return sorted(wanted, key=vocabulary.__getitem__)


def merges_within(tokenizer: dict[str, Any], tokens: Iterable[str], *, parts: bool) -> Iterator[list[str]]:
    """The merges that make one of the tokens; `parts`: from two of them. Without it the first that makes each."""
    tokens, made = set(tokens), set()
    for left, right in tokenizer["model"]["merges"]:
        whole = left + right
        if whole not in tokens or (parts and not {left, right} <= tokens):
            continue
        if parts or whole not in made:
            made.add(whole)
            yield [left, right]


def reduced(member: Member, folder: Path, kept: list[str], tokenizer: dict[str, Any]) -> Member:
    """The member with these tokens only, and its special ones."""
    vocabulary = tokenizer["model"]["vocab"]
    own = member.tokenizer
    needed = (own.bos_token, own.eos_token, own.unk_token)
    special = [token for token in tokenizer["added_tokens"] if token["special"] and token["content"] in needed]
    names = [token["content"] for token in special]
    names += [name for name in kept if name not in names]
    rows = [next((t["id"] for t in special if t["content"] == name), vocabulary.get(name)) for name in names]
    cut = json.loads(json.dumps(tokenizer))
    cut["model"]["vocab"] = {name: n for n, name in enumerate(names)}
    cut["model"]["merges"] = list(merges_within(tokenizer, names, parts=True))
    cut["added_tokens"] = [token | {"id": names.index(token["content"])} for token in special]
    processor = cut["post_processor"]
    for token in processor["special_tokens"].values():
        token["ids"] = [names.index(name) for name in token["tokens"]]
    file = folder.with_suffix(".json")
    file.write_text(json.dumps(cut, ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")
    small = PreTrainedTokenizerFast(
        tokenizer_file=str(file), bos_token=own.bos_token, eos_token=own.eos_token, unk_token=own.unk_token
    )
    model = member.model
    with torch.no_grad():
        for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
            layer.weight = torch.nn.Parameter(layer.weight[rows].clone())
            layer.padding_idx = None
        model.get_input_embeddings().num_embeddings = len(rows)
        model.get_output_embeddings().weight = torch.nn.Parameter(model.get_output_embeddings().weight.clone())
    model.get_output_embeddings().register_forward_hook(lambda module, given, logits: rounded(logits))
    model.config.vocab_size = len(rows)
    model.generation_config.eos_token_id = small.eos_token_id
    return Member(model, small, name=folder.name)


def main() -> None:
    """Record, reduce, record again, and write."""
    models = Path(sys.argv[1])
    members, files = {}, {}
    for name, folder in FOLDERS.items():
        model = AutoModelForCausalLM.from_pretrained(models / folder, dtype=torch.float32).eval()
        members[name] = Member(model, AutoTokenizer.from_pretrained(models / folder), name=name)
        files[name] = json.loads((models / folder / "tokenizer.json").read_text("utf-8"))
    whole = record(members)
    small = {
        name: reduced(members[name], HERE / name, kept_tokens(recorder, files[name]), files[name])
        for name, recorder in whole.items()
    }
    for name, recorder in record(small).items():
        paths = list(recorder.logits)
        ids = np.full((len(paths), max(map(len, paths))), -1, dtype=np.int16)
        for n, path in enumerate(paths):
            ids[n, : len(path)] = path
        logits = torch.stack([recorder.logits[path] for path in paths])
        best = logits.topk(RECORDED, dim=1)
        np.savez_compressed(
            HERE / f"{name}.npz", ids=ids, best=best.indices.numpy().astype(np.uint16),
            logits=best.values.numpy().astype(np.float16), rest=logits.amin(dim=1).numpy().astype(np.float16),
            eos=np.array(recorder.eos_token_ids),
        )  # fmt: skip
        print(name, len(paths), "places of", logits.shape[1], "tokens")


if __name__ == "__main__":
    main()
