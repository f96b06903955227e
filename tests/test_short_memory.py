"""Whole runs while the memory is short for good: slower, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.test_pipeline import Mill, counts, numbered

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("results")]

SEGMENT = 4
"""Documents: two batches of two."""


async def test_one_segment_at_a_time_goes_all_the_way(tmp_path: Path) -> None:
    """When one is embedded, all before it are stored; the run completes, having said why it is slow, once."""
    mill = Mill(tmp_path)
    mill.write(*numbered(20))
    behind: list[int] = []

    def before(texts: Sequence[str]) -> None:
        first = min(int(text.split()[1]) for text in texts)
        behind.append(first - first % SEGMENT - len(mill.store.records))

    state = await mill.run(before=before, max_memory_percent=0.001)
    assert state.is_completed()
    assert counts(await mill.report(state)) == (20, 20, 0, 0, 0)
    assert behind == [0] * 10
    assert len(mill.warnings) == 1
    assert "one segment at a time" in mill.warnings[0]


async def test_what_is_done_already_does_not_hold_the_reader_back(tmp_path: Path) -> None:
    """Segments of which nothing is pending are let go too."""
    mill = Mill(tmp_path)
    mill.write(*numbered(20))
    await mill.run()
    report = await mill.report(await mill.run(max_memory_percent=0.001))
    assert counts(report) == (20, 0, 20, 0, 0)
