"""Memory is bounded by a buffer and a document, not by the file."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tasks.load.source import Source, open_source
from tasks.settings import SourceSettings

FILE_BYTES = 50_000_000
PEAK_BYTES = 6_000_000
LINE = json.dumps({"id": "0123456789", "text": "water " * 2000, "metadata": {"n": 1}}).encode()
COUNT = FILE_BYTES // len(LINE)


@pytest.fixture(params=["jsonl", "json", "jsonl.zst"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of 50 MB, decompressed; the compressed one shrinks ten-thousandfold."""
    lines = (b"," if request.param == "json" else b"\n").join([LINE] * COUNT)
    data = b"[" + lines + b"]" if request.param == "json" else lines
    path = tmp_path / f"source.{request.param}"
    path.write_bytes(zstandard.compress(data) if request.param.endswith("zst") else data)
    return path


def walk_documents(source: Source) -> Iterator[int]:
    """Items of each segment of ten."""
    return (loaded.last - loaded.first + 1 for loaded in source.documents(10))


def walk_ids(source: Source) -> Iterator[int]:
    """Items of each list of ids."""
    return map(len, source.ids())


@pytest.mark.parametrize("walk", [walk_documents, walk_ids])
def test_a_large_file_takes_a_few_megabytes(path: Path, walk: Callable[[Source], Iterator[int]]) -> None:
    """The peak of all Python allocations while 50 MB pass by."""
    with open_source(SourceSettings(location=str(path))) as source:
        tracemalloc.start()
        count = sum(walk(source))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert count == COUNT
    assert peak < PEAK_BYTES


def test_a_segment_ends_with_the_item_that_reaches_its_bytes(tmp_path: Path) -> None:
    """Large texts and large metadata count; nothing is lost between two segments."""
    small: dict[str, Any]
    small, long_text = {"text": "t"}, {"text": "x" * 10_000}
    long_page: dict[str, Any] = {"text": "t", "metadata": {"page": "x" * 10_000}}
    items = [small, long_text, small, small, long_page, long_text, small]
    path = tmp_path / "source.jsonl"
    path.write_text("\n".join(json.dumps({"id": str(place), **item}) for place, item in enumerate(items)))
    with open_source(SourceSettings(location=str(path))) as source:
        loaded = list(source.documents(3, max_bytes=8_000))
    assert [[document.id for document in each.documents] for each in loaded] == [
        ["0", "1"],
        ["2", "3", "4"],
        ["5"],
        ["6"],
    ]
    assert [each.size_bytes > 8_000 for each in loaded] == [True, True, True, False]
    assert [(each.first, each.last) for each in loaded] == [(0, 1), (2, 4), (5, 5), (6, 6)]
