"""The contract of a source format, over every format and compression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.records import Reason
from tests.load.writers import COMPRESSORS, WRITERS, Item, contents, read

pytestmark = [
    pytest.mark.parametrize("format_name", WRITERS),
    pytest.mark.parametrize("compression", COMPRESSORS),
]

ITEMS: list[Item] = [
    {"id": "a", "text": "first", "metadata": {"lang": "en", "n": 1}},
    {"id": "007", "text": 'two\nlines, "quoted"\tand tabbed', "metadata": {"lang": "de", "n": 2}},
    {"id": "ünï-✓", "text": "grüße 😀 \u2028 日本", "metadata": {"lang": "日本", "n": -3}},
    {"id": "a", "text": "the first id again", "metadata": {"lang": "en", "n": 4}},
]


@pytest.fixture
def write(tmp_path: Path, format_name: str, compression: str) -> Any:
    """Write items in the format under test and say where."""

    def write(items: list[Item]) -> Path:
        path = tmp_path / f"source.{format_name}{compression}"
        path.write_bytes(COMPRESSORS[compression](WRITERS[format_name](items)))
        return path

    return write


def test_documents_come_back_equal_and_in_order(write: Any) -> None:
    """Ids, texts and metadata survive, 007 is not 7, and a repeated id stands at both places."""
    documents, dead_letters = read(write(ITEMS), segment_size=3)
    assert contents(documents) == [(item["id"], item["text"], item["metadata"]) for item in ITEMS]
    assert not dead_letters
    assert [document.position for document in documents] == [1, 2, 3, 4]


def test_a_document_says_its_source_file(write: Any) -> None:
    """`source` is the file as a person would name it."""
    path = write(ITEMS)
    assert {document.source for document in read(path)[0]} == {str(path)}


def test_whole_number_ids_become_strings(write: Any) -> None:
    """An id 7 is the id '7' in both passes."""
    documents, _ = read(write([{"id": number, "text": "t"} for number in (7, 8, 123456789012345)]))
    assert [document.id for document in documents] == ["7", "8", "123456789012345"]


def test_an_empty_source_has_no_documents(write: Any) -> None:
    """No items is no error: the flow decides what an empty source means."""
    assert read(write([])) == ([], [])


def test_a_document_of_five_megabytes_is_one_document(write: Any) -> None:
    """Blocks are smaller than documents may be."""
    text = "Mühle, \n" * 600_000
    documents, dead_letters = read(write([{"id": "big", "text": text}, {"id": "small", "text": "t"}]))
    assert not dead_letters
    assert [document.text == text for document in documents] == [True, False]


def test_an_item_without_text_is_a_dead_letter_between_its_neighbours(write: Any) -> None:
    """Only the bad item is given up on; its place stays its own."""
    documents, dead_letters = read(write([ITEMS[0], {"id": "b", "text": " "}, {"id": "c", "text": None}, ITEMS[1]]))
    assert [document.id for document in documents] == ["a", "007"]
    assert [(letter.id, letter.reason) for letter in dead_letters] == [("b", Reason.INVALID), ("c", Reason.INVALID)]
    assert all("'text'" in letter.message for letter in dead_letters)


def test_other_field_names_and_chosen_metadata(write: Any, format_name: str) -> None:
    """The settings name the fields; what is not named is left out."""
    path = write([{"id": "x", "text": "body", "metadata": {"title": "T", "year": 1999}}])
    fields: tuple[str, ...] = ("metadata",) if "json" in format_name else ("title", "year")
    documents, _ = read(path, id_field="text", text_field="id", metadata_fields=fields)
    metadata: dict[str, Any] = {"title": "T", "year": 1999}
    assert contents(documents) == [("body", "x", {"metadata": metadata} if "json" in format_name else metadata)]


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
_ITEMS = st.lists(
    st.fixed_dictionaries(
        {
            "id": _TEXT,
            "text": _TEXT.filter(lambda text: not text.isspace()),
            "metadata": st.just({}) | st.fixed_dictionaries({"n": st.integers(-(2**53), 2**53)}),
        }
    ),
    max_size=12,
)


@given(items=_ITEMS, segment_size=st.integers(1, 5))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_written_is_read(write: Any, items: list[Item], segment_size: int) -> None:
    """Any documents in any format read back equal, however they are cut into segments."""
    documents, dead_letters = read(write(items), segment_size)
    assert not dead_letters
    assert contents(documents) == [(item["id"], item["text"], item["metadata"]) for item in items]
