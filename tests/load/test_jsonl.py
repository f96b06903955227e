"""JSONL as it is found: odd line ends, bad lines, odd fields."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.errors import UsageError
from tasks.records import Reason
from tests.load.writers import contents, read

GOOD = b'{"id": "a", "text": "hello"}'
SECRET = "the secret text"


def lines(tmp_path: Path, data: bytes) -> Path:
    """A JSONL file of these bytes."""
    path = tmp_path / "source.jsonl"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + GOOD + b"\n" + GOOD,
        GOOD + b"\r\n" + GOOD + b"\r\n",
        b"\n\n" + GOOD + b"\n  \t\r\n" + GOOD + b"\n\n",
        b"  " + GOOD + b"  \n" + GOOD,
    ],
    ids=["byte-order mark, no last line feed", "CRLF", "blank lines", "white space around"],
)
def test_harmless_oddities_change_nothing(tmp_path: Path, data: bytes) -> None:
    """A byte-order mark, CRLF, blank lines and a missing last line feed are no items."""
    documents, dead_letters = read(lines(tmp_path, data))
    assert contents(documents) == [("a", "hello", {})] * 2
    assert not dead_letters


@pytest.mark.parametrize(
    ("line", "reason", "document_id", "message"),
    [
        (b'{"id": "b", "text": "the secret text \xff"}', Reason.MALFORMED, None, "not valid UTF-8"),
        (b'{"id": "b", "text": "the secret text', Reason.MALFORMED, None, "not valid JSON"),
        (b'{"id": "b", "text": "the secret text"} x', Reason.MALFORMED, None, "not valid JSON"),
        (b'{"id": "b", "text": "\\ud800 the secret text"}', Reason.MALFORMED, None, "not valid JSON"),
        (b"the secret text", Reason.MALFORMED, None, "not valid JSON"),
        (b"[" * 100_000, Reason.MALFORMED, None, "not valid JSON"),
        (b'["the secret text"]', Reason.INVALID, None, "not a JSON object"),
        (b'{"text": "the secret text"}', Reason.INVALID, None, "field 'id' is missing or null"),
        (b'{"id": null, "text": "the secret text"}', Reason.INVALID, None, "field 'id' is missing or null"),
        (b'{"id": "", "text": "the secret text"}', Reason.INVALID, None, "empty id in field 'id'"),
        (b'{"id": 1.5, "text": "x"}', Reason.INVALID, None, "field 'id' must be a string or a whole number, not float"),
        (b'{"id": true, "text": "x"}', Reason.INVALID, None, "field 'id' must be a string or a whole number, not bool"),
        (b'{"id": "b"}', Reason.INVALID, "b", "field 'text' is missing or null"),
        (b'{"id": 5, "text": null}', Reason.INVALID, "5", "field 'text' is missing or null"),
        (b'{"id": "b", "text": ["the secret text"]}', Reason.INVALID, "b", "field 'text' must be a string, not list"),
        (b'{"id": "b", "text": ""}', Reason.INVALID, "b", "empty text in field 'text'"),
        (b'{"id": "b", "text": " \\n\\t"}', Reason.INVALID, "b", "empty text in field 'text'"),
        (
            b'{"id": "b", "text": "x", "metadata": 5}',
            Reason.INVALID,
            "b",
            "field 'metadata' must be an object, not int",
        ),
    ],
)
def test_a_bad_line_is_a_dead_letter_with_its_line_number(
    tmp_path: Path, line: bytes, reason: Reason, document_id: str | None, message: str
) -> None:
    """The message names the field and never quotes the text; the lines around it are documents."""
    path = lines(tmp_path, GOOD + b"\n\n" + line + b"\n" + GOOD)
    documents, dead_letters = read(path)
    assert [document.position for document in documents] == [1, 4]
    (letter,) = dead_letters
    assert (letter.id, letter.source, letter.position) == (document_id, str(path), 3)
    assert (letter.reason, letter.message) == (reason, message)
    assert SECRET not in letter.message


def test_metadata_is_the_object_or_the_named_fields(tmp_path: Path) -> None:
    """Named fields that are missing or null are left out; top-level fields that are not named are not metadata."""
    path = lines(tmp_path, b'{"id":"a","text":"t","x":1,"y":null,"metadata":{"deep":[{"k":null}],"big":1e3}}')
    assert read(path)[0][0].metadata == {"deep": [{"k": None}], "big": 1000.0}
    assert read(path, metadata_fields=("x", "y", "z"))[0][0].metadata == {"x": 1}


def test_a_field_may_be_asked_for_twice(tmp_path: Path) -> None:
    """The id may be metadata too."""
    documents, _ = read(lines(tmp_path, GOOD), metadata_fields=("id",))
    assert contents(documents) == [("a", "hello", {"id": "a"})]


def test_lines_are_found_across_blocks(tmp_path: Path) -> None:
    """Ten thousand lines of all lengths are ten thousand documents, wherever a block ends."""
    data = b"\n".join(b'{"id":%d,"text":"%s"}' % (number, b"x" * (1 + number % 997)) for number in range(10_000))
    documents, dead_letters = read(lines(tmp_path, data), segment_size=777)
    assert not dead_letters
    assert [(document.id, document.position) for document in documents] == [(str(n), n + 1) for n in range(10_000)]


def test_utf16_is_refused_with_advice(tmp_path: Path) -> None:
    """Every line of it would be a dead letter; one sentence is better."""
    with pytest.raises(UsageError, match="UTF-16: save it as UTF-8"):
        read(lines(tmp_path, GOOD.decode().encode("utf-16")))
