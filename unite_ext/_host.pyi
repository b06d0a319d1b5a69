from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_MEMBERS: Final[int]
MAX_K: Final[int]
MAX_WALK: Final[int]
"""Of members * k."""
MAX_PROBES: Final[int]
MAX_LOG2_CAPACITY: Final[int]
ID_BITS: Final[int]
ID_MASK: Final[int]
FIRST_SUB_TOKEN: Final[int]
"""The flag of an id that is only the first sub-token of its class's bytes."""
NO_ID: Final[int]
NO_CLASS: Final[int]
EOS_CLASS: Final[int]
BAD_INCLUDE: Final[int]
"""A row's status when its `include` is no eligible id of the primary."""

def fill_table(
    class_of: Sequence[NDArray[np.int32]],
    class_ids: NDArray[np.int32],
    table: NDArray[np.int32],
    log2_capacity: int,
) -> bool:
    """Fill the hash map from (member, id) to class and the other members' ids; False where it is too small."""

END_OF_TEXT: Final[int]
"""The symbol after the 256 bytes."""

class SortedTokens:
    """A vocabulary's tokens, sorted by their bytes; a token stands before those that it begins."""

    def __init__(self, tokens: Sequence[bytes]) -> None: ...
    def find(self, prefix: bytes) -> tuple[int, int, int]:
        """Where the tokens with exactly these bytes begin and end, and where those end that begin with them."""

    def prefixes(self, text: bytes) -> list[tuple[int, int, int]]:
        """What `find` says of 1, 2, ... bytes of a text, as long as some token begins with them."""

    def __len__(self) -> int: ...

def walk(
    members: Sequence[
        tuple[SortedTokens, Sequence[tuple[NDArray[np.float64], int, int, int, int, float, float]], float]
    ],
    *,
    primary: int,
    max_ended: float,
    unlikely_share: float,
    max_bytes: int,
    allow_eos: bool,
    forced: Sequence[int] | None = None,
    draws: Sequence[float] | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    recorded: int = 0,
) -> tuple[
    list[tuple[int, bool, float, list[float], list[tuple[int, float, list[float]]]]],
    list[list[tuple[int, int, int, float]]],
    list[tuple[int, int, int, int, float]],
]:
    """Choose the next bytes of a text from the members' covers, see csrc/core/byte_walk.h.

    Returns
    -------
    steps : list of (symbol, is_best, prob, member_probs, candidates)
        The bytes taken, END_OF_TEXT for the end, with their averaged probability and every member's; candidates are
        the (symbol, prob, member_probs) of every member's `recorded` best, best first.
    ranges : per member and cover (begin, stop, depth, mass)
        Where it stands after the walk: the tokens that go on, the bytes that they agree in, and their probability.
    ends : list of (member, cover, length, token, weight)
        The covers that one more token ends `length` bytes after the old end of the text.
    """
