"""Every store against the one contract. A new store is one line of `BEDS`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.upsert.beds import (
    lancedb_bed,
    pgvector_bed,
    pinecone_bed,
    pinecone_namespace_bed,
    qdrant_folder_bed,
    qdrant_grpc_bed,
    qdrant_memory_bed,
    qdrant_rest_bed,
    weaviate_bed,
    weaviate_vector_bed,
)
from tests.upsert.contract import Bed, StoreContract

BEDS = [
    pytest.param(lancedb_bed, id="lancedb"),
    pytest.param(pinecone_bed, id="pinecone"),
    pytest.param(pinecone_namespace_bed, id="pinecone-namespace"),
    pytest.param(weaviate_bed, id="weaviate"),
    pytest.param(weaviate_vector_bed, id="weaviate-named-vector"),
    pytest.param(qdrant_memory_bed, id="qdrant-memory"),
    pytest.param(qdrant_folder_bed, id="qdrant-folder"),
    pytest.param(qdrant_rest_bed, id="qdrant-rest"),
    pytest.param(qdrant_grpc_bed, id="qdrant-grpc"),
    pytest.param(pgvector_bed, id="pgvector"),
]


class TestEveryStore(StoreContract):
    @pytest.fixture(params=BEDS)
    def bed(self, request: pytest.FixtureRequest) -> Iterator[Bed]:
        with request.param(request) as bed:
            yield bed
