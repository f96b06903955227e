"""What Weaviate takes: the rules for a document, and an object in the protocol's own form and back.

Every object has the properties ``document_id``, ``text`` (left out where the text is not kept) and ``metadata``: the
whole metadata as JSON, keys sorted, so that it reads back as it was. Weaviate's own properties are typed, and its
auto-schema would let the first document decide a field's type, take a string that looks like a date or a UUID for one,
and refuse a later document by it. So only those metadata fields become properties, to be filtered by, that the
collection declares; a value that does not fit the declaration is known before the document is embedded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard
from uuid import UUID, uuid5

import numpy as np
import orjson
from google.protobuf.struct_pb2 import Struct
from weaviate.proto.v1 import base_pb2, batch_pb2, properties_pb2, search_get_pb2

from tasks.records import Document, EncodedRecord, Hit, Record, Vectors
from tasks.upsert.json_rules import json_refusal, json_text

DOCUMENT_ID, TEXT, METADATA = OWN_PROPERTIES = ("document_id", "text", "metadata")
FLOAT32 = np.dtype("<f4")  # Weaviate's byte order

_NAMESPACE = UUID("6b2f3d0e-5f0b-5c7e-9d0c-3a1f6f1d7c52")  # never to change: ids of stored objects follow from it
_QUOTE_CHARACTERS = 12  # so many of a document's in a row make a quotation of it; fewer are a field's name or chance
_MOST_SHOWN = 300  # characters of a server's message


def object_id(id_: str) -> str:
    """The UUID that stands for a document's id."""
    return str(uuid5(_NAMESPACE, id_))


def refusal(document: Document, declared: Mapping[str, str], *, keep_text: bool) -> str | None:
    """Why this document cannot be stored, or None; the message holds nothing of the text.

    ``declared`` has the collection's own properties by name, each with its Weaviate type.
    """
    if reason := json_refusal(document, keep_text=keep_text):
        return reason
    for field, value in _filterable(document.metadata, declared):
        if not _FITS[declared[field]](value):
            return f"metadata field {field!r} is no {declared[field]}, as the collection declares it"
    return None


def encode_record(
    record: Record, collection: str, vector_name: str | None, declared: Mapping[str, str]
) -> EncodedRecord:
    """The record as an object of the protocol, with the exact bytes it adds to a request."""
    vector = np.ascontiguousarray(record.vector, dtype=FLOAT32)
    if not np.isfinite(vector).all():
        return EncodedRecord(record.id, "its vector has a value that is not finite", 0)
    encoded = batch_pb2.BatchObject(
        collection=collection, uuid=object_id(record.id), properties=_properties(record, declared)
    )
    if vector_name is None:
        encoded.vector_bytes = vector.tobytes()
    else:
        encoded.vectors.append(named_vector(vector, vector_name))
    size = encoded.ByteSize()
    return EncodedRecord(record.id, encoded, 1 + _varint_bytes(size) + size)


def named_vector(vector: Vectors, name: str) -> base_pb2.Vectors:
    """A vector under its name."""
    kind = base_pb2.Vectors.VECTOR_TYPE_SINGLE_FP32
    return base_pb2.Vectors(name=name, vector_bytes=np.asarray(vector, FLOAT32).tobytes(), type=kind)


def decode_record(found: search_get_pb2.SearchResult) -> Record:
    """The record of an object that was asked for with its vector."""
    id_, text, metadata = _document(found)
    return Record(id_, decode_vector(found), text, metadata)


def decode_vector(found: search_get_pb2.SearchResult) -> Vectors:
    """The one vector that was asked for, named or not; empty where the object has none."""
    named = found.metadata.vectors
    return np.frombuffer(named[0].vector_bytes if named else found.metadata.vector_bytes, FLOAT32)


def decode_hit(found: search_get_pb2.SearchResult, score: float) -> Hit:
    """The hit of an object."""
    id_, text, metadata = _document(found)
    return Hit(id_, score, text, metadata)


def reason_without_document(message: str, refused: batch_pb2.BatchObject) -> str:
    """The server's reason for refusing an object, left out where it quotes the document."""
    shown = message[:_MOST_SHOWN]
    starts = range(max(1, len(shown) - _QUOTE_CHARACTERS + 1))
    passages = {shown[start : start + _QUOTE_CHARACTERS] for start in starts}
    fields = refused.properties.non_ref_properties.fields
    for own in (fields[name].string_value for name in (TEXT, METADATA) if name in fields):
        if own and (own in shown or any(passage in own for passage in passages)):
            return "Weaviate refused it, for a reason that quotes it"
    return f"Weaviate refused it: {shown}"


def _properties(record: Record, declared: Mapping[str, str]) -> batch_pb2.BatchObject.Properties:
    plain: dict[str, Any] = {DOCUMENT_ID: record.id, METADATA: json_text(record.metadata).decode()}
    if record.text is not None:
        plain[TEXT] = record.text
    properties = batch_pb2.BatchObject.Properties()
    for field, value in _filterable(record.metadata, declared):
        if not isinstance(value, list):
            plain[field] = value
        elif not value:
            properties.empty_list_props.append(field)
        else:
            _append(properties, field, declared[field], value)
    struct = Struct()
    struct.update(plain)
    properties.non_ref_properties.CopyFrom(struct)
    return properties


def _append(properties: batch_pb2.BatchObject.Properties, field: str, kind: str, value: list[Any]) -> None:
    match kind:
        case "int[]":
            properties.int_array_properties.add(prop_name=field, values=value)
        case "number[]":
            properties.number_array_properties.add(prop_name=field, values_bytes=np.asarray(value, "<f8").tobytes())
        case "boolean[]":
            properties.boolean_array_properties.add(prop_name=field, values=value)
        case _:
            properties.text_array_properties.add(prop_name=field, values=value)


def _document(found: search_get_pb2.SearchResult) -> tuple[str, str | None, dict[str, Any]]:
    fields = found.properties.non_ref_props.fields
    id_ = _text(fields, DOCUMENT_ID) or found.metadata.id  # an object that another writer made has no document id
    return id_, _text(fields, TEXT), orjson.loads(_text(fields, METADATA) or "{}")


def _text(fields: Mapping[str, properties_pb2.Value], name: str) -> str | None:
    value = fields.get(name)
    return value.text_value if value is not None and value.HasField("text_value") else None


def _filterable(metadata: Mapping[str, Any], declared: Mapping[str, str]) -> Sequence[tuple[str, Any]]:
    return [(field, metadata[field]) for field in declared if metadata.get(field) is not None]


def _varint_bytes(number: int) -> int:
    return max(1, (number.bit_length() + 6) // 7)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_int(value: Any) -> bool:
    return _is_number(value) and value == int(value) and abs(value) <= 2**53  # a JSON number on its way


def _each(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(fits(item) for item in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


_SCALARS: dict[str, Callable[[Any], bool]] = {
    "text": _is_text,
    "date": _is_text,  # whether it is one Weaviate says, of the object alone
    "uuid": _is_text,
    "int": _is_int,
    "number": _is_number,
    "boolean": _is_boolean,
}
_FITS = _SCALARS | {f"{kind}[]": _each(fits) for kind, fits in _SCALARS.items()}
FILTERABLE_TYPES = frozenset(_FITS)
"""Weaviate's types that a metadata field can have; others (geoCoordinates, object, blob ...) are left unfilled."""
