"""JSON Lines: one object a line, decoded straight into a typed struct."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from tasks.load.cut import ByteRange, LineRange
from tasks.load.fields import NOT_UTF8, Fields, identify
from tasks.load.locations import SourceFile
from tasks.load.streams import BLOCK_BYTES, SourceStream
from tasks.records import DeadLetter, Document
from tasks.settings import SourceSettings

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_Id = str | int | None


class Jsonl:
    """One JSONL file. A line that holds only white space is no item; positions are line numbers, from 1.

    Metadata is the object under ``metadata``, or the named top-level fields that are there and not null; other
    top-level fields are not kept. Memory: a block of 256 KiB and its lines, or the longest line.
    """

    def __init__(self, file: SourceFile, settings: SourceSettings) -> None:
        self._file = file
        self._fields = Fields.of(settings, file.name)
        self._part: ByteRange | None = None
        self.lines_before = 0
        self.lines = 0

    @property
    def can_cut(self) -> bool:
        """Whether bytes in the middle can be read without those before."""
        return not self._file.compression and not self._file.is_http

    def piece(self, part: ByteRange) -> Jsonl:
        """See `Cuttable`. ``lines_before`` makes its positions those of the whole file."""
        piece = copy.copy(self)
        piece._part = part  # noqa: SLF001 - its own kind
        return piece

    def documents(self) -> Iterator[Document | DeadLetter]:
        """A document or a dead letter for each line."""
        decode = _item_decoder(self._fields)
        metadata_of = _metadata_getter(self._fields)
        source, number = self._file.name, self.lines_before
        with self._open() as stream:
            for lines in split_lines(stream):
                for number, line in enumerate(lines, number + 1):  # noqa: B020
                    try:
                        item = decode(line)
                    except _UNREADABLE:
                        item = None
                    if item is not None and item.id.__class__ is int:
                        item.id = str(item.id)
                    if item is not None and item.id and item.text and not item.text.isspace():
                        yield Document(item.id, item.text, metadata_of(item), source, number)
                    elif (odd := self._odd(line, number)) is not None:
                        yield odd

    def ids(self) -> Iterator[str | None]:
        """The id of each line, None where the line has none; nothing but the id is decoded. Counts ``lines``."""
        self.lines = 0
        struct = msgspec.defstruct("Id", [("id", _Id, None)], rename={"id": self._fields.id}, gc=False)
        decode = msgspec.json.Decoder(struct).decode
        with self._open() as stream:
            for lines in split_lines(stream):
                self.lines += len(lines)
                for line in lines:
                    try:
                        value = decode(line).id  # type: ignore[attr-defined]
                    except _UNREADABLE:
                        value = None
                    if value.__class__ is str and value:
                        yield value
                    elif value is not None or not _is_blank(line):
                        yield identify(value)

    def _open(self) -> SourceStream:
        if self._part is None:
            return self._file.open()
        lines = LineRange(self._file.open_raw(), self._part)
        return SourceStream(lines, "", self._file.name, is_start=self._part.start == 0)

    def _odd(self, line: bytes, number: int) -> Document | DeadLetter | None:
        """What became of a line that is no plain document: the slow and exact way."""
        if _is_blank(line):
            return None
        try:
            item = msgspec.json.decode(line)
        except UnicodeDecodeError:
            return self._fields.malformed(number, NOT_UTF8)
        except _UNREADABLE:
            return self._fields.malformed(number, "not valid JSON")
        return self._fields.from_object(item, number)


def split_lines(stream: SourceStream) -> Iterator[list[bytes]]:
    """The lines of a stream, block by block, without their line feeds; the last one is there without one too."""
    parts: list[bytes] = []
    while block := stream.read(BLOCK_BYTES):
        cut = block.rfind(b"\n")
        if cut < 0:
            parts.append(block)
            continue
        parts.append(block[:cut])
        lines = b"".join(parts).split(b"\n")
        parts = [block[cut + 1 :]]
        yield lines
    if rest := b"".join(parts):
        yield [rest]


def _is_blank(line: bytes) -> bool:
    return not line or line.isspace()


def _item_decoder(fields: Fields) -> Callable[[bytes], Any]:
    """A decoder into a struct with `id`, `text` and the metadata; one field asked for twice cannot be typed."""
    names = [fields.id, fields.text, *fields.metadata]
    if len(set(names)) < len(names):
        return lambda _line: None
    spec: list[tuple[str, Any, Any]] = [("id", _Id, None), ("text", str | None, None)]
    spec += [(f"field_{place}", Any, None) for place in range(len(fields.metadata))]
    if fields.object_field is not None:
        spec.append(("metadata", dict[str, Any] | None, None))
        names.append(fields.object_field)
    rename = {attribute: name for (attribute, _, _), name in zip(spec, names, strict=True)}
    return msgspec.json.Decoder(msgspec.defstruct("Item", spec, rename=rename, gc=False)).decode


def _metadata_getter(fields: Fields) -> Callable[[Any], dict[str, Any]]:
    if fields.object_field is not None:
        return lambda item: item.metadata or {}
    return lambda item: {
        name: value
        for name, value in zip(fields.metadata, msgspec.structs.astuple(item)[2:], strict=True)
        if value is not None
    }
