"""CSV, TSV and Parquet, streamed by pyarrow."""

from __future__ import annotations

import copy
import csv
import io
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tasks.errors import UsageError
from tasks.load.columns import Row, cells, json_values, kind_of_cells, strings, zip_rows
from tasks.load.cut import ByteRange
from tasks.load.fields import METADATA_FIELD, NOT_UTF8, Fields, identify
from tasks.load.locations import SourceFile
from tasks.load.streams import DamagedFileError, SourceStream
from tasks.records import DeadLetter, Document
from tasks.settings import SourceSettings

if TYPE_CHECKING:
    import pyarrow as pa

ROW_LIMIT_BYTES = 1 << 23
"""A CSV row must fit a block of pyarrow's reader: 8 MiB. Parquet rows are read by about as many bytes."""
_ROWS_AT_ONCE = 1000
_HEADER_BYTES = 1 << 16
_COLUMNS_SHOWN, _LETTERS_SHOWN = 12, 40


class Delimited:
    """A CSV or TSV file with a header; positions are rows, from 1, and a quoted cell may hold line feeds.

    Ids and texts are strings as written. Metadata is every other column, or the named ones: numbers and booleans where
    the whole first block of the column reads so (``007`` does not) and the cell does, else strings; an empty cell
    without quotes is left out. A row with too many or too few cells, or with bytes that are not UTF-8, is a dead
    letter. Memory: a few blocks of 8 MiB; a longer row ends the file.
    """

    def __init__(self, file: SourceFile, settings: SourceSettings, *, delimiter: str) -> None:
        self._file = file
        self._fields = Fields.of(settings, file.name)
        self._delimiter = delimiter

    def documents(self) -> Iterator[Document | DeadLetter]:
        """A document or a dead letter for each row."""
        fields = self._fields

        def finish(row: Row | None, position: int) -> Document | DeadLetter:
            return fields.malformed(position, NOT_UTF8) if row is None else fields.document(*row, position)

        def refuse(position: int) -> DeadLetter:
            return fields.malformed(position, "not as many cells as the header")

        return self._items([], self._rows, finish, refuse)

    def ids(self) -> Iterator[str | None]:
        """The id of each row, None where it has none; the other columns are split but not converted."""
        name = self._fields.id

        def read(batches: Iterator[pa.RecordBatch]) -> Iterator[Any]:
            return itertools.chain.from_iterable(strings(batch.column(name)) for batch in batches)

        return self._items([name], read, lambda value, _position: identify(value), lambda _position: None)

    def _rows(self, batches: Iterator[pa.RecordBatch]) -> Iterator[Row | None]:
        """The rows of the batches, None for one that is not UTF-8."""
        kinds: dict[str, str] = {}
        for batch in batches:
            names = _metadata_columns(self._fields, batch.schema.names)
            kinds = kinds or {name: kind_of_cells(batch.column(name)) for name in names}
            for part in (batch.slice(start, _ROWS_AT_ONCE) for start in range(0, batch.num_rows, _ROWS_AT_ONCE)):
                ids, texts = strings(part.column(self._fields.id)), strings(part.column(self._fields.text))
                metadata = {name: cells(part.column(name), kinds[name]) for name in names}
                for row in zip_rows(ids, texts, metadata):
                    yield None if bytes in map(type, (*row[:2], *row[2].values())) else row

    def _items(
        self, columns: list[str], read: Callable[..., Any], finish: Callable[..., Any], refuse: Callable[[int], Any]
    ) -> Iterator[Any]:
        """Each row that ``read`` gives, finished, and a refusal at the place of each row that pyarrow passed over."""
        with self._file.open(quiet=True) as stream:
            if stream.peek(_HEADER_BYTES).strip() or not stream.ends_within(_HEADER_BYTES):
                refused: deque[int] = deque()
                rows = read(self._batches(stream, columns, refused))
                yield from _without_the_cut_one(_placed(rows, refused, finish, refuse), stream)

    def _batches(self, stream: SourceStream, columns: list[str], refused: deque[int]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa  # noqa: PLC0415
        from pyarrow import csv as arrow  # noqa: PLC0415

        head = stream.peek(_HEADER_BYTES)
        header = _header(head, self._delimiter)
        _require_columns(self._fields, header)
        if len(head) < _HEADER_BYTES and not {10, 13} & set(head.strip()):
            return  # pyarrow takes a header without a line feed for an empty file

        def pass_over(row: Any) -> str:
            refused.append(row.number - 1)  # the header is row 1
            return "skip"

        reading = arrow.ReadOptions(use_threads=False, block_size=ROW_LIMIT_BYTES)
        parsing = arrow.ParseOptions(delimiter=self._delimiter, newlines_in_values=True, invalid_row_handler=pass_over)
        converting = arrow.ConvertOptions(
            check_utf8=False,  # else one bad cell would end the file
            column_types=dict.fromkeys(header, pa.binary()),
            include_columns=columns,
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        )
        with _as_damage(f"no rows of at most {ROW_LIMIT_BYTES >> 20} MiB"):
            yield from arrow.open_csv(stream, reading, parsing, converting)


class Parquet:
    """A Parquet file; positions are rows, from 1.

    Ids may be strings or whole numbers. Metadata is the column ``metadata`` if that is a struct or a map, else every
    other column, or the named ones. Null and NaN are left out; times become ISO 8601, decimals and bytes strings.
    Memory: about 8 MiB of rows besides the open row group's pages.
    """

    def __init__(self, file: SourceFile, settings: SourceSettings) -> None:
        self._file = file
        self._fields = Fields.of(settings, file.name)
        self._part: ByteRange | None = None

    @property
    def can_cut(self) -> bool:
        """Whether row groups can be read alone; a compressed or remote file is copied as a whole."""
        return not self._file.compression and not self._file.is_http

    def piece(self, part: ByteRange) -> Parquet:
        """See `Cuttable`: the row groups that begin in this range."""
        piece = copy.copy(self)
        piece._part = part  # noqa: SLF001 - its own kind
        return piece

    def documents(self) -> Iterator[Document | DeadLetter]:
        """A document or a dead letter for each row."""
        first = 1 + self._rows_before()
        return (self._fields.document(*row, position) for position, row in enumerate(self._rows(), first))

    def ids(self) -> Iterator[str | None]:
        """The id of each row, None where it has none; no other column is read."""
        batches = self._batches(lambda _schema: [self._fields.id])
        return (identify(value) for batch in batches for value in strings(batch.column(self._fields.id)))

    def _rows(self) -> Iterator[Row]:
        fields = self._fields
        for batch in self._batches(lambda schema: [fields.id, fields.text, *_metadata_of(fields, schema)]):
            ids, texts = strings(batch.column(fields.id)), strings(batch.column(fields.text))
            names = _metadata_of(fields, batch.schema)
            rows = zip_rows(ids, texts, {name: json_values(batch.column(name)) for name in names})
            yield from map(_unwrapped, rows) if _holds_object(fields, batch.schema) else rows

    def _batches(self, columns: Callable[[Any], list[str]]) -> Iterator[pa.RecordBatch]:
        from pyarrow import parquet  # noqa: PLC0415

        with self._file.open_seekable() as stream, _as_damage("not Parquet"), parquet.ParquetFile(stream) as file:
            schema = file.schema_arrow
            _require_columns(self._fields, schema.names)
            _require_types(self._fields, schema)
            wanted = list(dict.fromkeys(columns(schema)))
            groups = _groups_within(file.metadata, self._part)
            if groups:
                rows = _rows_at_once(file.metadata)
                yield from file.iter_batches(rows, row_groups=groups, columns=wanted, use_threads=False)

    def _rows_before(self) -> int:
        if self._part is None:
            return 0
        from pyarrow import parquet  # noqa: PLC0415

        with self._file.open_seekable() as stream, _as_damage("not Parquet"), parquet.ParquetFile(stream) as file:
            groups = _groups_within(file.metadata, ByteRange(0, self._part.start))
            return sum(int(file.metadata.row_group(group).num_rows) for group in groups)


def _groups_within(metadata: Any, part: ByteRange | None) -> list[int]:
    """Row groups that begin in a range of the file's bytes; all where there is none."""
    if part is None:
        return list(range(metadata.num_row_groups))
    starts = [_first_byte(metadata.row_group(group)) for group in range(metadata.num_row_groups)]
    return [group for group, start in enumerate(starts) if part.start <= start < part.stop]


def _first_byte(group: Any) -> int:
    columns = (group.column(number) for number in range(group.num_columns))
    return int(min(column.dictionary_page_offset or column.data_page_offset for column in columns))


def _require_columns(fields: Fields, columns: Sequence[str]) -> None:
    for name in (fields.id, fields.text, *fields.metadata):
        if columns.count(name) != 1:
            seen = ", ".join(repr(column[:_LETTERS_SHOWN]) for column in columns[:_COLUMNS_SHOWN])
            fault = "more than one column" if name in columns else "no column"
            raise UsageError(f"{fields.source} has {fault} {name!r}: set id_field, text_field to one of {seen}")


def _require_types(fields: Fields, schema: pa.Schema) -> None:
    from pyarrow import types  # noqa: PLC0415

    texts = (types.is_string, types.is_large_string, types.is_string_view)
    for name, allowed in ((fields.id, (*texts, types.is_integer)), (fields.text, texts)):
        kind = schema.field(name).type
        value_kind = kind.value_type if types.is_dictionary(kind) else kind
        if not any(test(value_kind) for test in allowed):
            wanted = "strings" if allowed is texts else "strings or whole numbers"
            raise UsageError(f"{fields.source}: column {name!r} is {value_kind}, but must hold {wanted}")


def _metadata_of(fields: Fields, schema: pa.Schema) -> list[str]:
    return [METADATA_FIELD] if _holds_object(fields, schema) else _metadata_columns(fields, schema.names)


def _metadata_columns(fields: Fields, columns: Sequence[str]) -> list[str]:
    return list(fields.metadata) or [name for name in columns if name not in (fields.id, fields.text)]


def _holds_object(fields: Fields, schema: pa.Schema) -> bool:
    from pyarrow import types  # noqa: PLC0415

    if fields.object_field is None or METADATA_FIELD not in schema.names:
        return False
    kind = schema.field(METADATA_FIELD).type
    return bool(types.is_struct(kind) or types.is_map(kind))


def _unwrapped(row: Row) -> Row:
    metadata = row[2].get(METADATA_FIELD, {})
    return row[0], row[1], {name: value for name, value in metadata.items() if value is not None}


def _rows_at_once(metadata: Any) -> int:
    """Rows of about `ROW_LIMIT_BYTES`, by the average of the widest row group."""
    groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
    widest = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=1)
    return max(1, min(_ROWS_AT_ONCE, ROW_LIMIT_BYTES // max(widest, 1)))


def _placed(
    rows: Iterator[Any], refused: deque[int], finish: Callable[..., Any], refuse: Callable[[int], Any]
) -> Iterator[Any]:
    position = 0
    for row in rows:
        position += 1
        while refused and refused[0] == position:
            yield refuse(refused.popleft())
            position += 1
        yield finish(row, position)
    yield from map(refuse, refused)


def _without_the_cut_one(items: Iterator[Any], stream: SourceStream) -> Iterator[Any]:
    """Every item but the last one of a stream that breaks off, as that may be cut in two.

    Raises:
        DamagedFileError: the stream broke off.
    """
    held: list[Any] = []
    try:
        for item in items:
            yield from held
            held = [item]
    except DamagedFileError:
        yield from held
        raise
    if stream.damage is not None:
        raise stream.damage
    yield from held


def _header(head: bytes, delimiter: str) -> list[str]:
    lines = csv.reader(io.StringIO(head.decode("utf-8", "replace"), newline=""), delimiter=delimiter)
    return next((line for line in lines if line), [])


@contextmanager
def _as_damage(message: str) -> Iterator[None]:
    """Arrow's own errors, which may quote the file, as damage."""
    import pyarrow as pa  # noqa: PLC0415

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DamagedFileError(f"{message} from here on") from error
