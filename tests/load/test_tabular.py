"""CSV, TSV and Parquet: odd rows, types, columns."""

from __future__ import annotations

import datetime as dt
import decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from tasks.errors import UsageError
from tasks.records import Reason
from tests.load.writers import contents, read


def table(tmp_path: Path, data: bytes) -> Path:
    """A CSV file of these bytes."""
    path = tmp_path / "source.csv"
    path.write_bytes(data)
    return path


def columns(tmp_path: Path, **values: Any) -> Path:
    """A Parquet file of two rows with these columns besides id and text, or instead of them."""
    path = tmp_path / "source.parquet"
    parquet.write_table(pa.table({"id": ["a", "b"], "text": ["t", "u"]} | values), path)
    return path


def test_rows_that_do_not_fit_the_header_keep_their_place(tmp_path: Path) -> None:
    """Too few cells, too many, bytes that are not UTF-8: one dead letter each, between the others."""
    data = b"id,text\n1,one\nshort\n\n3,\xff\nlong,a,b,c\n5,five\nlast\n"
    documents, dead_letters = read(table(tmp_path, data))
    assert [(document.id, document.position) for document in documents] == [("1", 1), ("5", 5)]
    assert [(letter.position, letter.reason) for letter in dead_letters] == [
        (n, Reason.MALFORMED) for n in (2, 3, 4, 6)
    ]


def test_cells_become_what_json_would_make_of_them(tmp_path: Path) -> None:
    """Numbers and booleans by the column, 007 stays 007, an empty cell is left out, NA is a text."""
    data = b"id,text,n,x,flag,code,mixed\n007,NA,1,1.5,true,007,\nnull,t,-2,2,false,8,z\n,t,,,,,\n"
    documents, dead_letters = read(table(tmp_path, data))
    assert contents(documents) == [
        ("007", "NA", {"n": 1, "x": 1.5, "flag": True, "code": "007"}),
        ("null", "t", {"n": -2, "x": 2.0, "flag": False, "code": "8", "mixed": "z"}),
    ]
    assert [letter.message for letter in dead_letters] == ["field 'id' is missing or null"]


def test_a_cell_that_breaks_its_columns_type_late_stays_a_string(tmp_path: Path) -> None:
    """Types come from the first block; a later odd cell costs nothing but its type."""
    rows = b"".join(b"%d,%s,%d\n" % (number, b"x" * 1000, number) for number in range(20_000))
    documents, dead_letters = read(table(tmp_path, b"id,text,n\n" + rows + b"last,t,many\n"))
    assert not dead_letters
    assert [document.metadata["n"] for document in documents] == [*range(20_000), "many"]


@pytest.mark.parametrize("data", [b"", b"id,text\n", b"id,text", b"\xef\xbb\xbfid,text\r\n"])
def test_a_header_alone_is_an_empty_source(tmp_path: Path, data: bytes) -> None:
    """So is nothing at all."""
    assert read(table(tmp_path, data)) == ([], [])


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    """In both formats, before a row is read."""
    with pytest.raises(UsageError, match=r"no column 'text': .* 'id', 'body'"):
        read(table(tmp_path, b"id,body\n1,one\n"))
    with pytest.raises(UsageError, match=r"no column 'key': .* 'id', 'text'"):
        read(columns(tmp_path), id_field="key")
    with pytest.raises(UsageError, match="more than one column 'id'"):
        read(table(tmp_path, b"id,text,id\n1,one,2\n"))


def test_a_row_over_the_limit_ends_the_file_with_a_dead_letter(tmp_path: Path) -> None:
    """What came before is kept."""
    rows = b"".join(b"%d,%s\n" % (number, b"x" * 1000) for number in range(40_000))
    documents, dead_letters = read(table(tmp_path, b"id,text\n" + rows + b"big," + b"y" * 40_000_000 + b"\n1,a\n"))
    assert [document.id for document in documents] == [str(number) for number in range(len(documents))]
    assert len(documents) > 0
    (letter,) = dead_letters
    assert (letter.position, letter.reason) == (len(documents) + 1, Reason.MALFORMED)


def test_arrow_types_become_json_values(tmp_path: Path) -> None:
    """Null and NaN are left out, times are ISO 8601, categories strings."""
    path = columns(
        tmp_path,
        when=pa.array([1_700_000_000_000_000_123, None], pa.timestamp("ns")),
        day=[dt.date(2024, 2, 29), None],
        price=[decimal.Decimal("1.50"), None],
        score=[float("nan"), 0.5],
        tags=[["x", "y"], None],
        category=pa.array(["c", "d"]).dictionary_encode(),
    )
    first, second = (document.metadata for document in read(path)[0])
    assert first == {
        "when": "2023-11-14T22:13:20",
        "day": "2024-02-29",
        "price": "1.50",
        "tags": ["x", "y"],
        "category": "c",
    }
    assert second == {"score": 0.5, "category": "d"}


@pytest.mark.parametrize(
    "metadata",
    [
        pa.array([{"k": 1, "none": None}, None], pa.struct({"k": pa.int64(), "none": pa.string()})),
        pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
    ],
    ids=["struct", "map"],
)
def test_a_metadata_column_of_objects_is_the_metadata(tmp_path: Path, metadata: pa.Array) -> None:
    """As in JSON, other columns are then not metadata unless they are named."""
    path = columns(tmp_path, metadata=metadata, other=[1, 2])
    assert [document.metadata for document in read(path)[0]] == [{"k": 1}, {}]
    assert [document.metadata for document in read(path, metadata_fields=("other",))[0]] == [{"other": 1}, {"other": 2}]


@pytest.mark.parametrize("ids", [[1.5, 2.5], [b"a", b"b"], [True, False]])
def test_an_id_column_of_another_type_is_refused(tmp_path: Path, ids: list[Any]) -> None:
    """A float for an id is a mistake of the file, not of a row."""
    with pytest.raises(UsageError, match=r"column 'id' is .* must hold strings or whole numbers"):
        read(columns(tmp_path, id=ids))


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    """One line, without a word of its content."""
    path = tmp_path / "source.parquet"
    path.write_bytes(b"the secret text")
    with pytest.raises(UsageError, match="cannot be read: not Parquet") as raised:
        read(path)
    assert "secret" not in str(raised.value)
