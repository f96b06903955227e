"""What of a collection is believed before anything is skipped for it."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.checkpoints.binding import LOOKS, check_collection
from tasks.errors import UsageError
from tasks.records import Record

SAMPLES = [f"d{i}" for i in range(10)]


class Collection:
    """Holds so many records, and of the samples so many; ``late`` looks see nothing yet."""

    identity = "store:here"

    def __init__(self, held: int, sampled: int, late: int = 0) -> None:
        self.held = held
        self.sampled = sampled
        self.late = late
        self.looks = 0

    async def count(self) -> int:
        self.looks += 1
        return self.held if self.looks > self.late else 0

    async def fetch(self, ids: list[str]) -> list[Record]:
        return [Record(id_, np.ones(2, np.float32), None, {}) for id_ in ids[: self.sampled]]


async def at_once(_: float) -> None:
    """No time passes."""


@pytest.mark.parametrize(
    "collection", [Collection(100, 10), Collection(90, 5), Collection(5000, 10), Collection(100, 10, late=LOOKS - 1)]
)
async def test_a_collection_that_holds_what_was_upserted_is_believed(collection: Collection) -> None:
    """Also where some records were deleted, others were added, or the store counts late."""
    await check_collection(collection, 100, SAMPLES, at_once)


@pytest.mark.parametrize(
    ("collection", "what"),
    [
        (Collection(0, 0), "holds 0 records"),
        (Collection(89, 10), "holds 89 records"),
        (Collection(100, 4), "holds other records than this job's"),
    ],
)
async def test_an_emptied_or_foreign_collection_is_not(collection: Collection, what: str) -> None:
    """The error names the collection and what to do."""
    with pytest.raises(UsageError, match=f"store:here {what}.* 100 documents: use --rebuild"):
        await check_collection(collection, 100, SAMPLES, at_once)
    assert collection.looks == LOOKS
