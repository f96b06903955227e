"""Arrow columns as the Python values of documents."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import pyarrow as pa

Row = tuple[Any, Any, dict[str, Any]]
"""Id, text and metadata as they stand in the table."""

# What JSON would make of a cell; every cell of the column's first block must agree. 007 is no number.
_CELL_KINDS = (
    ("int64", r"^-?(0|[1-9][0-9]{0,17})$"),
    ("double", r"^-?(0|[1-9][0-9]{0,17})(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?$"),
    ("bool", r"^(true|false|True|False|TRUE|FALSE)$"),
)
_PATTERNS = dict(_CELL_KINDS)


def zip_rows(ids: list[Any], texts: list[Any], metadata: dict[str, list[Any]]) -> Iterator[Row]:
    """Rows of columns as long as each other; a metadata value that is None is left out."""
    names = list(metadata)
    values = zip(*metadata.values(), strict=True) if names else itertools.repeat((), len(ids))
    for id_value, text, row in zip(ids, texts, values, strict=True):
        yield id_value, text, {name: value for name, value in zip(names, row, strict=True) if value is not None}


def strings(column: pa.Array) -> list[Any]:
    """The column as strings, whole numbers in digits; bytes stay bytes where they are not UTF-8."""
    import pyarrow as pa  # noqa: PLC0415

    try:
        return column.cast(pa.string()).to_pylist()  # type: ignore[no-any-return]
    except pa.ArrowInvalid:
        return [_decoded(value) for value in column.to_pylist()]


def kind_of_cells(column: pa.Array) -> str:
    """``int64``, ``double`` or ``bool`` if every cell that is there reads as one, else empty: strings."""
    from pyarrow import compute  # noqa: PLC0415

    cells = column.drop_null()
    if not len(cells):
        return ""
    for kind, pattern in _CELL_KINDS:
        if compute.all(compute.match_substring_regex(cells, pattern)).as_py():
            return kind
    return ""


def cells(column: pa.Array, kind: str) -> list[Any]:
    """The cells as values of a kind; a cell that does not read as one stays a string."""
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import compute  # noqa: PLC0415

    written = strings(column)
    if not kind:
        return written
    fits = compute.match_substring_regex(column, _PATTERNS[kind])
    typed = compute.if_else(fits, column, None).cast(pa.string()).cast(kind).to_pylist()
    return [cell if value is None else value for cell, value in zip(written, typed, strict=True)]


def json_values(column: pa.Array) -> list[Any]:
    """The column as values that JSON has: NaN is None, times are ISO 8601, decimals and bytes strings, maps objects."""
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import compute  # noqa: PLC0415

    if pa.types.is_floating(column.type):
        column = compute.if_else(compute.is_finite(column), column, None)
    if _is_plain(column.type):
        return column.to_pylist()  # type: ignore[no-any-return]
    values = column.cast(_in_microseconds(column.type), safe=False).to_pylist(maps_as_pydicts="lossy")
    return [msgspec.to_builtins(value, str_keys=True, enc_hook=str) for value in values]


def _is_plain(kind: pa.DataType) -> bool:
    from pyarrow import types  # noqa: PLC0415

    plain = (types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string)
    return any(test(kind) for test in plain)


def _in_microseconds(kind: pa.DataType) -> pa.DataType:
    """The type with its nanoseconds, which Python's times do not have, cut to microseconds."""
    import pyarrow as pa  # noqa: PLC0415

    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    if pa.types.is_time64(kind) or pa.types.is_duration(kind):
        return pa.time64("us") if pa.types.is_time64(kind) else pa.duration("us")
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_in_microseconds(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_in_microseconds(kind.value_type)))
    if pa.types.is_map(kind):
        return pa.map_(kind.key_field, kind.item_field.with_type(_in_microseconds(kind.item_type)))
    return kind


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return value.decode() if value is not None else None
    except UnicodeDecodeError:
        return value
