"""Documents of 5 MB each: what is in flight is bounded by bytes, however many documents a segment may hold."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tasks.load.source import SEGMENT_BYTES, Source
from tasks.records import Document
from tests.test_pipeline import Mill, counts

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("results")]

DOCUMENTS = 60
TEXT_BYTES = 5_000_000
ALLOWED_BYTES = 64 * 2**20


class LargeDocuments:
    """A format that makes its documents as they are read; ``read`` counts them."""

    def __init__(self) -> None:
        self.read = 0

    def documents(self) -> Iterator[Document]:
        for number in range(DOCUMENTS):
            self.read += 1
            yield Document(f"d{number}", f"{number:08} " + "x" * TEXT_BYTES, {}, "made", number + 1)

    def ids(self) -> Iterator[str]:
        return (f"d{number}" for number in range(DOCUMENTS))


async def test_bytes_bound_what_is_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings ask for 1,000 a segment, 5 GB; a quarter of 300 MB is in flight, and the process holds little more."""
    monkeypatch.setattr("tasks.limits.memory.MAX_BYTES_IN_FLIGHT", ALLOWED_BYTES)
    mill, made = Mill(tmp_path), LargeDocuments()
    most = 0

    def before(_: Sequence[str]) -> None:
        nonlocal most
        most = max(most, made.read - len(mill.store.records))
        mill.embedder.requests.clear()  # or the fake would keep every text alive
        mill.embedder.answered.clear()

    tracemalloc.start()
    try:
        source = Source("made", [("made", made)])
        state = await mill.run(source, before=before, batch_size=100, checkpoint_interval=10, no_text=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert counts(await mill.report(state)) == (DOCUMENTS, DOCUMENTS, 0, 0, 0)
    most_bytes = ALLOWED_BYTES + SEGMENT_BYTES + TEXT_BYTES  # room for a byte lets one more segment in
    assert 1 < most * TEXT_BYTES < most_bytes
    assert peak < most_bytes + 40_000_000
