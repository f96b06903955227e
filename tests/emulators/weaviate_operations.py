"""Weaviate's search, aggregate and batch delete over one emulated collection, message by message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from weaviate.proto.v1 import aggregate_pb2, base_pb2, base_search_pb2, batch_delete_pb2, properties_pb2, search_get_pb2

from tests.emulators.weaviate_store import UNNAMED, BadRequest, StoredCollection, StoredObject

MAXIMUM_RESULTS = 10_000  # QUERY_MAXIMUM_RESULTS
DEFAULT_LIMIT = 10  # QUERY_DEFAULTS_LIMIT
READ_AS = {
    "text": "text_value",
    "int": "int_value",
    "number": "number_value",
    "boolean": "bool_value",
    "date": "date_value",
}

Chosen = list[tuple[str, StoredObject, float]]


def search(collection: StoredCollection, asked: search_get_pb2.SearchRequest) -> search_get_pb2.SearchReply:
    """The objects that the filter lets through, nearest first where a vector is given."""
    if not asked.uses_127_api:
        raise BadRequest("only the newest form of answer is emulated")
    limit = asked.limit or DEFAULT_LIMIT
    if asked.offset + limit > MAXIMUM_RESULTS:
        raise BadRequest("query maximum results exceeded")
    chosen: Chosen = [(uuid, one, 0.0) for uuid, one in sorted(_filtered(collection, asked.filters).items())]
    if asked.HasField("near_vector"):
        chosen = _nearest(collection, chosen, asked.near_vector)
    chosen = chosen[asked.offset : asked.offset + limit]
    return search_get_pb2.SearchReply(results=[_result(collection, asked, *one) for one in chosen])


def aggregate(collection: StoredCollection, asked: aggregate_pb2.AggregateRequest) -> aggregate_pb2.AggregateReply:
    """How many objects there are; nothing else is emulated."""
    if not asked.objects_count:
        raise BadRequest("only objects_count is emulated")
    count = len(_filtered(collection, asked.filters))
    return aggregate_pb2.AggregateReply(single_result=aggregate_pb2.AggregateReply.Single(objects_count=count))


def delete(
    collection: StoredCollection, asked: batch_delete_pb2.BatchDeleteRequest
) -> batch_delete_pb2.BatchDeleteReply:
    """Remove what the filter lets through, the first 10,000 of it."""
    if not asked.HasField("filters"):
        raise BadRequest("a batch delete needs a filter")
    chosen = list(_filtered(collection, asked.filters))[:MAXIMUM_RESULTS]
    for uuid in chosen:
        if not asked.dry_run:
            del collection.objects[uuid]
    return batch_delete_pb2.BatchDeleteReply(matches=len(chosen), successful=len(chosen))


def _filtered(collection: StoredCollection, filters: base_pb2.Filters) -> dict[str, StoredObject]:
    if filters.operator == base_pb2.Filters.OPERATOR_UNSPECIFIED:
        return collection.objects
    name = filters.target.property
    if name == "_id":
        if filters.operator != base_pb2.Filters.OPERATOR_CONTAINS_ANY:
            raise BadRequest("of filters on _id only ContainsAny is emulated")
        wanted = {str(UUID(value)) for value in filters.value_text_array.values}
        return {uuid: one for uuid, one in collection.objects.items() if uuid in wanted}
    indexed = {one["name"] for one in collection.schema["properties"] if one["indexFilterable"]}
    if name not in indexed:
        raise BadRequest(f"property {name} is not filterable")
    matches = _matcher(filters)
    return {
        uuid: one
        for uuid, one in collection.objects.items()
        if name in one.properties and matches(one.properties[name])
    }


def _matcher(filters: base_pb2.Filters) -> Callable[[Any], bool]:
    value = getattr(filters, str(filters.WhichOneof("test_value")))
    match filters.operator:
        case base_pb2.Filters.OPERATOR_EQUAL:
            return lambda stored: bool(stored == value)
        case base_pb2.Filters.OPERATOR_GREATER_THAN_EQUAL:
            return lambda stored: bool(stored >= value)
        case base_pb2.Filters.OPERATOR_CONTAINS_ANY:
            return lambda stored: not set(value.values).isdisjoint(stored)
    raise BadRequest("this operator is not emulated")


def _nearest(collection: StoredCollection, chosen: Chosen, near: base_search_pb2.NearVector) -> Chosen:
    names = list(near.targets.target_vectors) or collection.vector_names
    if len(names) != 1:
        raise BadRequest(f"class has the vectors {names}: name one by targets")
    if names[0] not in collection.vector_names:
        raise BadRequest(f"class has no vector {names[0]}")
    if len(near.vectors) != 1:
        raise BadRequest("no vector is given")
    asked = np.frombuffer(near.vectors[0].vector_bytes, "<f4")
    metric = collection.metric(names[0])
    ranked: Chosen = []
    for uuid, one, _ in chosen:
        stored = one.vectors.get(names[0])
        if stored is None:
            continue
        if len(stored) != len(asked):
            raise BadRequest(f"vector lengths don't match: {len(stored)} vs {len(asked)}")
        ranked.append((uuid, one, _distance(metric, stored, asked)))
    return sorted(ranked, key=lambda one: one[2])


def _distance(metric: str, one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    a, b = one.astype(np.float64), other.astype(np.float64)
    match metric:
        case "cosine":
            lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
            return 1.0 - float(a @ b) / lengths if lengths else 1.0
        case "dot":
            return -float(a @ b)
        case "l2-squared":
            return float(((a - b) ** 2).sum())
    raise BadRequest(f"{metric} is not emulated")


def _result(
    collection: StoredCollection, asked: search_get_pb2.SearchRequest, uuid: str, one: StoredObject, distance: float
) -> search_get_pb2.SearchResult:
    names = list(asked.properties.non_ref_properties)
    if asked.properties.return_all_nonref_properties or not asked.HasField("properties"):
        names = list(collection.types)
    if unknown := set(names) - set(collection.types):
        raise BadRequest(f"no such properties: {sorted(unknown)}")
    fields = {name: _value(collection.types[name], one.properties.get(name)) for name in names}
    result = search_get_pb2.SearchResult()
    result.properties.non_ref_props.CopyFrom(properties_pb2.Properties(fields=fields))
    if asked.metadata.uuid:
        result.metadata.id = uuid
    if asked.metadata.distance:
        result.metadata.distance, result.metadata.distance_present = distance, True
    if asked.metadata.vector and UNNAMED in one.vectors:
        result.metadata.vector_bytes = one.vectors[UNNAMED].tobytes()
    for name in asked.metadata.vectors:
        if name not in collection.vector_names:
            raise BadRequest(f"class has no vector {name}")
        kind = base_pb2.Vectors.VECTOR_TYPE_SINGLE_FP32
        result.metadata.vectors.add(name=name, vector_bytes=one.vectors[name].tobytes(), type=kind)
    return result


def _value(kind: str, value: Any) -> properties_pb2.Value:
    if value is None:
        return properties_pb2.Value(null_value=0)
    if kind == "text[]":
        texts = properties_pb2.TextValues(values=value)
        return properties_pb2.Value(list_value=properties_pb2.ListValue(text_values=texts))
    if kind == "int[]":
        integers = properties_pb2.IntValues(values=np.asarray(value, "<i8").tobytes())
        return properties_pb2.Value(list_value=properties_pb2.ListValue(int_values=integers))
    if kind not in READ_AS:
        raise BadRequest(f"reading {kind} is not emulated")
    read: Any = {READ_AS[kind]: int(value) if kind == "int" else value}
    return properties_pb2.Value(**read)
