"""What one emulated Weaviate collection stores, and what it refuses of a class definition or an object."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from weaviate.proto.v1 import batch_pb2

CLASS_NAME = re.compile(r"[A-Z][_0-9A-Za-z]{0,254}")
PROPERTY_NAME = re.compile(r"[_A-Za-z][_0-9A-Za-z]{0,230}")
RESERVED = frozenset({"id", "_id", "_additional"})
METRICS = ("cosine", "dot", "l2-squared", "manhattan", "hamming")
UNNAMED = ""
"""The key of the only vector of a class without named vectors."""

HNSW: dict[str, Any] = {
    "skip": False,
    "cleanupIntervalSeconds": 300,
    "maxConnections": 32,
    "efConstruction": 128,
    "ef": -1,
    "dynamicEfMin": 100,
    "dynamicEfMax": 500,
    "dynamicEfFactor": 8,
    "vectorCacheMaxObjects": 1_000_000_000_000,
    "flatSearchCutoff": 40_000,
    "distance": "cosine",
    "filterStrategy": "sweeping",
    "pq": {"enabled": False},
    "bq": {"enabled": False},
    "sq": {"enabled": False},
    "multivector": {"enabled": False},
}
DEFAULTS: dict[str, Any] = {
    "invertedIndexConfig": {
        "bm25": {"b": 0.75, "k1": 1.2},
        "cleanupIntervalSeconds": 60,
        "stopwords": {"additions": None, "preset": "en", "removals": None},
    },
    "multiTenancyConfig": {"enabled": False, "autoTenantCreation": False, "autoTenantActivation": False},
    "replicationConfig": {"asyncEnabled": False, "deletionStrategy": "NoAutomatedResolution", "factor": 1},
    "shardingConfig": {
        "actualCount": 1,
        "actualVirtualCount": 128,
        "desiredCount": 1,
        "desiredVirtualCount": 128,
        "function": "murmur3",
        "key": "_id",
        "strategy": "hash",
        "virtualPerPhysical": 128,
    },
}


class BadRequest(Exception):  # noqa: N818 - carries an answer
    """A request or an object that is refused."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.message, self.status = message, status


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A stored object: its properties as Python values, its vectors by name."""

    properties: Mapping[str, Any]
    vectors: Mapping[str, NDArray[np.float32]]


@dataclass
class StoredCollection:
    """A class and its objects by UUID."""

    schema: dict[str, Any]
    objects: dict[str, StoredObject] = field(default_factory=dict)

    @property
    def types(self) -> dict[str, str]:
        """The properties with their data types."""
        return {one["name"]: one["dataType"][0] for one in self.schema["properties"]}

    @property
    def vector_names(self) -> list[str]:
        """The named vectors, or the one without a name."""
        return list(self.schema.get("vectorConfig", {UNNAMED: None}))

    def metric(self, name: str) -> str:
        """How distance is measured."""
        index = self.schema["vectorConfig"][name] if name else self.schema
        distance: str = index["vectorIndexConfig"]["distance"]
        return distance

    def read(self, sent: batch_pb2.BatchObject) -> tuple[str, StoredObject]:
        """The object and its UUID, or why it is refused."""
        try:
            uuid = str(UUID(sent.uuid))
        except ValueError:
            raise BadRequest(f"invalid UUID: {sent.uuid}") from None
        properties = dict(_sent_properties(sent.properties))
        for name, value in properties.items():
            kind = self.types.get(name)
            if kind is None:
                raise BadRequest(f"no such prop with name '{name}' found in class '{self.schema['class']}'")
            if not FITS[kind](value):
                raise BadRequest(f"invalid {kind} property '{name}' on class '{self.schema['class']}': is {value!r}")
        return uuid, StoredObject(properties, self._vectors(sent))

    def _vectors(self, sent: batch_pb2.BatchObject) -> dict[str, NDArray[np.float32]]:
        vectors = {one.name: np.frombuffer(one.vector_bytes, "<f4") for one in sent.vectors}
        if sent.vector_bytes:
            vectors[UNNAMED] = np.frombuffer(sent.vector_bytes, "<f4")
        for name, vector in vectors.items():
            if name not in self.vector_names:
                raise BadRequest(f"collection has the vectors {self.vector_names}, but received {name!r}")
            for other in self.objects.values():
                if name in other.vectors and len(other.vectors[name]) != len(vector):
                    lengths = f"{len(vector)}. Existing nodes have vectors with length {len(other.vectors[name])}"
                    raise BadRequest(f"new node has a vector with length {lengths}")
                break
        return vectors


def read_class(sent: dict[str, Any]) -> dict[str, Any]:
    """The class as the server keeps it, with every default filled in."""
    schema = deepcopy(DEFAULTS) | sent
    if not CLASS_NAME.fullmatch(sent.get("class", "")):
        raise BadRequest(f"'{sent.get('class')}' is not a valid class name")
    for one in schema.setdefault("properties", []):
        name, kind = one["name"], one["dataType"][0]
        if not PROPERTY_NAME.fullmatch(name) or name in RESERVED:
            raise BadRequest(f"'{name}' is not a valid property name, or is reserved")
        if kind not in FITS:
            raise BadRequest(f"property '{name}': invalid dataType: {kind}")
        is_text = kind in {"text", "text[]"}
        if one.get("indexSearchable") and not is_text:
            raise BadRequest("`indexSearchable` is allowed only for text/text[] data types")
        one |= {"indexFilterable": one.get("indexFilterable", True), "indexRangeFilters": False}
        one["indexSearchable"] = one.get("indexSearchable", is_text)
        if is_text:
            one.setdefault("tokenization", "word")
    if "vectorConfig" not in schema:
        schema.setdefault("vectorizer", "none")
    for index in schema.get("vectorConfig", {UNNAMED: schema}).values():
        index.setdefault("vectorIndexType", "hnsw")
        index["vectorIndexConfig"] = HNSW | index.get("vectorIndexConfig", {})
        if index["vectorIndexConfig"]["distance"] not in METRICS:
            raise BadRequest(f"unrecognized distance metric {index['vectorIndexConfig']['distance']}")
    return schema


def _sent_properties(sent: batch_pb2.BatchObject.Properties) -> Iterator[tuple[str, Any]]:
    for name, value in sent.non_ref_properties.fields.items():
        kind = value.WhichOneof("kind")
        if kind != "null_value":
            yield name, getattr(value, str(kind))
    for texts in sent.text_array_properties:
        yield texts.prop_name, list(texts.values)
    for integers in sent.int_array_properties:
        yield integers.prop_name, list(integers.values)
    for booleans in sent.boolean_array_properties:
        yield booleans.prop_name, list(booleans.values)
    for numbers in sent.number_array_properties:
        yield numbers.prop_name, np.frombuffer(numbers.values_bytes, "<f8").tolist()
    for name in sent.empty_list_props:
        yield name, []


def _is_date(value: Any) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _is_uuid(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(UUID(value))
    except ValueError:
        return False


_SCALARS: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "int": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value == int(value),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "date": _is_date,
    "uuid": _is_uuid,
}
FITS: dict[str, Callable[[Any], bool]] = _SCALARS | {
    f"{kind}[]": lambda value, fits=fits: isinstance(value, list) and all(map(fits, value))
    for kind, fits in _SCALARS.items()
}
