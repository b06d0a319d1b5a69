"""A UNITE step in the style of research scripts: Python dictionaries of surface strings, row by row.

It is what the kernel replaces, written to be compared with: tokens are related by their surface strings, missing
ones are looked up in the other vocabulary's dictionary or tokenized on the spot. On rows whose candidates are in
both vocabularies it decides as `unite_ext.unite_step` does, which the benchmark checks before timing it.
"""

from __future__ import annotations

import torch

from unite_ext.reference import StepResult

CLEAR = 0.02  # probability ahead of the runner-up: ties of 16-bit logits are broken in different ways


class DictionaryStep:
    """Holds the tokenizers and their surface dictionaries, as such scripts do between steps."""

    def __init__(self, tokenizers: list) -> None:
        self.tokenizers = tokenizers
        self.vocabularies = [tokenizer.get_vocab() for tokenizer in tokenizers]
        self.styles = ["Ġ" if any(t.startswith("Ġ") for t in vocab) else "▁" for vocab in self.vocabularies]

    def __call__(self, logits: list[torch.Tensor], k: int = 10) -> list[list[int]]:
        """The next id of every row and member, [B][M]; member 0 leads."""
        return [self._row([member[row] for member in logits], k) for row in range(logits[0].shape[0])]

    def _row(self, logits: list[torch.Tensor], k: int) -> list[int]:
        proposals = []
        for tokenizer, row in zip(self.tokenizers, logits):
            values, ids = torch.topk(row, k)
            tokens = tokenizer.convert_ids_to_tokens(ids.tolist())
            proposals.append(dict(zip(tokens, values.tolist())))

        union: list[str] = []
        for member, proposal in enumerate(proposals):
            for token in proposal:
                shared = token.replace(self.styles[member], self.styles[0])
                if shared not in union:
                    union.append(shared)

        probs, ids = [], []
        for member, (tokenizer, vocabulary, row) in enumerate(zip(self.tokenizers, self.vocabularies, logits)):
            scores, member_ids = [], []
            for shared in union:
                token = shared.replace(self.styles[0], self.styles[member])
                if token in vocabulary:
                    i = vocabulary[token]
                else:
                    i = tokenizer(token, add_special_tokens=False).input_ids[0]
                member_ids.append(i)
                scores.append(proposals[member].get(token, row[i].item()))
            probs.append(torch.tensor(scores).softmax(dim=0))
            ids.append(member_ids)
        average = torch.stack(probs).mean(dim=0)
        winner = int(average.argmax())
        return [member_ids[winner] for member_ids in ids]


def assert_same_winners(got: list[list[int]], expected: StepResult, clear: float = CLEAR) -> int:
    """AssertionError unless DictionaryStep's ids are the reference's in every clearly decided row; how many are."""
    best = expected.union_probs.topk(2, dim=1).values
    decided = (best[:, 0] - best[:, 1] > clear).cpu()
    if not torch.equal(torch.tensor(got)[decided], expected.next_ids.cpu()[decided]):
        raise AssertionError("the dictionary implementation and the reference disagree")
    return int(decided.sum())
