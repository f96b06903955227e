"""A source: its files one after another, as lists of documents or of ids."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tasks.errors import UsageError
from tasks.load.corpus import SampleCorpus
from tasks.load.cut import ByteRange, cut, is_cuttable
from tasks.load.json_array import JsonArray
from tasks.load.jsonl import Jsonl
from tasks.load.locations import STDIN, SourceFile, is_stream, locate, spool, without_secrets
from tasks.load.port import SourceFormat
from tasks.load.sniff import sniffed
from tasks.load.streams import DamagedFileError
from tasks.load.tabular import Delimited, Parquet
from tasks.records import DeadLetter, Document, Reason
from tasks.settings import SAMPLE_SOURCE, SourceSettings

IDS_AT_ONCE = 8192
SEGMENT_BYTES = 32 * 2**20
"""Of texts and metadata in one segment, or of its vectors: well above 1,000 documents of 4 KB with 3,072 dimensions
(16 MB), so that only larger ones make segments shorter, and small beside what several segments in flight may take."""

FORMATS: dict[str, Callable[[SourceFile, SourceSettings], SourceFormat]] = {
    "jsonl": Jsonl,
    "json": JsonArray,
    "csv": functools.partial(Delimited, delimiter=","),
    "tsv": functools.partial(Delimited, delimiter="\t"),
    "parquet": Parquet,
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """Consecutive items of a source. ``first`` and ``last`` are places over all its files, from 0.

    ``documents[i]`` stands at ``places[i]``; the places between ``first`` and ``last`` that are missing there belong to
    ``dead_letters``, in order. ``size_bytes`` are those of texts and metadata.
    """

    first: int
    last: int
    documents: list[Document]
    dead_letters: list[DeadLetter]
    places: Sequence[int]
    size_bytes: int = 0


class Source:
    """The files of one location, in order. Each pass opens them afresh; `close` removes what was spooled.

    ``display`` is the location without secrets. Item k of ``ids`` is item k of ``documents``: an item's place is the
    same in both passes. An id may belong to an item whose document turns out to be a dead letter. Of a shard,
    ``first_place`` is the place of its first item in the whole source.
    """

    def __init__(
        self,
        display: str,
        files: list[tuple[str, SourceFormat]],
        spooled: Path | None = None,
        stored: Sequence[SourceFile] = (),
    ) -> None:
        self.display = display
        self.first_place = 0
        self._files = files
        self._spooled = spooled
        self._stored = stored

    def documents(self, segment_size: int, max_bytes: int = SEGMENT_BYTES) -> Iterator[Loaded]:
        """Every item in order, in lists of ``segment_size`` items; the last may be shorter.

        So may be one whose texts and metadata reach ``max_bytes``: it ends with the item that does.

        A file that breaks off after its first item ends with a MALFORMED dead letter, and the next file goes on.

        Raises:
            UsageError: a file as a whole cannot be read; the message says what to do.
            UnavailableError: a file's bytes could not be fetched.
        """
        items = itertools.chain.from_iterable(_documents(name, file) for name, file in self._files)
        first = self.first_place
        while (loaded := [_loaded(first, *_taken(items, segment_size, max_bytes))])[0].last >= first:
            first = loaded[0].last + 1
            yield loaded.pop()  # a suspended generator must not keep the documents alive

    def ids(self) -> Iterator[list[str | None]]:
        """Every item's id in order, in lists of a few thousand; None where the item has none.

        Raises:
            UsageError: as `documents`.
            UnavailableError: as `documents`.
        """
        items = itertools.chain.from_iterable(_ids(name, file) for name, file in self._files)
        while chunk := list(itertools.islice(items, IDS_AT_ONCE)):
            yield chunk

    @property
    def whole_files(self) -> list[str]:
        """Names of files that cannot be cut: compressed ones, JSON arrays, CSV, what comes over HTTP."""
        return [name for name, file in self._files if not is_cuttable(file)]

    @property
    def file_count(self) -> int:
        """How many files it has."""
        return len(self._files)

    @property
    def is_spooled(self) -> bool:
        """Whether it was copied to this machine, where alone it can be read."""
        return self._spooled is not None

    def cut(self, shards: int) -> list[Source]:
        """So many consecutive parts of about equal bytes; what cannot be cut goes to one of them as a whole.

        Raises:
            UsageError: a file is gone.
        """
        sizes = [file.size_bytes() for file in self._stored] or [1] * len(self._files)
        formats = [file for _, file in self._files]
        plan = cut(list(zip(formats, sizes, strict=True)), shards)
        return [
            Source(self.display, [(self._files[number][0], _part(formats[number], part)) for number, part in parts])
            for parts in plan
        ]

    def lines(self) -> dict[str, int]:
        """Lines of each file whose positions are lines, as the last pass of `ids` counted them."""
        return {name: file.lines for name, file in self._files if isinstance(file, Jsonl)}

    def go_on_behind(self, items: int, lines: Mapping[str, int]) -> None:
        """Count places from ``items`` on, and lines of each file from those of its earlier parts on."""
        self.first_place = items
        for name, file in self._files:
            if isinstance(file, Jsonl):
                file.lines_before = lines.get(name, 0)

    def close(self) -> None:
        """Remove what was spooled; closing twice is harmless."""
        if self._spooled is not None:
            self._spooled.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_source(settings: SourceSettings) -> Source:
    """The source at ``settings.location``; standard input and pipes are copied to a temporary file, to be read twice.

    Raises:
        UsageError: nothing is there, the format cannot be told, or a package for the URL is missing.
    """
    location = settings.location
    if location == SAMPLE_SOURCE:
        return Source("sample corpus", [(SAMPLE_SOURCE, SampleCorpus())])
    if not is_stream(location):
        files = locate(location)
        formats = [(file.name, _format(file, settings)) for file in files]
        return Source(without_secrets(location), formats, stored=files)
    display = "standard input" if location == STDIN else location
    spooled = spool(location)
    try:
        file = SourceFile(display, str(spooled))
        return Source(display, [(display, _format(file, settings))], spooled, [file])
    except BaseException:
        spooled.unlink()
        raise


def _part(file: SourceFormat, part: ByteRange | None) -> SourceFormat:
    return file.piece(part) if part is not None and is_cuttable(file) else file


def _format(file: SourceFile, settings: SourceSettings) -> SourceFormat:
    known = file if file.format else sniffed(file, settings)
    return FORMATS[known.format](known, settings)


def _taken(
    items: Iterator[Document | DeadLetter], most: int, max_bytes: int
) -> tuple[list[Document | DeadLetter], int]:
    """The next items, and the bytes of their texts and metadata as they lie in memory."""
    taken: list[Document | DeadLetter] = []
    held = 0
    for item in itertools.islice(items, most):
        taken.append(item)
        if isinstance(item, Document):
            held += _bytes_of(item)
            if held >= max_bytes:
                break
    return taken, held


def _bytes_of(document: Document) -> int:
    """Of its text and of what metadata holds at its top: text, which is what may be large."""
    return sum(map(sys.getsizeof, document.metadata.values()), sys.getsizeof(document.text))


def _loaded(first: int, items: list[Document | DeadLetter], size_bytes: int) -> Loaded:
    last = first + len(items) - 1
    documents = [item for item in items if isinstance(item, Document)]
    if len(documents) == len(items):
        return Loaded(first, last, documents, [], range(first, last + 1), size_bytes)
    places = [place for place, item in enumerate(items, first) if isinstance(item, Document)]
    letters = [item for item in items if isinstance(item, DeadLetter)]
    return Loaded(first, last, documents, letters, places, size_bytes)


def _documents(name: str, file: SourceFormat) -> Iterator[Document | DeadLetter]:
    item = None
    try:
        for item in file.documents():  # the last item's position is needed
            yield item
    except DamagedFileError as damage:
        if item is None:
            raise _unreadable(name, damage) from damage
        message = f"{damage}; the rest of the file was not read"
        yield DeadLetter(None, name, item.position + 1, Reason.MALFORMED, message)


def _ids(name: str, file: SourceFormat) -> Iterator[str | None]:
    is_empty = True
    try:
        for item in file.ids():
            is_empty = False
            yield item
    except DamagedFileError as damage:
        if is_empty:
            raise _unreadable(name, damage) from damage
        yield None


def _unreadable(name: str, damage: DamagedFileError) -> UsageError:
    return UsageError(f"{name} cannot be read: {damage}, before its first document; check the file and its ending")
