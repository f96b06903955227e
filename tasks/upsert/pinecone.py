"""Pinecone, over REST with the official SDK's async client.

Not over `pinecone.grpc`, although it sends 4 bytes a dimension where JSON takes about 11, so that a request holds 2.6
times the records at 1,536 dimensions: in SDK 10 that client is synchronous only, so that each request in flight would
hold a thread and could not be cancelled, and a throttled answer names no time to wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from urllib.parse import quote

import numpy as np
import pinecone.errors as vendor
from pinecone import AsyncIndex, AsyncPinecone, RetryConfig, Vector
from pinecone.models.indexes.index import IndexModel
from pinecone.models.indexes.schema import DenseVectorField

from tasks.errors import (
    PermanentError,
    RefusedError,
    RequestRejectedError,
    TransientError,
    UnavailableError,
    UsageError,
)
from tasks.profiles import PINECONE
from tasks.provider_settings import PineconeSettings
from tasks.records import Document, EncodedRecord, Hit, Record, Vectors
from tasks.upsert.packing import pack
from tasks.upsert.pinecone_errors import kind_of, translated
from tasks.upsert.pinecone_records import encode_record, envelope_bytes, id_problem, refusal, split_metadata
from tasks.upsert.port import UpsertLimits

_MAX_RECORDS = PINECONE.max_records  # of an upsert; also ids in a fetch or delete
_CONCURRENCY = 10  # Pinecone allows 100 requests/s and 50 MB/s a namespace: ten in flight come near with 2 MB each
_MAX_URL_BYTES = 6000  # fetch sends its ids in the URL; servers and proxies commonly stop at 8 KiB
_TIMEOUT_SECONDS = 60.0
_READY_WITHIN_SECONDS = 300.0
_READY_POLL_SECONDS = 1.0
_DEAD_STATES = frozenset({"InitializationFailed", "Terminating", "Disabled"})
_NO_RETRIES = RetryConfig(max_retries=0)  # the one retry layer is Millrace's
_DENSE_FIELD = "_values"  # reserved for what upsert and query address; any other name makes a document index
_VECTOR_FIELDS = frozenset({_DENSE_FIELD, "_sparse_values"})
_METRICS = {"cosine": 1.0, "dotproduct": 1.0, "euclidean": -1.0}  # sign that makes a higher score nearer

logger = logging.getLogger(__name__)


class PineconeStore:
    """One namespace of an index that was made with a dimension and a metric (not a document index).

    A document's text is kept in the metadata field ``text``. Integers keep 53 bits, as Pinecone stores float64.
    ``metric`` is the opened index's.
    """

    def __init__(self, settings: PineconeSettings, *, api_key: str) -> None:
        self.identity = f"pinecone:{settings.index}/{settings.namespace}"
        self.limits = UpsertLimits(
            max_request_bytes=settings.max_request_bytes,
            max_records=_MAX_RECORDS,
            envelope_bytes=envelope_bytes(settings.namespace),
            concurrency=_CONCURRENCY,
        )
        self._settings = settings
        self._api_key = api_key
        self._control: AsyncPinecone | None = None
        self._index: AsyncIndex | None = None
        self._sign = 1.0
        self.metric = "cosine"

    async def open(self, dimension: int | None, *, create: bool) -> None:
        """Find the index, or make a serverless one (cosine) where ``create`` allows it and the dimension is known.

        Raises:
            UsageError: no such index, not ready in 300 seconds, a dimension that differs, a key that is refused.
            TransientError: Pinecone cannot be reached.
        """
        if not self._settings.namespace.isascii() or "\0" in self._settings.namespace:
            raise UsageError("a Pinecone namespace is ASCII without NUL: name another")
        with self._opening():
            model = await self._describe()
            if model is None and not create:
                raise UsageError(f"Pinecone has no index named {self._settings.index}: make it first, or use --create")
            if model is None and dimension is None:
                return
            if model is None:
                await self._create(dimension)
            if model is None or not model.status.ready:
                model = await self._ready()
            self._check(model, dimension)
            if self._index is None:
                self._index = await self._connect(model)
                await self._probe(model)

    def refuse(self, document: Document, *, keep_text: bool) -> str | None:
        """Pinecone's own rules: identifier limits, metadata guide, 40 KB of metadata with the text where it is kept."""
        return refusal(document, keep_text=keep_text)

    def encode(self, records: Sequence[Record]) -> list[EncodedRecord]:
        """Vectors as the shortest text that reads back as the same float32. A vector that is refused takes 0 bytes."""
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of such numbers is looked at
            return [encode_record(record) for record in records]

    async def upsert(self, records: Sequence[EncodedRecord]) -> Mapping[str, str]:
        """One request. Pinecone refuses no record by itself: only what `encode` refused is returned."""
        refused = {record.id: record.payload for record in records if isinstance(record.payload, str)}
        vectors = {record.id: record.payload for record in records if isinstance(record.payload, Vector)}
        if vectors:
            with translated():
                answer = await self._opened().upsert(
                    vectors=list(vectors.values()), namespace=self._settings.namespace, show_progress=False
                )
            if answer.upserted_count != len(vectors):
                raise UnavailableError(f"Pinecone confirmed {answer.upserted_count} of {len(vectors)} records")
        return refused

    async def query(self, vector: Vectors, *, limit: int) -> list[Hit]:
        """The nearest records by the index's own metric: of a euclidean index the score is the distance, negated."""
        with translated():
            answer = await self._opened().query(
                vector=np.asarray(vector, np.float32).tolist(),
                top_k=limit,
                namespace=self._settings.namespace,
                include_metadata=True,
            )
        return [Hit(match.id, self._sign * match.score, *split_metadata(match.metadata)) for match in answer.matches]

    async def fetch(self, ids: Sequence[str]) -> list[Record]:
        """The records that exist among these ids, in as many requests as their URLs need."""
        possible = [id_ for id_ in ids if id_problem(id_) is None]
        sizes = [len("&ids=") + len(quote(id_, safe="")) for id_ in possible]
        requests, _ = pack(sizes, max_bytes=_MAX_URL_BYTES, envelope_bytes=0, max_records=_MAX_RECORDS)
        records: list[Record] = []
        for rows in requests:
            with translated():
                answer = await self._opened().fetch(
                    ids=possible[rows.start : rows.stop], namespace=self._settings.namespace
                )
            for id_, found in answer.vectors.items():
                records.append(Record(id_, np.asarray(found.values, np.float32), *split_metadata(found.metadata)))
        return records

    async def count(self) -> int:
        """Records in the namespace; Pinecone counts some seconds late."""
        if self._index is None:
            return 0
        with translated():
            stats = await self._index.describe_index_stats()
        summary = stats.namespaces.get(self._settings.namespace)
        return 0 if summary is None else summary.vector_count

    async def delete(self, ids: Sequence[str]) -> None:
        """Remove records by id; a namespace that is not there yet holds nothing to remove."""
        possible = [id_ for id_ in ids if id_problem(id_) is None]
        for start in range(0, len(possible), _MAX_RECORDS):
            with translated(), suppress(vendor.NotFoundError):
                await self._opened().delete(
                    ids=possible[start : start + _MAX_RECORDS], namespace=self._settings.namespace
                )

    async def finish(self) -> None:
        """Nothing to do: Pinecone keeps its own house."""

    async def aclose(self) -> None:
        """Close both clients' connections."""
        index, self._index = self._index, None
        control, self._control = self._control, None
        for client in (index, control):
            if client is not None:
                await client.close()

    # Opening

    async def _describe(self) -> IndexModel | None:
        if self._control is None:
            # The SDK keeps half of its pool alive between requests, so twice the concurrency keeps every connection.
            self._control = AsyncPinecone(
                api_key=self._api_key,
                timeout=_TIMEOUT_SECONDS,
                connection_pool_maxsize=2 * _CONCURRENCY,
                retry_config=_NO_RETRIES,
            )
        try:
            return await self._control.indexes.describe(self._settings.index)
        except vendor.NotFoundError:
            return None

    async def _create(self, dimension: int | None) -> None:
        assert self._control is not None
        field = {"type": "dense_vector", "dimension": dimension, "metric": "cosine"}
        managed = {"deployment_type": "managed", "cloud": self._settings.cloud, "region": self._settings.region}
        try:
            await self._control.indexes.create(
                name=self._settings.index, schema={"fields": {_DENSE_FIELD: field}}, deployment=managed, timeout=-1
            )
        except vendor.ConflictError:
            logger.info("another process made the index %s first", self._settings.index)

    async def _ready(self) -> IndexModel:
        give_up = time.monotonic() + _READY_WITHIN_SECONDS
        while time.monotonic() < give_up:
            model = await self._describe()
            if model is not None and model.status.ready:
                return model
            if model is not None and model.status.state in _DEAD_STATES:
                raise UsageError(
                    f"Pinecone's index {self._settings.index} is {model.status.state}: delete it, make another"
                )
            await asyncio.sleep(_READY_POLL_SECONDS)
        raise UsageError(
            f"Pinecone's index {self._settings.index} is not ready after {_READY_WITHIN_SECONDS:.0f} s: try again later"
        )

    def _check(self, model: IndexModel, dimension: int | None) -> None:
        name = self._settings.index
        dense = [field for field in model.schema.fields.values() if isinstance(field, DenseVectorField)]
        if len(dense) != 1:
            raise UsageError(
                f"Pinecone's index {name} has {len(dense)} dense vector fields, not one: name another index"
            )
        if dimension is not None and dense[0].dimension != dimension:
            raise UsageError(
                f"Pinecone's index {name} has {dense[0].dimension} dimensions, the embedder makes {dimension}: "
                "name another index or embedder"
            )
        if dense[0].metric not in _METRICS:
            raise UsageError(f"Pinecone's index {name} has the unknown metric {dense[0].metric}: name another index")
        if dense[0].metric == "euclidean":
            logger.warning("Pinecone's index %s ranks by euclidean distance, not by cosine similarity", name)
        self.metric = dense[0].metric
        self._sign = _METRICS[dense[0].metric]

    async def _connect(self, model: IndexModel) -> AsyncIndex:
        assert self._control is not None
        index = await self._control.index(name="" if model.host else model.name, host=model.host or "")
        # SDK 10.2 hands `retry_config` to its control plane only; its data plane would try four times under our own
        # retries. The HTTP client is made from this at the first request, so this is in time.
        index._http._config = replace(index._http._config, retry_config=_NO_RETRIES)  # noqa: SLF001
        return index

    async def _probe(self, model: IndexModel) -> None:
        """Ask the vector methods once where the schema does not say that they serve this index."""
        if not _VECTOR_FIELDS.issuperset(model.schema.fields):
            try:
                await self._opened().fetch(ids=["0"], namespace=self._settings.namespace)
            except vendor.ApiError as error:
                if kind_of(error) is not RequestRejectedError:
                    raise
                name = self._settings.index
                raise UsageError(
                    f"Pinecone's index {name} is a document index: name another, or use --create"
                ) from error

    def _opened(self) -> AsyncIndex:
        if self._index is None:
            raise RefusedError(f"Pinecone's index {self._settings.index} is not open")
        return self._index

    @contextmanager
    def _opening(self) -> Iterator[None]:
        try:
            with translated():
                yield
        except TransientError:
            raise
        except PermanentError as error:
            cause = error.__cause__
            if isinstance(cause, (vendor.UnauthorizedError, vendor.ForbiddenError)):
                raise UsageError(f"{error}: check the key in {self._settings.api_key} and what it may do") from cause
            raise UsageError(
                f"{error}: check the index {self._settings.index} and the key in {self._settings.api_key}"
            ) from cause
