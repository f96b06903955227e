"""A Weaviate collection as this project needs it: made with vectors of our own, or found and seen to fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from weaviate import WeaviateAsyncClient
from weaviate.classes.config import Configure, DataType, Property, Tokenization, VectorDistances
from weaviate.exceptions import UnexpectedStatusCodeError
from weaviate.outputs.config import CollectionConfig

from tasks.errors import UsageError
from tasks.provider_settings import WeaviateSettings
from tasks.upsert.weaviate_objects import DOCUMENT_ID, FILTERABLE_TYPES, METADATA, OWN_PROPERTIES, TEXT

_NOT_FOUND, _EXISTS = 404, 422
_DEFAULT_VECTOR = "default"  # the client's own name for the only vector of a new collection
_DIMENSION = re.compile(r"Vectors of ([0-9]+) dimensions")
# What makes of a distance a score that is higher where it is nearer; Weaviate's "dot" is the dot product, negated.
_SCORES: Mapping[str, tuple[float, float]] = {"cosine": (1.0, -1.0), "dot": (0.0, -1.0)}


@dataclass(frozen=True, slots=True)
class Collection:
    """What requests need to know.

    ``vector_name`` is None where the collection has one vector without a name, as older clients make them;
    ``declared`` has the properties that metadata fields fill, with their types; ``dimension`` is what `create` noted.
    """

    vector_name: str | None
    metric: str
    declared: Mapping[str, str]
    dimension: int | None

    def score(self, distance: float) -> float:
        """The similarity of a distance."""
        start, sign = _SCORES[self.metric]
        return start + sign * distance


async def find(client: WeaviateAsyncClient, settings: WeaviateSettings) -> Collection | None:
    """The collection, or None where there is none of this name.

    Raises:
        UsageError: it does not fit.
    """
    try:
        config = await client.collections.use(settings.collection).config.get()
    except UnexpectedStatusCodeError as error:
        if error.status_code == _NOT_FOUND:
            return None
        raise
    except (KeyError, ValueError, AssertionError) as error:  # how the client says that it does not know a setting
        raise UsageError(
            f"Weaviate's collection {settings.collection} has a setting that this weaviate-client does not know: "
            "upgrade it, or name another collection"
        ) from error
    return _fitting(config, settings)


async def create(client: WeaviateAsyncClient, settings: WeaviateSettings, dimension: int | None) -> Collection:
    """Make the collection: cosine, HNSW, vectors of our own; where another process was first, take that one."""
    text = DataType.TEXT
    declared = [
        Property(name=name, data_type=DataType(kind), index_searchable=False)
        for name, kind in settings.filterable.items()
    ]
    try:
        await client.collections.create(
            settings.collection,
            # Weaviate keeps no dimension before the first vector is there; see `_noted_dimension`.
            description=f"Vectors of {dimension} dimensions, filled by Millrace.",
            properties=[
                Property(name=DOCUMENT_ID, data_type=text, tokenization=Tokenization.FIELD, index_searchable=False),
                Property(name=TEXT, data_type=text, index_filterable=False),  # searchable by keywords
                Property(name=METADATA, data_type=text, index_filterable=False, index_searchable=False),
                *declared,
            ],
            vector_config=Configure.Vectors.self_provided(
                name=settings.vector_name or _DEFAULT_VECTOR,
                vector_index_config=Configure.VectorIndex.hnsw(distance_metric=VectorDistances.COSINE),
            ),
        )
    except UnexpectedStatusCodeError as error:
        if error.status_code != _EXISTS:
            raise
        made = await find(client, settings)
        if made is None:
            raise
        return made
    made = await find(client, settings)
    if made is None:
        raise UsageError(f"Weaviate's collection {settings.collection} was deleted as soon as it was made")
    return made


def _fitting(config: CollectionConfig, settings: WeaviateSettings) -> Collection:
    name = settings.collection
    if config.multi_tenancy_config.enabled:
        raise UsageError(f"Weaviate's collection {name} is split by tenants: name another")
    types = {property_.name: property_.data_type.value for property_ in config.properties}
    for own in OWN_PROPERTIES:
        if types.get(own) != DataType.TEXT.value:
            raise UsageError(
                f"Weaviate's collection {name} has no property {own} of type text: add it, or name another"
            )
    for field, kind in settings.filterable.items():
        if types.get(field) != kind:
            raise UsageError(f"Weaviate's collection {name} has no property {field} of type {kind}: add it")
    vector_name, metric = _vector(config, settings)
    if metric not in _SCORES:
        raise UsageError(f"Weaviate's collection {name} measures by {metric}, not by cosine: name another")
    declared = {
        field: kind for field, kind in types.items() if kind in FILTERABLE_TYPES and field not in OWN_PROPERTIES
    }
    return Collection(vector_name, metric, declared, _noted_dimension(config.description))


def _vector(config: CollectionConfig, settings: WeaviateSettings) -> tuple[str | None, str]:
    """The vector's name, None for the one without, and its metric."""
    named = config.vector_config or {}
    wanted = settings.vector_name
    if wanted is None and not named and config.vector_index_config is not None:
        return None, str(config.vector_index_config.distance_metric.value)
    if wanted is None and len(named) == 1:
        wanted = next(iter(named))
    if wanted is None or wanted not in named:
        there = ", ".join(sorted(named)) or "only one without a name"
        raise UsageError(
            f"Weaviate's collection {settings.collection} has these vectors: {there}; name one of them by vector_name"
        )
    metric = getattr(named[wanted].vector_index_config, "distance_metric", None)
    return wanted, "nothing (its index was dropped)" if metric is None else str(metric.value)


def _noted_dimension(description: str | None) -> int | None:
    found = _DIMENSION.match(description or "")
    return int(found[1]) if found else None
