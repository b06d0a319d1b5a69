"""Report what an alignment holds, in figures and examples, for `unite align`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

import torch

from .alignment import FIRST_SUB_TOKEN, ID_MASK, VocabAlignment

MAX_EXAMPLES = 8


@dataclass
class MemberReport:
    """One member's vocabulary."""

    name: str
    kind: str
    ids: int
    """Ids of the tokenizer, special tokens included."""
    eligible: int
    """Ids that may enter a top-k."""
    classes: int
    """Distinct texts of these ids, EOS aside."""
    doubled: int
    """Classes with more than one id."""
    eos_token_ids: list[int]


@dataclass
class Example:
    """A token of the first member, and the second member's token for it."""

    text: str
    surface: str
    """The token as the first member's vocabulary file spells it."""
    other_surface: str
    """The same for the second member's token."""
    other_text: str


@dataclass
class PairReport:
    """Two members compared."""

    first: str
    second: str
    surface_common: int
    """Surface strings in both vocabularies (DeePEn's column of the paper's Table 5)."""
    surface_union: int
    """Surface strings in either (GaC's column)."""
    classes_common: int
    """Texts for which both have a token, EOS aside."""
    missed_by_surface: int
    """How many of these have different surface strings in the two."""
    first_sub_token_share: tuple[float, float]
    """Share of the first member's eligible ids that need a first sub-token in the second, and the reverse."""
    missed_examples: list[Example] = field(default_factory=list)
    sub_token_examples: list[Example] = field(default_factory=list)


@dataclass
class AlignmentReport:
    """All members and pairs of an alignment."""

    members: list[MemberReport]
    pairs: list[PairReport]
    classes: int
    """Distinct texts over all members, EOS aside."""
    device_bytes: int
    """Memory of the alignment's tensors."""

    def to_dict(self) -> dict[str, object]:
        """Plain dictionaries and lists, for JSON."""
        return asdict(self)


class HasVocab(Protocol):
    """A tokenizer of transformers or of tokenizers."""

    def get_vocab(self) -> dict[str, int]:
        """Every id by its surface string."""


def report_alignment(
    alignment: VocabAlignment, tokenizers: Sequence[HasVocab], names: Sequence[str]
) -> AlignmentReport:
    """Count what an alignment of these tokenizers holds; `names` has one name per member."""
    surfaces = [tokenizer.get_vocab() for tokenizer in tokenizers]
    by_id = [{i: piece for piece, i in surface.items()} for surface in surfaces]
    members = []
    for m, name in enumerate(names):
        classes = alignment.classes[m]
        text_classes = classes[classes > 0]
        vocabulary = alignment.vocabularies[m]
        members.append(
            MemberReport(
                name=name,
                kind=vocabulary.kind,
                ids=len(surfaces[m]),
                eligible=int((classes >= 0).sum()),
                classes=len(text_classes.unique()),
                doubled=int((text_classes.bincount() > 1).sum()),
                eos_token_ids=list(vocabulary.eos_token_ids),
            )
        )
    pairs = [
        _report_pair(alignment, surfaces, by_id, names, i, j)
        for i in range(len(names))
        for j in range(i + 1, len(names))
    ]
    tensors = (alignment.table, alignment.class_ids, alignment.eligible)
    device_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return AlignmentReport(members, pairs, alignment.num_classes - 1, device_bytes)


def _report_pair(
    alignment: VocabAlignment,
    surfaces: Sequence[Mapping[str, int]],
    by_id: Sequence[Mapping[int, str]],
    names: Sequence[str],
    i: int,
    j: int,
) -> PairReport:
    tagged = alignment.class_ids[1:, [i, j]]  # class 0 is EOS
    own = (tagged >= 0) & (tagged & FIRST_SUB_TOKEN == 0)
    both = own.all(dim=1)
    ids = (tagged[both] & ID_MASK).tolist()
    missed = [(a, b) for a, b in ids if by_id[i].get(a) != by_id[j].get(b)]

    def example(a: int, b: int) -> Example:
        first, second = (alignment.token_bytes(m, t).decode("utf-8", "backslashreplace") for m, t in ((i, a), (j, b)))
        return Example(first, by_id[i].get(a, ""), by_id[j].get(b, ""), second)

    only_first = own[:, 0] & ~own[:, 1] & (tagged[:, 1] >= 0)
    sub_tokens = (tagged[only_first] & ID_MASK).tolist()
    common = surfaces[i].keys() & surfaces[j].keys()
    return PairReport(
        first=names[i],
        second=names[j],
        surface_common=len(common),
        surface_union=len(surfaces[i].keys() | surfaces[j].keys()),
        classes_common=int(both.sum()),
        missed_by_surface=len(missed),
        first_sub_token_share=(_sub_token_share(alignment, i, j), _sub_token_share(alignment, j, i)),
        missed_examples=[example(a, b) for a, b in _spread(missed)],
        sub_token_examples=[example(a, b) for a, b in _spread(sub_tokens)],
    )


def _sub_token_share(alignment: VocabAlignment, owner: int, other: int) -> float:
    classes = alignment.classes[owner]
    text_classes = classes[classes > 0].long()
    if len(text_classes) == 0:
        return 0.0
    tagged = alignment.class_ids[text_classes, other]
    needs = (tagged < 0) | (tagged & FIRST_SUB_TOKEN != 0)
    return float(needs.to(torch.float64).mean())


def _spread(items: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """At most MAX_EXAMPLES of `items`, spread evenly over them."""
    step = max(1, -(-len(items) // MAX_EXAMPLES))
    return items[::step]
