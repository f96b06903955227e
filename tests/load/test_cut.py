"""Shards of a source: together they are the whole, whatever the bytes, wherever it is cut."""

from __future__ import annotations

import gzip
import io
import itertools
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tasks.load.cut import ByteRange, LineRange
from tasks.load.source import Source, open_source
from tasks.load.stage import merged, read_ids
from tasks.load.streams import StoredFile
from tasks.records import DeadLetter, Document
from tasks.settings import SourceSettings
from tests.load.writers import as_delimited, as_json, as_jsonl

GOOD = b'{"id": "a", "text": "hello"}'
LINES = st.sampled_from(
    [GOOD, b'{"id": "b", "text": "' + b"long " * 40 + b'"}', b"", b"  ", b"{not json", b"\r", b"\xef\xbb\xbf" + GOOD]
)
FILES = st.binary(max_size=200) | st.tuples(
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.lists(LINES | st.binary(max_size=8), max_size=12).map(b"\n".join),
    st.sampled_from([b"", b"\n", b"\r\n"]),
).map(b"".join)


def items_of(source: Source, segment_size: int = 3) -> list[tuple[int, Document | DeadLetter]]:
    """Everything, each with its place; ids are checked to be the same items."""
    found: dict[int, Document | DeadLetter] = {}
    first = end = source.first_place
    for loaded in source.documents(segment_size):
        assert loaded.first == end
        end = loaded.last + 1
        found |= dict(zip(loaded.places, loaded.documents, strict=True))
        letters = iter(loaded.dead_letters)
        found |= {place: next(letters) for place in range(loaded.first, end) if place not in found}
    assert sum(map(len, source.ids())) == end - first
    return sorted(found.items())


def cut(source: Source, shards: int) -> list[Source]:
    """The shards, each behind those before it, as a run sets them up."""
    parts, items, lines = source.cut(shards), 0, dict[str, int]()
    for part in parts:
        ids = read_ids(part.ids())
        part.go_on_behind(items, lines)
        items += ids.items
        for name, count in part.lines().items():
            lines[name] = lines.get(name, 0) + count
    return parts


def together(source: Source, shards: int) -> list[tuple[int, Document | DeadLetter]]:
    return [item for part in cut(source, shards) for item in items_of(part)]


def write(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


def opened(location: str | Path) -> Source:
    return open_source(SourceSettings(location=str(location)))


@given(FILES, st.lists(st.integers(0, 210), max_size=5), st.integers(1, 64))
def test_line_ranges_hold_every_line_once(data: bytes, bounds: list[int], at_once: int) -> None:
    """Any bytes, any ranges (also ones that a line is longer than), any size of reads."""
    edges = sorted({0, len(data), *(bound for bound in bounds if bound < len(data))})
    pieces = []
    for start, stop in itertools.pairwise(edges):
        lines = LineRange(StoredFile(io.BytesIO(data), "file"), ByteRange(start, stop))
        pieces.append(b"".join(iter(lambda lines=lines: lines.read(at_once), b"")))  # type: ignore[misc]
        begun = [at for at in range(start, stop) if at == 0 or data[at - 1 : at] == b"\n"]
        assert len(pieces[-1].splitlines(keepends=True)) >= bool(begun)
        assert pieces[-1].count(b"\n") in {len(begun), len(begun) - 1}
    assert b"".join(pieces) == data


@settings(deadline=None)
@given(st.lists(FILES, min_size=1, max_size=3), st.integers(1, 9))
def test_shards_of_lines_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory, files: list[bytes], shards: int
) -> None:
    """The same items at the same places with the same line numbers: byte-order marks, CRLF, blank and bad lines."""
    folder = tmp_path_factory.mktemp("source")
    sound = [data for data in files if not data.startswith((b"\xff\xfe", b"\xfe\xff"))] or [b""]
    for number, data in enumerate(sound):
        write(folder, f"{number}.jsonl", data)
    assert together(opened(folder), shards) == items_of(opened(folder))


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 40])
def test_shards_of_parquet_are_its_row_groups(tmp_path: Path, shards: int) -> None:
    """Each once, with the rows' own numbers; more shards than groups leave some empty."""
    table = pa.table({"id": [f"d{i}" for i in range(100)], "text": [f"{i} " * 4000 for i in range(100)]})
    file = tmp_path / "source.parquet"
    parquet.write_table(table, file, row_group_size=8, compression="none", use_dictionary=False)
    source = opened(file)
    assert together(source, shards) == items_of(opened(file))
    sizes = [len(items_of(part)) for part in source.cut(shards)]
    assert max(sizes) <= -(-100 // shards) + 2 * 8


def test_what_cannot_be_cut_goes_to_one_shard(tmp_path: Path) -> None:
    """Compressed lines, JSON arrays and CSV, beside lines that are cut."""
    items = [{"id": f"d{i}", "text": "some text"} for i in range(30)]
    write(tmp_path, "a.jsonl.gz", gzip.compress(as_jsonl(items)))
    write(tmp_path, "b.json", as_json(items))
    write(tmp_path, "c.csv", as_delimited(items))
    write(tmp_path, "d.jsonl", as_jsonl(items))
    source = opened(tmp_path)
    assert [Path(name).name for name in source.whole_files] == ["a.jsonl.gz", "b.json", "c.csv"]
    assert together(source, 4) == items_of(opened(tmp_path))
    holders = [{Path(item.source).name for _, item in items_of(part)} for part in cut(source, 8)]
    for name in ("a.jsonl.gz", "b.json", "c.csv"):
        assert sum(name in names for names in holders) == 1
    assert sum("d.jsonl" in names for names in holders) > 1


def test_shards_have_about_equal_bytes(tmp_path: Path) -> None:
    """To a line, over files of any size."""
    sizes = (100, 1, 40, 59)
    for number, size in enumerate(sizes):
        write(
            tmp_path, f"{number}.jsonl", as_jsonl([{"id": f"{number}-{i:04}", "text": "x" * 50} for i in range(size)])
        )
    counts = [len(items_of(part)) for part in opened(tmp_path).cut(4)]
    assert sum(counts) == sum(sizes)
    assert max(counts) - min(counts) <= 2


@given(st.lists(st.lists(st.none() | st.sampled_from("abc") | st.text(max_size=1), max_size=6), min_size=1, max_size=5))
def test_the_last_place_of_an_id_counts_over_all_shards(shards: list[list[str | None]]) -> None:
    """Cut anywhere, the shards know what one scan of the whole knows."""
    whole = merged([read_ids([[id_ for ids in shards for id_ in ids]])])[0]
    scans = merged([read_ids([ids]) for ids in shards])
    assert [scan.items for scan in scans] == list(map(len, shards))
    assert [place for scan in scans for place in scan.superseded.tolist()] == whole.superseded.tolist()
    start = 0
    for scan in scans:
        assert all(start <= place < start + scan.items for place in scan.superseded.tolist())
        start += scan.items
