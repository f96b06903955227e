"""Three ways to a Qdrant collection through the one official client: REST, gRPC, and the engine in this process."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx
from qdrant_client import AsyncQdrantClient, QdrantClient, grpc, models

from tasks.errors import RefusedError, UsageError
from tasks.profiles import QDRANT
from tasks.provider_settings import QdrantSettings
from tasks.records import EncodedRecord, Record
from tasks.upsert.port import UpsertLimits
from tasks.upsert.qdrant_points import grpc_point, json_point, local_point

MEMORY = ":memory:"
_CONCURRENCY = 4  # Qdrant, bulk upload guide: 2 to 4 parallel streams
_TIMEOUT_SECONDS = 60
_HEAD, _TAIL = b'{"points":[', b"]}"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

logger = logging.getLogger(__name__)


class Wire(Protocol):
    """How points and questions reach one collection. The vendor's errors pass through."""

    limits: UpsertLimits
    is_embedded: bool

    async def connect(self) -> None:
        """Make the client where there is none yet."""
        ...

    def encode(self, record: Record) -> EncodedRecord:
        """A record as `upsert` hands it over."""
        ...

    async def upsert(self, points: Sequence[Any]) -> models.UpdateStatus:
        """One request; it returns when the points are stored, or says that they are not."""
        ...

    async def ask(self, method: str, **arguments: Any) -> Any:
        """A method of the client about this collection."""
        ...

    async def aclose(self) -> None:
        """Let go of the client."""
        ...


def wire_of(settings: QdrantSettings, api_key: str | None) -> Wire:
    """The way that the settings name."""
    if "://" not in settings.url:
        return LocalWire(settings)
    return GrpcWire(settings, api_key) if settings.prefer_grpc else RestWire(settings, api_key)


class RestWire:
    """JSON over HTTP: the body is the points' own bytes, joined."""

    is_embedded = False

    def __init__(self, settings: QdrantSettings, api_key: str | None) -> None:
        self.limits = UpsertLimits(
            max_request_bytes=settings.max_request_bytes,
            max_records=QDRANT.max_records,
            envelope_bytes=self._envelope_bytes(settings),
            concurrency=_CONCURRENCY,
        )
        self._settings = settings
        self._api_key = api_key
        self._client: AsyncQdrantClient | None = None

    async def connect(self) -> None:
        """Make the client; nothing is sent yet. A key over plain HTTP to another machine is warned of."""
        if self._client is not None:
            return
        address = urlsplit(self._settings.url)
        if self._api_key and address.scheme == "http" and address.hostname not in _LOOPBACK:
            logger.warning("the key goes to %s unencrypted: use https", address.hostname)
        self._client = AsyncQdrantClient(
            url=self._settings.url,
            grpc_port=self._settings.grpc_port,
            prefer_grpc=self._settings.prefer_grpc,
            headers={"api-key": self._api_key} if self._api_key else None,
            timeout=_TIMEOUT_SECONDS,
            check_compatibility=False,  # it asks in a thread of its own and warns of a server that it cannot reach
            limits=httpx.Limits(max_connections=2 * _CONCURRENCY, max_keepalive_connections=2 * _CONCURRENCY),
        )

    def encode(self, record: Record) -> EncodedRecord:
        """The point as JSON."""
        return json_point(record, self._settings.vector_name)

    async def upsert(self, points: Sequence[Any]) -> models.UpdateStatus:
        """One PUT with ``wait=true``."""
        # The client's own REST layer sends what is no model as it is.
        body: Any = _HEAD + b",".join(points) + _TAIL
        answer = await self._opened().http.points_api.upsert_points(
            collection_name=self._settings.collection, wait=True, point_insert_operations=body
        )
        return models.UpdateStatus.WAIT_TIMEOUT if answer.result is None else answer.result.status

    async def ask(self, method: str, **arguments: Any) -> Any:
        """A method of the client about this collection."""
        return await getattr(self._opened(), method)(collection_name=self._settings.collection, **arguments)

    async def aclose(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _opened(self) -> AsyncQdrantClient:
        if self._client is None:
            raise RefusedError(f"Qdrant's collection {self._settings.collection} is not open")
        return self._client

    @staticmethod
    def _envelope_bytes(settings: QdrantSettings) -> int:
        """The first point needs no separator."""
        del settings
        return len(_HEAD) + len(_TAIL) - len(",")


class GrpcWire(RestWire):
    """Protobuf over gRPC: 4 bytes a dimension, 2.6 times as many points a request as JSON at 1,536 dimensions."""

    def encode(self, record: Record) -> EncodedRecord:
        """The point as a protobuf message."""
        return grpc_point(record, self._settings.vector_name)

    async def upsert(self, points: Sequence[Any]) -> models.UpdateStatus:
        """One call with ``wait``."""
        request = grpc.UpsertPoints(collection_name=self._settings.collection, wait=True, points=points)
        answer = await self._opened().grpc_points.Upsert(request, timeout=_TIMEOUT_SECONDS)
        is_stored = answer.result.status == grpc.UpdateStatus.Completed
        return models.UpdateStatus.COMPLETED if is_stored else models.UpdateStatus.ACKNOWLEDGED

    @staticmethod
    def _envelope_bytes(settings: QdrantSettings) -> int:
        return int(grpc.UpsertPoints(collection_name=settings.collection, wait=True).ByteSize())


class LocalWire:
    """The engine inside the client: a folder, or memory. It is synchronous, so it works on a thread of its own.

    Stores of one place share it, as a folder takes one client only. What is in memory lives as long as the process.
    The engine keeps its points pickled, so a folder is to be trusted as code is.
    """

    is_embedded = True

    def __init__(self, settings: QdrantSettings) -> None:
        self.limits = UpsertLimits(max_request_bytes=None, max_records=1000, envelope_bytes=0, concurrency=1)
        self._settings = settings
        self._engine: _Engine | None = None

    async def connect(self) -> None:
        """Open the folder.

        Raises:
            UsageError: another process has it open, or it cannot be a folder.
        """
        if self._engine is not None:
            return
        engine = _borrow(self._settings.url)
        try:
            await engine.do(engine.open)
        except RuntimeError as error:
            _give_back(engine)
            raise UsageError(f"another process uses the folder {engine.place}: name another, or a server") from error
        except OSError as error:
            _give_back(engine)
            raise UsageError(f"cannot use the folder {engine.place}: {error.strerror}; name another place") from error
        self._engine = engine

    def encode(self, record: Record) -> EncodedRecord:
        """The point as a model."""
        return local_point(record, self._settings.vector_name)

    async def upsert(self, points: Sequence[Any]) -> models.UpdateStatus:
        """Stored and on disk when it returns."""
        answer: models.UpdateResult = await self.ask("upsert", points=list(points))
        return answer.status

    async def ask(self, method: str, **arguments: Any) -> Any:
        """A method of the client about this collection, on the engine's thread."""
        if self._engine is None or self._engine.client is None:
            raise RefusedError(f"Qdrant's collection {self._settings.collection} is not open")
        act = getattr(self._engine.client, method)
        return await self._engine.do(partial(act, collection_name=self._settings.collection, **arguments))

    async def aclose(self) -> None:
        """The last store of a folder closes it."""
        engine, self._engine = self._engine, None
        if engine is not None and _give_back(engine):
            await engine.do(engine.close)


@dataclass
class _Engine:
    """The client of one place, used by ``users`` stores, all of it on one thread."""

    place: str
    users: int = 0
    client: QdrantClient | None = None
    thread: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1, "qdrant"))

    async def do(self, act: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.thread, act)

    def open(self) -> None:
        if self.client is None:
            where = {"location": MEMORY} if self.place == MEMORY else {"path": self.place}
            self.client = QdrantClient(**where)  # type: ignore[arg-type]

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
        self.thread.shutdown(wait=False)


_engines: dict[str, _Engine] = {}
_engines_lock = threading.Lock()


def _borrow(url: str) -> _Engine:
    place = url if url == MEMORY else str(Path(url).resolve())
    with _engines_lock:
        engine = _engines.setdefault(place, _Engine(place))
        engine.users += 1
    return engine


def _give_back(engine: _Engine) -> bool:
    """True where nobody uses it any more and it is to be closed."""
    with _engines_lock:
        engine.users -= 1
        is_free = engine.users == 0 and engine.place != MEMORY
        if is_free:
            del _engines[engine.place]
    return is_free
