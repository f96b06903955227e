"""The format of bytes that have no telling name."""

from __future__ import annotations

import csv
import dataclasses
import io

from tasks.errors import UsageError
from tasks.load.json_array import array_or_keys, ijson_in_c
from tasks.load.locations import SourceFile
from tasks.load.streams import MAGIC, Compression, SourceStream, StoredFile
from tasks.settings import SourceSettings

_HEAD_BYTES = 1 << 16
_GOES_ON = (b"{", b"[", b",", b":")


def sniffed(file: SourceFile, settings: SourceSettings) -> SourceFile:
    """The file with the format, and where its name says none the compression, that its first 64 KiB show.

    Raises:
        UsageError: the bytes are none of the formats.
    """
    if not file.compression:
        file = dataclasses.replace(file, compression=_compression(file))
    with file.open() as stream:
        head = stream.peek(_HEAD_BYTES)
    found = format_of(head, settings)
    if not found:
        raise UsageError(
            f"cannot tell the format of {file.name}: give it an ending such as .jsonl, .json, .csv or .parquet"
        )
    return dataclasses.replace(file, format=found)


def format_of(head: bytes, settings: SourceSettings) -> str:
    """The format that the first bytes show, empty where they show none.

    - ``[`` opens a JSON array, ``PAR1`` is Parquet, nothing at all is JSONL without lines.
    - ``{`` opens a JSON document if the array of ``json_path`` begins within the first bytes of that very value, or
      if the first line is no value of its own (it ends in an opening bracket, a comma or a colon); else JSONL.
    - A first line that has both the id's and the text's column is the header of a TSV or CSV file.
    - Otherwise a later line that opens with ``{`` makes it JSONL with a bad first line.
    """
    start = head.lstrip()
    first_line = start.partition(b"\n")[0].rstrip()
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith(b"["):
        return "json"
    if start.startswith(b"{"):
        return "json" if first_line.endswith(_GOES_ON) or _holds_array(start, settings.json_path) else "jsonl"
    for name, delimiter in (("tsv", "\t"), ("csv", ",")):
        if {settings.id_field, settings.text_field} <= set(_columns(first_line, delimiter)):
            return name
    return "jsonl" if not start or b"\n{" in start else ""


def _holds_array(head: bytes, json_path: str) -> bool:
    stream = SourceStream(StoredFile(io.BytesIO(head), "head"), "", "head")
    return array_or_keys(ijson_in_c(), stream, json_path) is None


def _columns(line: bytes, delimiter: str) -> list[str]:
    return next(csv.reader([line.decode("utf-8", "replace")], delimiter=delimiter), [])


def _compression(file: SourceFile) -> Compression:
    with file.open_raw() as raw:
        head = raw.read(4)
    return next((compression for magic, compression in MAGIC.items() if head.startswith(magic)), "")
