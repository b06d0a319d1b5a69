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
