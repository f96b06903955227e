"""Weaviate: one collection with vectors of our own, filled over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from weaviate.proto.v1 import aggregate_pb2, base_pb2, base_search_pb2, batch_delete_pb2, batch_pb2, search_get_pb2

from tasks.errors import (
    PermanentError,
    RateLimitedError,
    RefusedError,
    RequestTooLargeError,
    UnavailableError,
    UsageError,
)
from tasks.profiles import WEAVIATE
from tasks.provider_settings import WeaviateSettings
from tasks.records import Document, EncodedRecord, Hit, Record, Vectors
from tasks.upsert import weaviate_collection as collections
from tasks.upsert import weaviate_objects as objects
from tasks.upsert.port import UpsertLimits
from tasks.upsert.weaviate_connection import Connection, translated

_CONCURRENCY = 4
_MAX_IDS = 1000  # ids in a deletion; the server stops at QUERY_MAXIMUM_RESULTS, 10,000
_MAX_FETCHED = 100  # so that an answer with vectors and 100 KB of text each stays near 10 MB


class WeaviateStore:
    """One collection with vectors of our own; its objects' UUIDs follow from the documents' ids."""

    def __init__(self, settings: WeaviateSettings, *, api_key: str | None) -> None:
        place = urlsplit(settings.url)
        name = f"/{settings.vector_name}" if settings.vector_name else ""
        self._name = settings.collection[:1].upper() + settings.collection[1:]
        self.identity = f"weaviate:{place.netloc.rpartition('@')[2]}/{self._name}{name}"
        self.limits = UpsertLimits(
            settings.max_request_bytes, WEAVIATE.max_records, envelope_bytes=0, concurrency=_CONCURRENCY
        )
        self._settings = settings
        self._api_key = api_key
        self._connection: Connection | None = None
        self._collection: collections.Collection | None = None

    async def open(self, dimension: int | None, *, create: bool) -> None:
        """Find the collection and see that it fits, or make it where ``create`` allows it and the dimension is known.

        Raises:
            UsageError: no such collection, other properties, vectors, dimension or metric, a key that is refused.
            TransientError: Weaviate cannot be reached, over REST or gRPC.
        """
        name = self._settings.collection
        with self._opening():
            client = (await self._connected()).client
            found = await collections.find(client, self._settings)
            if found is None and not create:
                raise UsageError(f"Weaviate has no collection named {name}: make it first, or use --create")
            if found is None and dimension is None:
                return
            if found is None:
                found = await collections.create(client, self._settings, dimension)
            self._collection = found
            stored = await self._stored_dimension() or found.dimension
        if dimension is not None and stored is not None and stored != dimension:
            raise UsageError(
                f"Weaviate's collection {name} has {stored} dimensions, the embedder makes {dimension}: "
                "name another collection or embedder"
            )

    def refuse(self, document: Document, *, keep_text: bool) -> str | None:
        """Metadata that reads back from JSON as it was, and that fits the properties that the collection declares."""
        return objects.refusal(document, self._declared(), keep_text=keep_text)

    def encode(self, records: Sequence[Record]) -> list[EncodedRecord]:
        """Objects of the protocol with their vectors as bytes. A vector that is refused takes 0 bytes."""
        collection = self._opened()
        name, declared = collection.vector_name, collection.declared
        return [objects.encode_record(record, self._name, name, declared) for record in records]

    async def upsert(self, records: Sequence[EncodedRecord]) -> Mapping[str, str]:
        """One request. Weaviate takes or refuses each object by itself, inside an answer that is in order."""
        refused = {record.id: record.payload for record in records if isinstance(record.payload, str)}
        sent = {record.id: record.payload for record in records if record.id not in refused}
        if not sent:
            return refused
        request = await asyncio.to_thread(batch_pb2.BatchObjectsRequest, objects=sent.values())
        try:
            answer = await self._ask("BatchObjects", request)
        except RateLimitedError as error:
            if len(sent) == 1:
                raise
            # gRPC says RESOURCE_EXHAUSTED of a message over the server's limit, too; halves do no harm to a busy one.
            raise RequestTooLargeError(str(error)) from error
        ids = list(sent)
        if any(not 0 <= one.index < len(ids) for one in answer.errors):
            raise UnavailableError("Weaviate answered for an object that was not sent")
        for one in answer.errors:
            refused[ids[one.index]] = objects.reason_without_document(one.error, sent[ids[one.index]])
        return refused

    async def query(self, vector: Vectors, *, limit: int) -> list[Hit]:
        """The nearest objects; the score is the cosine similarity, or the dot product where that is the metric."""
        collection = self._opened()
        near = base_search_pb2.NearVector(vectors=[objects.named_vector(vector, "")])
        if collection.vector_name is not None:
            near.targets.target_vectors.append(collection.vector_name)
        wanted = search_get_pb2.MetadataRequest(uuid=True, distance=True)
        found = await self._search(limit=limit, near_vector=near, metadata=wanted)
        return [objects.decode_hit(one, collection.score(one.metadata.distance)) for one in found]

    async def fetch(self, ids: Sequence[str]) -> list[Record]:
        """The records that exist among these ids, a hundred in a request."""
        if self._collection is None:
            return []
        records: list[Record] = []
        for start in range(0, len(ids), _MAX_FETCHED):
            some = _with_ids(ids[start : start + _MAX_FETCHED])
            found = await self._search(limit=_MAX_FETCHED, filters=some, metadata=self._with_vector())
            records += [objects.decode_record(one) for one in found]
        return records

    async def count(self) -> int:
        """Objects in the collection; 0 where it is not made yet."""
        if self._collection is None:
            return 0
        request = aggregate_pb2.AggregateRequest(collection=self._name, objects_count=True)
        answer = await self._ask("Aggregate", request)
        return int(answer.single_result.objects_count)

    async def delete(self, ids: Sequence[str]) -> None:
        """Remove objects by id, a thousand in a request."""
        for start in range(0, len(ids), _MAX_IDS):
            some = _with_ids(ids[start : start + _MAX_IDS])
            request = batch_delete_pb2.BatchDeleteRequest(collection=self._name, filters=some)
            answer = await self._ask("BatchDelete", request)
            if answer.failed:
                raise UnavailableError(f"Weaviate did not delete {answer.failed} of {answer.matches} objects")

    async def finish(self) -> None:
        """Nothing to do: Weaviate keeps its own house."""

    async def aclose(self) -> None:
        """Close the connections of both kinds."""
        connection, self._connection = self._connection, None
        self._collection = None
        if connection is not None:
            await connection.aclose()

    async def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = Connection(self._settings, self._api_key)
        await self._connection.open()
        ours, servers = self._settings.max_request_bytes, self._connection.max_message_bytes
        self.limits = replace(self.limits, max_request_bytes=min(ours, servers or ours))
        return self._connection

    async def _stored_dimension(self) -> int | None:
        """The dimension of what is stored; asking proves that gRPC is open and takes the key."""
        found = await self._search(limit=1, metadata=self._with_vector())
        return len(objects.decode_vector(found[0])) or None if found else None

    def _declared(self) -> Mapping[str, str]:
        return {} if self._collection is None else self._collection.declared

    def _opened(self) -> collections.Collection:
        if self._collection is None:
            raise RefusedError(f"Weaviate's collection {self._settings.collection} is not open")
        return self._collection

    def _with_vector(self) -> search_get_pb2.MetadataRequest:
        name = self._opened().vector_name
        return search_get_pb2.MetadataRequest(uuid=True, vector=name is None, vectors=[] if name is None else [name])

    async def _search(self, **asked: Any) -> list[search_get_pb2.SearchResult]:
        request = search_get_pb2.SearchRequest(
            collection=self._name,
            properties=search_get_pb2.PropertiesRequest(non_ref_properties=objects.OWN_PROPERTIES),
            uses_123_api=True,  # what the client of this protocol says of the answers it can read
            uses_125_api=True,
            uses_127_api=True,
            **asked,
        )
        answer: search_get_pb2.SearchReply = await self._ask("Search", request)
        return list(answer.results)

    async def _ask(self, method: str, request: Any) -> Any:
        self._opened()
        assert self._connection is not None
        return await self._connection.ask(method, request)

    @contextmanager
    def _opening(self) -> Iterator[None]:
        try:
            with translated():
                yield
        except PermanentError as error:
            advice = f"check the key in {self._settings.api_key} and the collection {self._settings.collection}"
            raise UsageError(f"{error}: {advice}") from error


def _with_ids(ids: Sequence[str]) -> base_pb2.Filters:
    return base_pb2.Filters(
        operator=base_pb2.Filters.OPERATOR_CONTAINS_ANY,
        target=base_pb2.FilterTarget(property="_id"),
        value_text_array=base_pb2.TextArray(values=[objects.object_id(id_) for id_ in ids]),
    )
