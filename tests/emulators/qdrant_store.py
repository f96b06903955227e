"""What Qdrant keeps: collections of points, and the rules by which it takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

DEFAULT_INDEXING_THRESHOLD = 10_000
DISTANCES = ("Cosine", "Dot", "Euclid", "Manhattan")
MAX_DIMENSION = 65_536


class BadRequest(Exception):  # noqa: N818 - a refusal is an answer, not an error of the emulator
    """A request that Qdrant refuses: its words and the HTTP status."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


@dataclass(frozen=True)
class StoredPoint:
    """A point as it reads back: under cosine at length one."""

    vectors: Mapping[str, NDArray[np.float32]]
    payload: Mapping[str, Any]


@dataclass(frozen=True)
class SentPoint:
    """A point as it was sent; the only vector of a collection goes by an empty name."""

    id: str | int
    vectors: Mapping[str, Sequence[float]]
    payload: Mapping[str, Any]


@dataclass
class Collection:
    """``vectors`` has the parameters (size, distance) of each vector by name."""

    vectors: Mapping[str, Mapping[str, Any]]
    indexing_threshold: int = DEFAULT_INDEXING_THRESHOLD
    thresholds: list[int] = field(default_factory=list)
    points: dict[str, StoredPoint] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for params in self.vectors.values():
            if not 1 <= params["size"] <= MAX_DIMENSION or params["distance"] not in DISTANCES:
                raise BadRequest(f"Validation error in JSON body: [vectors: {dict(params)}]", 422)

    @property
    def only(self) -> Mapping[str, Any] | None:
        """The parameters of the vector without a name."""
        return self.vectors.get("")

    def set_threshold(self, kilobytes: int) -> None:
        """Change the optimizer's setting; ``thresholds`` keeps the order."""
        self.indexing_threshold = kilobytes
        self.thresholds.append(kilobytes)

    def upsert(self, points: Iterable[SentPoint]) -> int:
        """Store every point or none; how many they are."""
        read = {point_key(point.id): self._read(point) for point in points}
        if not read:
            raise BadRequest("Empty update request")
        self.points.update(read)
        return len(read)

    def nearest(self, name: str, query: Sequence[float], limit: int) -> list[tuple[str, float]]:
        """Ids and scores, nearest first; of a distance the smaller is nearer."""
        params = self._params(name)
        vector = self._checked(query, params)
        scored = [(key, _score(point.vectors[name], vector, params["distance"])) for key, point in self.points.items()]
        nearer = -1 if params["distance"] in {"Cosine", "Dot"} else 1
        return sorted(scored, key=lambda pair: nearer * pair[1])[:limit]

    def _read(self, point: SentPoint) -> StoredPoint:
        vectors = {}
        for name, values in point.vectors.items():
            params = self._params(name)
            vector = self._checked(values, params)
            vectors[name] = at_length_one(vector) if params["distance"] == "Cosine" else vector
        return StoredPoint(vectors, dict(point.payload))

    def _params(self, name: str) -> Mapping[str, Any]:
        if name not in self.vectors:
            raise BadRequest(f"Wrong input: Not existing vector name error: {name}")
        return self.vectors[name]

    @staticmethod
    def _checked(values: Sequence[float], params: Mapping[str, Any]) -> NDArray[np.float32]:
        vector = np.asarray(values, np.float32)
        if len(vector) != params["size"]:
            raise BadRequest(f"Wrong input: Vector dimension error: expected dim: {params['size']}, got {len(vector)}")
        if not np.isfinite(vector).all():
            raise BadRequest("Wrong input: vector contains NaN or Infinity")
        return vector


def point_key(id_: str | int) -> str:
    """The one spelling of a point's id: an unsigned integer or a UUID, nothing else."""
    if isinstance(id_, int) and not isinstance(id_, bool) and 0 <= id_ < 2**64:
        return str(id_)
    try:
        return str(UUID(str(id_)))
    except ValueError:
        raise BadRequest(
            f"value {id_} is not a valid point ID, valid values are an unsigned integer or a UUID"
        ) from None


def at_length_one(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """What Qdrant's cosine does on the way in: a vector that is zero or has length one already stays as it is."""
    squared = np.float32(np.square(vector).sum(dtype=np.float32))
    if squared < np.finfo(np.float32).eps or abs(squared - 1) <= 1e-6:
        return vector
    normalised: NDArray[np.float32] = vector / np.sqrt(squared)
    return normalised


def _score(stored: NDArray[np.float32], query: NDArray[np.float32], distance: str) -> float:
    if distance == "Cosine":
        return float(stored @ at_length_one(query))
    if distance == "Dot":
        return float(stored @ query)
    difference = stored - query
    return float(np.abs(difference).sum() if distance == "Manhattan" else np.linalg.norm(difference))
