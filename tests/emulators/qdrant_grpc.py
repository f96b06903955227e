"""Qdrant's gRPC API on the client's own stubs, over the same collections as the REST one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc
from grpc import ServicerContext as Context
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.grpc import (
    collections_pb2,
    collections_service_pb2_grpc,
    points_pb2,
    points_service_pb2_grpc,
    qdrant_common_pb2,
)

from tests.emulators.qdrant_store import BadRequest, Collection, SentPoint, point_key

_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
    422: grpc.StatusCode.INVALID_ARGUMENT,
}
_DISTANCES = {1: "Cosine", 2: "Euclid", 3: "Dot", 4: "Manhattan"}


class QdrantGrpcEmulator:
    """A gRPC server on loopback; ``port`` is known once it is entered.

    ``script`` are the codes that the next upserts are refused with, in order; RESOURCE_EXHAUSTED names a wait of
    ``retry_after_seconds``. ``refused_ids`` are parts of document ids that are refused. The counters are the REST
    emulator's, of upserts that were stored.
    """

    def __init__(self, *, api_key: str | None = None, max_request_bytes: int = 32 * 1024 * 1024) -> None:
        self.api_key = api_key
        self.collections: dict[str, Collection] = {}
        self.script: list[grpc.StatusCode] = []
        self.retry_after_seconds = 7
        self.refused_ids: tuple[str, ...] = ()
        self.requests = 0
        self.upsert_bytes = 0
        self.largest_request_bytes = 0
        self.largest_request_records = 0
        self.port = 0
        # One thread: the collections and counters need no lock.
        self._server = grpc.server(
            ThreadPoolExecutor(1), options=[("grpc.max_receive_message_length", max_request_bytes)]
        )

    def __enter__(self) -> Self:
        points_service_pb2_grpc.add_PointsServicer_to_server(_Points(self), self._server)  # type: ignore[no-untyped-call]
        collections_service_pb2_grpc.add_CollectionsServicer_to_server(_Collections(self), self._server)  # type: ignore[no-untyped-call]
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.stop(None).wait()

    def admit(self, context: Context) -> None:
        """Count a request and check its key."""
        self.requests += 1
        given = dict(context.invocation_metadata()).get("api-key")
        if self.api_key is not None and given != self.api_key:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Must provide an API key")

    def collection(self, name: str, context: Context) -> Collection:
        """The collection, or the end of the call."""
        if name not in self.collections:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Not found: Collection `{name}` doesn't exist!")
        return self.collections[name]

    def check_script(self, context: Context) -> None:
        """Refuse what the script refuses."""
        if self.script:
            code = self.script.pop(0)
            if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                context.set_trailing_metadata((("retry-after", str(self.retry_after_seconds)),))
            context.abort(code, "injected")

    def stored(self, request: Any) -> None:
        """Count an upsert."""
        size = request.ByteSize()
        self.upsert_bytes += size
        self.largest_request_bytes = max(self.largest_request_bytes, size)
        self.largest_request_records = max(self.largest_request_records, len(request.points))


class _Points(points_service_pb2_grpc.PointsServicer):
    def __init__(self, emulator: QdrantGrpcEmulator) -> None:
        self._emulator = emulator

    def Upsert(self, request: Any, context: Context) -> Any:  # noqa: N802 - the protocol's names
        self._emulator.admit(context)
        collection = self._emulator.collection(request.collection_name, context)
        self._emulator.check_script(context)
        points = [_sent(point) for point in request.points]
        if any(part in str(point.payload.get("id")) for point in points for part in self._emulator.refused_ids):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Wrong input: a point of this request is refused")
        if not request.wait:
            return _updated(points_pb2.UpdateStatus.Acknowledged)
        try:
            collection.upsert(points)
        except BadRequest as error:
            _refuse(error, context)
        self._emulator.stored(request)
        return _updated(points_pb2.UpdateStatus.Completed)

    def Delete(self, request: Any, context: Context) -> Any:  # noqa: N802
        self._emulator.admit(context)
        collection = self._emulator.collection(request.collection_name, context)
        for id_ in request.points.points.ids:
            collection.points.pop(_key(id_), None)
        return _updated(points_pb2.UpdateStatus.Completed)

    def Get(self, request: Any, context: Context) -> Any:  # noqa: N802
        self._emulator.admit(context)
        points = self._emulator.collection(request.collection_name, context).points
        found = [key for key in map(_key, request.ids) if key in points]
        return points_pb2.GetResponse(
            result=[
                points_pb2.RetrievedPoint(
                    id=qdrant_common_pb2.PointId(uuid=key),
                    payload=RestToGrpc.convert_payload(dict(points[key].payload)),
                    vectors=_vectors_output(points[key].vectors),
                )
                for key in found
            ]
        )

    def Query(self, request: Any, context: Context) -> Any:  # noqa: N802
        self._emulator.admit(context)
        collection = self._emulator.collection(request.collection_name, context)
        try:
            nearest = collection.nearest(request.using, list(request.query.nearest.dense.data), request.limit)
        except BadRequest as error:
            _refuse(error, context)
        return points_pb2.QueryResponse(
            result=[
                points_pb2.ScoredPoint(
                    id=qdrant_common_pb2.PointId(uuid=key),
                    payload=RestToGrpc.convert_payload(dict(collection.points[key].payload)),
                    score=score,
                )
                for key, score in nearest
            ]
        )

    def Count(self, request: Any, context: Context) -> Any:  # noqa: N802
        self._emulator.admit(context)
        points = self._emulator.collection(request.collection_name, context).points
        return points_pb2.CountResponse(result=points_pb2.CountResult(count=len(points)))


class _Collections(collections_service_pb2_grpc.CollectionsServicer):
    def __init__(self, emulator: QdrantGrpcEmulator) -> None:
        self._emulator = emulator

    def CollectionExists(self, request: Any, context: Context) -> Any:  # noqa: N802
        self._emulator.admit(context)
        exists = request.collection_name in self._emulator.collections
        return collections_pb2.CollectionExistsResponse(result=collections_pb2.CollectionExists(exists=exists))

    def Create(self, request: Any, context: Context) -> Any:  # noqa: N802
        self._emulator.admit(context)
        if request.collection_name in self._emulator.collections:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, f"Collection `{request.collection_name}` already exists!")
        config = request.vectors_config
        named = config.params_map.map if config.HasField("params_map") else {"": config.params}
        vectors = {name: {"size": one.size, "distance": _DISTANCES[one.distance]} for name, one in named.items()}
        self._emulator.collections[request.collection_name] = Collection(vectors)
        return collections_pb2.CollectionOperationResponse(result=True)

    def Update(self, request: Any, context: Context) -> Any:  # noqa: N802
        self._emulator.admit(context)
        collection = self._emulator.collection(request.collection_name, context)
        collection.set_threshold(request.optimizers_config.indexing_threshold)
        return collections_pb2.CollectionOperationResponse(result=True)

    def Get(self, request: Any, context: Context) -> Any:  # noqa: N802
        self._emulator.admit(context)
        collection = self._emulator.collection(request.collection_name, context)
        return collections_pb2.GetCollectionInfoResponse(result=_described(collection))


def _described(collection: Collection) -> Any:
    distances: dict[str, Any] = {name: number for number, name in _DISTANCES.items()}
    params = {
        name: collections_pb2.VectorParams(size=one["size"], distance=distances[one["distance"]])
        for name, one in collection.vectors.items()
    }
    vectors = (
        collections_pb2.VectorsConfig(params=params[""])
        if "" in params
        else collections_pb2.VectorsConfig(params_map=collections_pb2.VectorParamsMap(map=params))
    )
    return collections_pb2.CollectionInfo(
        status=collections_pb2.CollectionStatus.Green,
        optimizer_status=collections_pb2.OptimizerStatus(ok=True),
        segments_count=1,
        points_count=len(collection.points),
        config=collections_pb2.CollectionConfig(
            params=collections_pb2.CollectionParams(vectors_config=vectors, shard_number=1, on_disk_payload=True),
            hnsw_config=collections_pb2.HnswConfigDiff(m=16, ef_construct=100, full_scan_threshold=10_000),
            optimizer_config=collections_pb2.OptimizersConfigDiff(
                deleted_threshold=0.2,
                vacuum_min_vector_number=1000,
                default_segment_number=0,
                indexing_threshold=collection.indexing_threshold,
                flush_interval_sec=5,
            ),
            wal_config=collections_pb2.WalConfigDiff(wal_capacity_mb=32, wal_segments_ahead=0),
        ),
    )


def _sent(point: Any) -> SentPoint:
    vectors: dict[str, Sequence[float]] = (
        {name: list(one.dense.data) for name, one in point.vectors.vectors.vectors.items()}
        if point.vectors.HasField("vectors")
        else {"": list(point.vectors.vector.dense.data)}
    )
    return SentPoint(_key(point.id), vectors, GrpcToRest.convert_payload(point.payload))


def _vectors_output(vectors: Mapping[str, Any]) -> Any:
    made = {
        name: points_pb2.VectorOutput(dense=points_pb2.DenseVector(data=vector.tolist()))
        for name, vector in vectors.items()
    }
    if "" in made:
        return points_pb2.VectorsOutput(vector=made[""])
    return points_pb2.VectorsOutput(vectors=points_pb2.NamedVectorsOutput(vectors=made))


def _key(id_: Any) -> str:
    return point_key(id_.uuid if id_.WhichOneof("point_id_options") == "uuid" else id_.num)


def _updated(status: Any) -> Any:
    return points_pb2.PointsOperationResponse(result=points_pb2.UpdateResult(operation_id=1, status=status), time=0.0)


def _refuse(error: BadRequest, context: Context) -> NoReturn:
    context.abort(_STATUS[error.status], error.message)
    raise AssertionError("abort raises")
