"""Qdrant: a collection on a server, in a local folder or in memory, through the official client.

One vector a point is filled: the collection's only one, or the one that ``vector_name`` names. A collection that
compares by cosine keeps each vector at length one, so that is what reads back.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from qdrant_client import models

from tasks.errors import MillraceError, PermanentError, UnavailableError, UsageError
from tasks.provider_settings import QdrantSettings
from tasks.records import Document, EncodedRecord, Hit, Record, Vectors
from tasks.upsert.qdrant_errors import CONFLICT_STATUS, KEY_STATUS, status_of, translated
from tasks.upsert.qdrant_points import bad_vector, point_id, read_payload, read_vector, refusal
from tasks.upsert.qdrant_wires import MEMORY, wire_of

_MAX_IDS = 1000  # ids in one fetch or delete; no limit of Qdrant's, only what is answered at once
_INDEXING_THRESHOLD = 10_000  # Qdrant's default, in kilobytes of vectors: qdrant-client 1.20, OptimizersConfig
_SIGNS = {  # that makes a higher score nearer
    models.Distance.COSINE: 1.0,
    models.Distance.DOT: 1.0,
    models.Distance.EUCLID: -1.0,
    models.Distance.MANHATTAN: -1.0,
}

logger = logging.getLogger(__name__)


class QdrantStore:
    """One collection. `tasks.upsert.qdrant_points` says how a document is kept."""

    def __init__(self, settings: QdrantSettings, *, api_key: str | None = None) -> None:
        self.identity = f"qdrant:{_place(settings.url)}/{settings.collection}"
        self._settings = settings
        self._has_key = api_key is not None
        self._wire = wire_of(settings, api_key)
        self.limits = self._wire.limits
        self._sign = 1.0
        self._is_there = False
        self._deferring = asyncio.Lock()
        self._threshold: int | None = None

    async def open(self, dimension: int | None, *, create: bool) -> None:
        """Find the collection, or make one (cosine); an embedded one needs no ``create``.

        Raises:
            UsageError: no such collection, a dimension or a vector that differs, a key that is refused.
            TransientError: the server cannot be reached.
        """
        with self._opening():
            await self._wire.connect()
            if not await self._wire.ask("collection_exists"):
                if not (create or self._wire.is_embedded):
                    raise UsageError(
                        f"Qdrant has no collection {self._settings.collection}: make it first, or use --create"
                    )
                if dimension is None:
                    return
                await self._create(dimension)
            self._check(await self._wire.ask("get_collection"), dimension)
            self._is_there = True

    def refuse(self, document: Document, *, keep_text: bool) -> str | None:
        """Any id; metadata that reads back from JSON as it was, integers of 64 bits with their sign."""
        return refusal(document, keep_text=keep_text)

    def encode(self, records: Sequence[Record]) -> list[EncodedRecord]:
        """Points in the form in which they are sent. A vector that is not finite is refused and takes 0 bytes."""
        return [bad_vector(record) or self._wire.encode(record) for record in records]

    async def upsert(self, records: Sequence[EncodedRecord]) -> Mapping[str, str]:
        """One request that waits until the points are stored. Qdrant refuses no point by itself."""
        refused = {record.id: record.payload for record in records if isinstance(record.payload, str)}
        points = {record.id: record.payload for record in records if record.id not in refused}
        if points:
            await self._defer_indexing()
            with translated():
                status = await self._wire.upsert(list(points.values()))
            if status != models.UpdateStatus.COMPLETED:
                raise UnavailableError(f"Qdrant has {len(points)} points {status}, not stored")
        return refused

    async def query(self, vector: Vectors, *, limit: int) -> list[Hit]:
        """The nearest points by the collection's own metric: of a distance the score is the distance, negated."""
        if not self._is_there:
            return []
        with translated():
            answer = await self._wire.ask(
                "query_points",
                query=np.asarray(vector, np.float32).tolist(),
                using=self._settings.vector_name,
                limit=limit,
                with_payload=True,
            )
        hits = [(read_payload(point), point.score) for point in answer.points]
        return [Hit(id_, self._sign * score, text, metadata) for (id_, text, metadata), score in hits]

    async def fetch(self, ids: Sequence[str]) -> list[Record]:
        """The records that exist among these ids."""
        records: list[Record] = []
        for some in self._point_ids(ids):
            with translated():
                found = await self._wire.ask("retrieve", ids=some, with_payload=True, with_vectors=True)
            for point in found:
                id_, text, metadata = read_payload(point)
                records.append(Record(id_, read_vector(point, self._settings.vector_name), text, metadata))
        return records

    async def count(self) -> int:
        """Points in the collection, counted exactly; 0 where it is not made yet."""
        if not self._is_there:
            return 0
        with translated():
            return int((await self._wire.ask("count", exact=True)).count)

    async def delete(self, ids: Sequence[str]) -> None:
        """Remove points by id."""
        for some in self._point_ids(ids):
            with translated():
                await self._wire.ask("delete", points_selector=models.PointIdsList(points=some), wait=True)

    async def finish(self) -> None:
        """Turn indexing on again where it was put off, also by a run that was killed; Qdrant then builds the index."""
        if not (self._defers and self._is_there):
            return
        with translated():
            info: models.CollectionInfo = await self._wire.ask("get_collection")
            if info.config.optimizer_config.indexing_threshold == 0:
                await self._set_threshold(self._threshold or _INDEXING_THRESHOLD)

    async def aclose(self) -> None:
        """Let go of the client; closing twice is harmless."""
        self._is_there = False
        await self._wire.aclose()

    # Opening

    async def _create(self, dimension: int) -> None:
        params = models.VectorParams(size=dimension, distance=models.Distance.COSINE)
        name = self._settings.vector_name
        try:
            await self._wire.ask("create_collection", vectors_config=params if name is None else {name: params})
        except Exception as error:
            if status_of(error) not in CONFLICT_STATUS or not await self._wire.ask("collection_exists"):
                raise
            logger.info("another process made the collection %s first", self._settings.collection)

    def _check(self, info: models.CollectionInfo, dimension: int | None) -> None:
        collection = f"Qdrant's collection {self._settings.collection}"
        params = self._vector_params(info.config.params.vectors, collection)
        if params.multivector_config is not None:
            raise UsageError(f"{collection} keeps many vectors a point: name another collection")
        if dimension is not None and params.size != dimension:
            raise UsageError(
                f"{collection} has {params.size} dimensions, the embedder makes {dimension}: "
                "name another collection or embedder"
            )
        self._sign = _SIGNS[params.distance]
        if self._sign < 0:
            logger.warning("%s ranks by %s distance, not by cosine similarity", collection, params.distance.lower())
        if params.datatype not in {None, models.Datatype.FLOAT32}:
            logger.warning("%s keeps its vectors as %s, not as they are", collection, params.datatype)
        if info.config.optimizer_config.indexing_threshold == 0 and not self._defers:
            logger.warning("%s builds no index: its indexing threshold is 0", collection)

    def _vector_params(self, vectors: Any, collection: str) -> models.VectorParams:
        name = self._settings.vector_name
        named: Mapping[str, models.VectorParams] = vectors if isinstance(vectors, Mapping) else {}
        if name is not None and name in named:
            return named[name]
        if name is None and isinstance(vectors, models.VectorParams):
            return vectors
        has = ", ".join(sorted(named)) or "one vector without a name"
        raise UsageError(f"{collection} has {has}, not {name or 'a vector without a name'}: set vector_name to fit")

    @contextmanager
    def _opening(self) -> Iterator[None]:
        try:
            with translated():
                yield
        except PermanentError as error:
            raise self._usage_error(error) from error.__cause__

    def _usage_error(self, error: MillraceError) -> UsageError:
        key = self._settings.api_key
        if status_of(error.__cause__) not in KEY_STATUS:
            return UsageError(f"{error}: check the address {_place(self._settings.url)} and the collection")
        return UsageError(f"{error}: " + (f"check the key in {key}" if self._has_key else f"set its key in {key}"))

    # Putting the index off

    @property
    def _defers(self) -> bool:
        return self._settings.defer_indexing and not self._wire.is_embedded

    async def _defer_indexing(self) -> None:
        """Before the first upsert into an empty collection. `open` leaves it alone: a check must change nothing."""
        async with self._deferring:
            if not self._defers or self._threshold is not None:
                return
            with translated():
                info: models.CollectionInfo = await self._wire.ask("get_collection")
                self._threshold = info.config.optimizer_config.indexing_threshold or _INDEXING_THRESHOLD
                if not info.points_count:
                    await self._set_threshold(0)

    async def _set_threshold(self, kilobytes: int) -> None:
        change = models.OptimizersConfigDiff(indexing_threshold=kilobytes)
        await self._wire.ask("update_collection", optimizers_config=change)

    def _point_ids(self, ids: Sequence[str]) -> Iterator[list[str]]:
        for start in range(0, len(ids) if self._is_there else 0, _MAX_IDS):
            yield [point_id(id_) for id_ in ids[start : start + _MAX_IDS]]


def _place(url: str) -> str:
    """The address without a user; a folder as it was given, so that a project can be moved as a whole."""
    if "://" not in url:
        return url if url == MEMORY else os.path.normpath(url)
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}".rstrip("/")
