"""The emulated data plane's operations other than upsert."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from tests.emulators import pinecone_store as store
from tests.emulators.http import Response, json_response
from tests.emulators.pinecone_store import BadRequest, StoredIndex, StoredRecord

MAX_LISTED = 100


def _dump(value: Any) -> Response:
    return Response(200, orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))


def _as_json(record_id: str, record: StoredRecord, *, values: bool, metadata: bool) -> dict[str, Any]:
    result: dict[str, Any] = {"id": record_id, "values": []}
    if values and record.vector is not None:
        result["values"] = record.vector
    if metadata and record.metadata is not None:
        result["metadata"] = record.metadata
    return result


def fetch(index: StoredIndex, ids: list[str], namespace: str) -> Response:
    """``GET /vectors/fetch``: ids that are not there are left out."""
    store.check_ids(ids)
    records = index.namespaces.get(store.check_namespace(namespace), {})
    found = {
        record_id: _as_json(record_id, records[record_id], values=True, metadata=True)
        for record_id in ids
        if record_id in records
    }
    return _dump({"vectors": found, "namespace": namespace, "usage": {"readUnits": 1}})


def query(index: StoredIndex, sent: dict[str, Any]) -> Response:
    """``POST /query`` by vector or id."""
    if sent.get("filter") or sent.get("sparseVector"):
        raise BadRequest("filter and sparseVector are not emulated")
    if not 1 <= sent["topK"] <= store.MAX_TOP_K:
        raise BadRequest(f"topK must be 1 to {store.MAX_TOP_K}")
    namespace = store.check_namespace(sent.get("namespace", ""))
    if "id" in sent:
        stored = index.namespaces.get(namespace, {}).get(sent["id"])
        vector = None if stored is None else stored.vector
    else:
        vector = np.array(sent["vector"], dtype=np.float32)
        if vector.shape != (index.dimension,):
            raise BadRequest(
                f"Vector dimension {len(vector)} does not match the dimension of the index {index.dimension}"
            )
    matches = []
    for record_id, score, record in [] if vector is None else index.nearest(namespace, vector, sent["topK"]):
        values, metadata = sent.get("includeValues", False), sent.get("includeMetadata", False)
        matches.append({**_as_json(record_id, record, values=values, metadata=metadata), "score": score})
    return _dump({"matches": matches, "namespace": sent.get("namespace", ""), "usage": {"readUnits": 1}})


def delete(index: StoredIndex, sent: dict[str, Any]) -> Response:
    """``POST /vectors/delete`` by ids or everything; 404 where the namespace is not there."""
    if sent.get("filter"):
        raise BadRequest("filter is not emulated")
    records = index.existing(sent.get("namespace", ""))
    if sent.get("deleteAll"):
        records.clear()
        return json_response({})
    store.check_ids(sent["ids"])
    for record_id in sent["ids"]:
        records.pop(record_id, None)
    return json_response({})


def list_ids(index: StoredIndex, query: dict[str, str]) -> Response:
    """``GET /vectors/list``: ids in order, a page at a time."""
    namespace, limit = query.get("namespace", ""), int(query.get("limit", "100"))
    if not 1 <= limit <= MAX_LISTED:
        raise BadRequest(f"limit must be 1 to {MAX_LISTED}")
    after, prefix = query.get("paginationToken", ""), query.get("prefix", "")
    records = index.namespaces.get(store.check_namespace(namespace), {})
    ids = sorted(record_id for record_id in records if record_id > after and record_id.startswith(prefix))
    answer = {
        "vectors": [{"id": record_id} for record_id in ids[:limit]],
        "namespace": namespace,
        "usage": {"readUnits": 1},
    }
    return json_response({**answer, "pagination": {"next": ids[limit - 1]}} if len(ids) > limit else answer)


def describe_stats(index: StoredIndex) -> Response:
    """``POST /describe_index_stats``; the default namespace is counted as ``__default__``."""
    counts = {name: {"vectorCount": len(records)} for name, records in index.namespaces.items()}
    dense = index.dense
    return json_response(
        {
            "namespaces": counts,
            "dimension": dense["dimension"],
            "indexFullness": 0,
            "totalVectorCount": sum(len(records) for records in index.namespaces.values()),
            "metric": dense["metric"],
            "vectorType": "dense",
        },
    )
