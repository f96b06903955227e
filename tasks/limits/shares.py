"""How many of a limit's slots a run should hold, and how it gets there. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence


def fair_share(limit: int, runs: int, wanted: int) -> int:
    """An equal part of the limit for each run that shares it, one at least; no more than the run wants."""
    return max(1, min(wanted, limit // max(1, runs)))


def next_chunk(held: int, share: int) -> int:
    """Slots to lease next, 0 where the share is held: half of what is missing, so that parts can be given back."""
    return max(0, math.ceil((share - held) / 2))


def to_give_back(chunks: Sequence[int], share: int) -> int:
    """How many of the newest chunks to give back, so that no more than the share is held."""
    held, count = sum(chunks), 0
    while held > share and count < len(chunks):
        count += 1
        held -= chunks[-count]
    return count
