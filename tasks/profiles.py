"""What every provider allows and costs, each number once and with its source; adapters take theirs from here.

Limits that are settings stand there, and are shown here. ``None`` is no documented limit. Prices change without
notice: they are here to compare, and the provider's page decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.provider_settings import (
    CohereSettings,
    HashingSettings,
    OpenAISettings,
    PineconeSettings,
    QdrantSettings,
    Settings,
    WeaviateSettings,
)

PINECONE_METADATA_BYTES = 40 * 1024
"""Of a record: Pinecone's operation limits say 40 KB, and its error names 40960."""
PINECONE_ID_CHARACTERS = 512


def default(settings: type[Settings], name: str) -> Any:
    """What a setting is when nobody sets it."""
    return settings.model_fields[name].default


@dataclass(frozen=True, slots=True)
class Model:
    """An embedding model: length of its vectors, longest text in model tokens, dollars per million model tokens."""

    dimension: int | None
    max_tokens: int | None = None
    price: float | None = None


@dataclass(frozen=True, slots=True)
class EmbedderProfile:
    """What one embedding request may hold, and how many texts a minute may send.

    ``extra`` is the name under which pip installs what it needs, and ``is_free`` says that nobody bills it.
    """

    kind: str
    max_inputs: int
    source: str
    max_tokens_per_input: int | None = None
    max_tokens_per_request: int | None = None
    inputs_per_minute: int | None = None
    models: Mapping[str, Model] = field(default_factory=dict)
    default_model: str = ""
    extra: str | None = None
    is_free: bool = False

    def dimension(self, model: str) -> int | None:
        """Length of this model's vectors; None for a model that is not known here."""
        known = self.models.get(model)
        return None if known is None else known.dimension


@dataclass(frozen=True, slots=True)
class StoreProfile:
    """What one upsert request may hold, and what a store asks of a record."""

    kind: str
    max_records: int
    source: str
    max_request_bytes: int | None = None
    max_metadata_bytes: int | None = None
    max_id_characters: int | None = None
    ids: str = "any text"
    is_free: bool = False
    extra: str | None = None


HASHING = EmbedderProfile(
    "hashing",
    max_inputs=2048,
    models={"": Model(default(HashingSettings, "dimension"))},
    is_free=True,
    source="ours: an answer is 64 MiB at most, so the longest vectors take smaller requests",
)
OPENAI = EmbedderProfile(
    "openai",
    max_inputs=2048,
    max_tokens_per_input=8191,  # 8,192, of which one is left free
    max_tokens_per_request=300_000,
    models={
        "text-embedding-3-small": Model(1536, 8191, 0.02),
        "text-embedding-3-large": Model(3072, 8191, 0.13),
        "text-embedding-ada-002": Model(1536, 8191, 0.10),
    },
    default_model=default(OpenAISettings, "model"),
    source="OpenAI: API reference (create embeddings), model pages",
)
COHERE = EmbedderProfile(
    "cohere",
    max_inputs=96,
    inputs_per_minute=default(CohereSettings, "inputs_per_minute"),
    models={
        "embed-v4.0": Model(1536, 128_000, 0.12),
        "embed-english-v3.0": Model(1024, 512),
        "embed-multilingual-v3.0": Model(1024, 512),
        "embed-english-light-v3.0": Model(384, 512),
        "embed-multilingual-light-v3.0": Model(384, 512),
    },
    default_model=default(CohereSettings, "model"),
    extra="cohere",
    source="Cohere: embed reference, embed models, rate limits, pricing",
)
SENTENCE_TRANSFORMERS = EmbedderProfile(
    "sentence-transformers",
    max_inputs=256,
    extra="local",
    is_free=True,
    source="Sentence Transformers' documentation; a text that is too long is cut, and counted",
)

LANCEDB = StoreProfile(
    "lancedb",
    max_records=10_000,
    is_free=True,
    source="ours: one commit, held in memory at once",
)
PINECONE = StoreProfile(
    "pinecone",
    max_records=1000,
    max_request_bytes=default(PineconeSettings, "max_request_bytes"),
    max_metadata_bytes=PINECONE_METADATA_BYTES,
    max_id_characters=PINECONE_ID_CHARACTERS,
    ids="ASCII",
    source="Pinecone: operation limits, identifier limits",
)
QDRANT = StoreProfile(
    "qdrant",
    max_records=256,
    max_request_bytes=default(QdrantSettings, "max_request_bytes"),
    ids="any text, kept beside a UUID made of it",
    extra="qdrant",
    source="Qdrant: bulk upload guide, points guide, FAQ",
)
WEAVIATE = StoreProfile(
    "weaviate",
    max_records=100,
    max_request_bytes=default(WeaviateSettings, "max_request_bytes"),
    ids="any text, kept beside a UUID made of it",
    extra="weaviate",
    source="Weaviate: batch guide, environment variables (gRPC message)",
)
PGVECTOR = StoreProfile(
    "pgvector",
    max_records=10_000,
    max_request_bytes=16_000_000,
    ids="up to 2,600 bytes without NUL",
    extra="pgvector",
    is_free=True,
    source="ours: one COPY, held in memory at once; PostgreSQL: B-tree (length of a key)",
)

EMBEDDERS = (HASHING, OPENAI, COHERE, SENTENCE_TRANSFORMERS)
STORES = (LANCEDB, PINECONE, QDRANT, WEAVIATE, PGVECTOR)
