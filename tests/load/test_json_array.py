"""JSON arrays: where they are, where they are not, where they break off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.errors import UsageError
from tasks.records import Reason
from tests.load.writers import contents, read

ITEM = b'{"id": "a", "text": "hello", "metadata": {"score": 0.5}}'
EXPECTED = ("a", "hello", {"score": 0.5})


def file(tmp_path: Path, data: bytes) -> Path:
    """A JSON file of these bytes."""
    path = tmp_path / "source.json"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        (b'{"documents": [%s]}', {}),
        (b'{"a": {"b": [%s]}, "documents": []}', {"json_path": "a.b.item"}),
        (b"[%s]", {"json_path": "item"}),
        (b" \n[%s]", {}),
        (b'\xef\xbb\xbf{"documents": [%s]}', {}),
    ],
)
def test_the_array_is_found(tmp_path: Path, data: bytes, settings: dict[str, Any]) -> None:
    """A path leads to it; a top-level array needs none; floats are floats."""
    documents, _ = read(file(tmp_path, data % ITEM), **settings)
    assert contents(documents) == [EXPECTED]


def test_an_unknown_path_names_the_keys_that_are_there(tmp_path: Path) -> None:
    """The message says what to write instead."""
    with pytest.raises(UsageError, match=r"no array at 'documents\.item'; top-level keys: 'items', 'meta'"):
        read(file(tmp_path, b'{"items": [%s], "meta": {"documents": [1]}}' % ITEM))


@pytest.mark.parametrize("data", [b'{"documents": []}', b"[]", b"", b" \n "])
def test_an_empty_array_and_an_empty_file_have_no_documents(tmp_path: Path, data: bytes) -> None:
    """An array that is there but empty is not a wrong path."""
    assert read(file(tmp_path, data)) == ([], [])


def test_a_path_that_names_the_array_itself_is_refused(tmp_path: Path) -> None:
    """It would load the array as one item."""
    with pytest.raises(UsageError, match=r"must end with item: try 'documents\.item'"):
        read(file(tmp_path, b"{}"), json_path="documents")


@pytest.mark.parametrize("tail", [b"", b', {"id": "b", "te', b", nonsense", b"] trailing", b', {"id": "\xff"}]'])
def test_an_array_that_breaks_off_ends_with_one_dead_letter(tmp_path: Path, tail: bytes) -> None:
    """What came before is kept, the place of the break is told, and the text is not quoted."""
    documents, dead_letters = read(file(tmp_path, b"[" + ITEM + b"," + ITEM + tail))
    assert contents(documents) == [EXPECTED] * 2
    (letter,) = dead_letters
    assert (letter.id, letter.position, letter.reason) == (None, 3, Reason.MALFORMED)
    assert letter.message == "not valid JSON from here on; the rest of the file was not read"


@pytest.mark.parametrize("data", [b"nonsense", b'{"documents": [', b'{"documents": [}'])
def test_a_file_without_a_first_document_is_refused(tmp_path: Path, data: bytes) -> None:
    """Nothing readable at all is an error of the whole."""
    with pytest.raises(UsageError, match=r"source\.json cannot be read: not valid JSON"):
        read(file(tmp_path, data))


def test_elements_that_are_no_documents_are_dead_letters(tmp_path: Path) -> None:
    """Each says its place in the array."""
    documents, dead_letters = read(file(tmp_path, b'[5, null, "x", {"text": "t"}, %s]' % ITEM))
    assert [document.position for document in documents] == [5]
    assert [letter.position for letter in dead_letters] == [1, 2, 3, 4]
    assert {letter.reason for letter in dead_letters} == {Reason.INVALID}
