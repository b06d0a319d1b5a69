from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def fill_table(
    class_of: Sequence[NDArray[np.int32]],
    class_ids: NDArray[np.int32],
    table: NDArray[np.int32],
    log2_capacity: int,
) -> bool:
    """Fill the hash map from (member, id) to class and the other members' ids; False where it is too small."""
