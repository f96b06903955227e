"""Model tokens as they are billed, from those counted offline."""

from __future__ import annotations

import math
from collections import deque

ANSWERS_REMEMBERED = 100
ANSWERS_TRUSTED = 10
"""Before so many answers the offline count holds as it is: a bound by the embedder's contract."""


class Calibration:
    """Learns what share of the counted model tokens is billed, as the greatest of the newest answers.

    The greatest and not the mean, so that what is reserved before a request goes is not less than its bill.
    """

    def __init__(self) -> None:
        self._ratios: deque[float] = deque(maxlen=ANSWERS_REMEMBERED)

    @property
    def ratio(self) -> float:
        """Billed model tokens per counted one."""
        known = max(self._ratios, default=1.0)
        return known if len(self._ratios) >= ANSWERS_TRUSTED else max(1.0, known)

    def expected(self, counted: int) -> int:
        """What so many counted model tokens will be billed as, at most."""
        return math.ceil(counted * self.ratio)

    def learn(self, counted: int, billed: int) -> None:
        """One answer's bill. A server that bills nothing teaches nothing."""
        if counted > 0 and billed > 0:
            self._ratios.append(billed / counted)
