"""Files that break off: what was read is kept, what was not is told."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tasks.errors import UnavailableError, UsageError
from tasks.load.locations import SourceFile
from tasks.records import Reason
from tests.load.writers import WRITERS, read

COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstandard.compress}
ITEMS = [{"id": str(n), "text": random.Random(n).randbytes(400).hex()} for n in range(3000)]


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("format_name", ["jsonl", "json", "csv", "tsv"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.999])
def test_a_file_cut_short_ends_with_one_dead_letter(
    tmp_path: Path, format_name: str, compression: str, share: float
) -> None:
    """Every document before the cut is whole, and the cut is one MALFORMED dead letter right behind the last."""
    data = COMPRESS[compression](WRITERS[format_name](ITEMS))
    path = tmp_path / f"source.{format_name}.{compression}"
    path.write_bytes(data[: int(len(data) * share)])
    documents, dead_letters = read(path)
    assert [(each.id, each.text) for each in documents] == [(e["id"], e["text"]) for e in ITEMS[: len(documents)]]
    assert len(documents) > 0.7 * share * len(ITEMS)
    (letter,) = dead_letters
    assert (letter.reason, letter.position) == (Reason.MALFORMED, documents[-1].position + 1)
    assert letter.message == "the compressed bytes break off here; the rest of the file was not read"


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("format_name", ["jsonl", "json"])
def test_garbage_behind_a_whole_file_is_one_dead_letter(tmp_path: Path, format_name: str, compression: str) -> None:
    """Nothing is passed over in silence."""
    path = tmp_path / f"source.{format_name}.{compression}"
    path.write_bytes(COMPRESS[compression](WRITERS[format_name](ITEMS)) + b"garbage behind it")
    documents, dead_letters = read(path)
    assert len(documents) == len(ITEMS)
    assert [letter.message.partition(" here")[0] for letter in dead_letters] == ["the compressed bytes are damaged"]


@pytest.mark.parametrize("name", ["source.jsonl.gz", "source.csv.zst", "source.json.gz", "source.parquet.gz"])
def test_a_file_that_is_not_compressed_at_all_is_refused(tmp_path: Path, name: str) -> None:
    """One line that names the file and not its content."""
    (tmp_path / name).write_bytes(b"the secret text")
    with pytest.raises(UsageError, match=f"{name} cannot be read: the compressed bytes are damaged") as raised:
        read(tmp_path / name)
    assert "secret" not in str(raised.value)


def test_the_files_after_a_damaged_one_are_read(tmp_path: Path) -> None:
    """Damage ends its own file only."""
    data = gzip.compress(WRITERS["jsonl"](ITEMS))
    (tmp_path / "a.jsonl.gz").write_bytes(data[: len(data) // 2])
    (tmp_path / "b.jsonl.gz").write_bytes(data)
    documents, dead_letters = read(tmp_path)
    assert [letter.source for letter in dead_letters] == [str(tmp_path / "a.jsonl.gz")]
    assert [document.id for document in documents[-3000:]] == [item["id"] for item in ITEMS]


def test_a_file_that_may_not_be_read_is_a_usage_error(tmp_path: Path) -> None:
    """A folder where a file should be stands for any error of the system."""
    with pytest.raises(UsageError, match="cannot be opened \\(IsADirectoryError\\)"):
        SourceFile(str(tmp_path), str(tmp_path)).open()


def test_bytes_that_cannot_be_fetched_are_no_damage() -> None:
    """A read that fails is worth another run: it must not become a dead letter."""
    with (
        SourceFile("memory", "/proc/self/mem").open_raw(),
        pytest.raises(UnavailableError, match="reading memory failed"),
    ):
        SourceFile("memory", "/proc/self/mem").open()
