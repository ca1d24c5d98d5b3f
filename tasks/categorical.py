"""Many categorical distributions in one table, drawn from exactly and without a loop.

Probabilities are multiples of 2^-53, and a draw is an integer u, uniform on 0 .. 2^53 - 1. Row r occupies
r 2^53 .. (r + 1) 2^53 - 1 of one line of integers, cut into the items' shares; the item is the one whose
share holds r 2^53 + u. Integers throughout: no rounding, so the same everywhere.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

BITS = 53  # of a uniform draw, and so of a probability: what a double holds exactly
ONE = 1 << BITS
MAX_ROWS = 1 << (63 - BITS)  # rows whose cuts fit in 64 signed bits


class Categorical:
    """Rows of probabilities, each summing to 1; the items of all rows are numbered through."""

    def __init__(self, rows: Sequence[Float[np.ndarray, " _"]]):
        if len(rows) > MAX_ROWS:
            raise ValueError(f"at most {MAX_ROWS} distributions fit in a table, got {len(rows)}.")
        shares = [np.minimum(np.round(np.cumsum(row)[:-1] * ONE).astype(np.int64), ONE) for row in rows]
        cuts = [np.concatenate(([0], cut)) + (r << BITS) for r, cut in enumerate(shares)]
        self.cuts = np.concatenate(cuts)

    def draw(self, row: Int[np.ndarray, " draw"], u: Int[np.ndarray, " draw"]) -> Int[np.ndarray, " draw"]:
        """The item for each row number and each integer u of 0 .. 2^53 - 1."""
        return np.searchsorted(self.cuts, (row << BITS) + u, side="right") - 1
