"""From settings to a store. The one place that knows every adapter, each imported only when it is asked for."""

from __future__ import annotations

from tasks.errors import UsageError
from tasks.extras import optional
from tasks.provider_settings import (
    AnyStoreSettings,
    LanceDBSettings,
    PgVectorSettings,
    PineconeSettings,
    QdrantSettings,
    WeaviateSettings,
)
from tasks.secrets import find_secret, resolve_secret
from tasks.upsert.port import Store


def build_store(settings: AnyStoreSettings) -> Store:
    """The store these settings name, not opened yet.

    Raises:
        UsageError: the store's key is not to be found, or its package is not installed.
    """
    match settings:
        case LanceDBSettings():
            from tasks.upsert.lancedb import LanceDBStore  # noqa: PLC0415 - imports its vendor

            return LanceDBStore(settings)
        case PineconeSettings():
            from tasks.upsert.pinecone import PineconeStore  # noqa: PLC0415 - imports its vendor

            return PineconeStore(settings, api_key=resolve_secret(settings.api_key))
        case WeaviateSettings():
            with optional("weaviate"):
                from tasks.upsert.weaviate import WeaviateStore  # noqa: PLC0415 - imports its vendor

            return WeaviateStore(settings, api_key=find_secret(settings.api_key))
        case QdrantSettings():
            with optional("qdrant"):
                from tasks.upsert.qdrant import QdrantStore  # noqa: PLC0415 - imports its vendor
            return QdrantStore(settings, api_key=find_secret(settings.api_key))
        case PgVectorSettings():
            with optional("pgvector"):
                from tasks.upsert.pgvector import PgVectorStore  # noqa: PLC0415 - imports its vendor
            return PgVectorStore(settings, password=find_secret(settings.password))
    raise UsageError(f"no adapter for {settings.kind}")
