"""An array of objects inside one JSON file, streamed by ijson's C back end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from tasks.errors import UsageError
from tasks.load.fields import Fields, id_of
from tasks.load.locations import SourceFile
from tasks.load.streams import DamagedFileError, SourceStream
from tasks.records import DeadLetter, Document
from tasks.settings import SourceSettings

TOP_LEVEL = "item"
DEFAULT_PATH = SourceSettings().json_path
_BUFFER_BYTES = 1 << 16
_HEAD_BYTES = 1 << 12
_KEYS_SHOWN = 10


class JsonArray:
    """The array under ``json_path`` of one file; positions are places in the array, from 1.

    A file whose top level is an array is read with the path ``item`` while ``json_path`` is left at its default.
    Metadata follows the same rule as in JSONL. A whole number beyond 64 bits ends the file: yajl reads none.

    Raises:
        UsageError: the path does not end with ``item``, or ijson's C back end is missing.
    """

    def __init__(self, file: SourceFile, settings: SourceSettings) -> None:
        if settings.json_path.split(".")[-1] != TOP_LEVEL:
            raise UsageError(
                f"json_path {settings.json_path!r} must end with item: try {settings.json_path + '.item'!r}"
            )
        self._file = file
        self._path = settings.json_path
        self._fields = Fields.of(settings, file.name)
        self._ijson = ijson_in_c()

    def documents(self) -> Iterator[Document | DeadLetter]:
        """A document or a dead letter for each element."""
        return map(self._fields.from_object, self._items(), itertools.count(1))

    def ids(self) -> Iterator[str | None]:
        """The id of each element, decoded whole: a path to the ids alone would pass over elements without one."""
        return (id_of(item, self._fields.id) for item in self._items())

    def _items(self) -> Iterator[Any]:
        with self._file.open() as stream:
            head = stream.peek(_HEAD_BYTES).lstrip()
            if not head and stream.ends_within(_HEAD_BYTES):
                return
            path = TOP_LEVEL if head.startswith(b"[") and self._path == DEFAULT_PATH else self._path
            is_empty = True
            for item in self._decoded(stream, path):
                is_empty = False
                yield item
        if is_empty:
            self._require(path)

    def _decoded(self, stream: SourceStream, path: str) -> Iterator[Any]:
        from ijson.common import JSONError  # noqa: PLC0415

        try:
            yield from self._ijson.items(stream, path, use_float=True, buf_size=_BUFFER_BYTES)
        except JSONError as error:  # its message quotes the file
            raise DamagedFileError("not valid JSON from here on") from error

    def _require(self, path: str) -> None:
        """Tell an array that is empty from one that is not there."""
        with self._file.open() as stream:
            keys = array_or_keys(self._ijson, stream, path)
        if keys is None:
            return
        seen = f"top-level keys: {', '.join(map(repr, keys))}" if keys else "the top level has no keys"
        raise UsageError(f"{self._file.name} has no array at {path!r}; {seen}. Set json_path to ARRAY.item, or to item")


def array_or_keys(ijson: Any, stream: SourceStream, path: str) -> list[str] | None:
    """None if there is an array whose elements have the path, else the first top-level keys, in order.

    Bytes that end or break before the array are as if it were not there.
    """
    from ijson.common import JSONError  # noqa: PLC0415

    array = path.removesuffix(TOP_LEVEL).rstrip(".")
    keys: list[str] = []
    try:
        for prefix, event, value in ijson.parse(stream, use_float=True, buf_size=_BUFFER_BYTES):
            if prefix == array and event == "start_array":
                return None
            if prefix == "" and event == "map_key" and len(keys) < _KEYS_SHOWN:
                keys.append(str(value))
    except JSONError:
        pass
    return keys


def ijson_in_c() -> Any:
    """The C back end of ijson, some ten times faster than the pure one.

    Raises:
        UsageError: this installation of ijson has none.
    """
    import ijson  # noqa: PLC0415

    try:
        return ijson.get_backend("yajl2_c")
    except ImportError as error:
        raise UsageError("ijson has no C back end here (yajl2_c): reinstall ijson from a binary wheel") from error
