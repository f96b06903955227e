"""Typed settings of embedders and stores, and the shorthand strings that stand for them.

Everything here is public: it is stored and shown by Prefect, so a setting names where a key is found, never the key.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

DEFAULT_HASHING_DIMENSION = 1024
_NAME = r"^[A-Z][A-Z0-9_]*$"  # no provider's key looks like it: one that is pasted here is refused, not stored
_KEY = "Name of the environment variable or Prefect Secret block that holds the key, never the key."
_KIND = "Tells these settings from the others."
_MODEL = "The provider's name of the model."
_IDENTIFIER = r"^[A-Za-z_][A-Za-z0-9_]{0,62}$"


class Settings(BaseModel):
    """Frozen, and without room for a name that nobody knows. A field is called the same in a form as in Python."""

    model_config = ConfigDict(frozen=True, extra="forbid", field_title_generator=lambda name, _: name)


def _require_kind(schema: dict[str, Any]) -> None:
    schema["required"] = ["kind", *schema.get("required", [])]


class ProviderSettings(Settings):
    """Settings of one kind of provider. A server must refuse those that leave ``kind`` out, as pydantic does."""

    model_config = ConfigDict(json_schema_extra=_require_kind)


class HashingSettings(ProviderSettings, title="Hashing"):
    """Feature hashing of words: offline, deterministic, lexical (not semantic)."""

    kind: Literal["hashing"] = Field("hashing", description=_KIND)
    dimension: int = Field(DEFAULT_HASHING_DIMENSION, ge=8, le=65_536, description="Length of the vectors.")


class OpenAISettings(ProviderSettings, title="OpenAI"):
    """OpenAI's embeddings, or any server with the same API (`OPENAI_BASE_URL`)."""

    kind: Literal["openai"] = Field("openai", description=_KIND)
    model: str = Field("text-embedding-3-small", min_length=1, description=_MODEL)
    dimensions: int | None = Field(None, ge=1, description="Shorter vectors, for models that offer them.")
    api_key: str = Field("OPENAI_API_KEY", pattern=_NAME, description=_KEY)


class CohereSettings(ProviderSettings, title="Cohere"):
    """Cohere's embeddings (`CO_API_URL` names another server)."""

    kind: Literal["cohere"] = Field("cohere", description=_KIND)
    model: str = Field("embed-v4.0", min_length=1, description=_MODEL)
    dimensions: int | None = Field(None, ge=1, description="Shorter vectors, for models that offer them.")
    inputs_per_minute: int | None = Field(2000, ge=1, description="Cohere's limit counts texts, not requests.")
    api_key: str = Field("CO_API_KEY", pattern=_NAME, description=_KEY)


class SentenceTransformersSettings(ProviderSettings, title="Sentence Transformers"):
    """A Sentence Transformers model on this machine."""

    kind: Literal["sentence-transformers"] = Field("sentence-transformers", description=_KIND)
    model: str = Field(min_length=1, description="Folder of a model, or its name on the Hugging Face hub.")
    device: str | None = Field(None, description="`cuda`, `mps` or `cpu`; by default the best there is.")
    allow_download: bool = Field(False, description="Fetch a model that is named by a hub name and is not here yet.")


class LanceDBSettings(ProviderSettings, title="LanceDB"):
    """LanceDB, embedded: a table in a folder on this machine or under an object store's URL."""

    kind: Literal["lancedb"] = Field("lancedb", description=_KIND)
    uri: str = Field("./data", min_length=1, description="Folder, or an object store's URL.")
    table: str = Field("millrace", pattern=r"^[A-Za-z0-9_.-]+$", description="Name of the table.")


class PineconeSettings(ProviderSettings, title="Pinecone"):
    """One namespace of a Pinecone index."""

    kind: Literal["pinecone"] = Field("pinecone", description=_KIND)
    index: str = Field(min_length=1, description="Name of the index.")
    namespace: str = Field("__default__", min_length=1, max_length=512, description="Part of the index.")
    cloud: str = Field("aws", description="Where `create` makes a serverless index.")
    region: str = Field("us-east-1", description="Where `create` makes a serverless index.")
    max_request_bytes: int = Field(2_000_000, ge=10_000, description="Pinecone documents 2 MB a request.")
    api_key: str = Field("PINECONE_API_KEY", pattern=_NAME, description=_KEY)


class _WithPublicAddress(ProviderSettings):
    """Settings whose address is stored and shown, so it must hold no password."""

    @field_validator("url", "dsn", check_fields=False)
    @classmethod
    def _without_password(cls, address: str) -> str:
        is_url = "://" in address
        if (is_url and urlsplit(address).password) or re.search(r"(^|[\s?&])password\s*=", address):
            raise ValueError("leave the password out of the address: it is shown by Prefect; set the key's variable")
        return address


class QdrantSettings(_WithPublicAddress, title="Qdrant"):
    """A Qdrant collection: on a server, in a local folder, or in memory."""

    kind: Literal["qdrant"] = Field("qdrant", description=_KIND)
    url: str = Field(min_length=1, description="URL of a server, a folder, or `:memory:`.")
    collection: str = Field(min_length=1, max_length=255, description="Name of the collection.")
    vector_name: str | None = Field(None, description="The named vector to fill, where there are several.")
    prefer_grpc: bool = Field(False, description="gRPC instead of REST: less than half the bytes.")
    grpc_port: int = Field(6334, ge=1, le=65_535, description="Where `prefer_grpc` finds the server.")
    defer_indexing: bool = Field(False, description="Build the index after a first bulk load instead of during it.")
    max_request_bytes: int = Field(5_000_000, ge=10_000, description="A server takes 32 MB; Qdrant advises less.")
    api_key: str = Field("QDRANT_API_KEY", pattern=_NAME, description=_KEY)

    @field_validator("url")
    @classmethod
    def _place(cls, url: str) -> str:
        if re.fullmatch(r"[\w.-]+:\d+", url):
            raise ValueError(f"a server is named by its URL: http://{url}")
        if "://" in url and not re.match(r"https?://", url):
            raise ValueError("a Qdrant server's URL begins with http:// or https://, for gRPC too")
        return url


WeaviateType = Literal[
    "text", "int", "number", "boolean", "date", "uuid", "text[]", "int[]", "number[]", "boolean[]", "date[]", "uuid[]"
]
_WEAVIATE_PROPERTY = Annotated[str, Field(pattern=r"^[a-z_][A-Za-z0-9_]{0,230}$")]
_WEAVIATE_TAKEN = frozenset({"id", "vector", "document_id", "text", "metadata"})  # by Weaviate, and by our own layout


class WeaviateSettings(_WithPublicAddress, title="Weaviate"):
    """A Weaviate collection that takes its vectors from outside."""

    kind: Literal["weaviate"] = Field("weaviate", description=_KIND)
    url: str = Field(pattern=r"^https?://[^/?#]+/*$", description="URL of the server's REST API.")
    collection: str = Field(
        pattern=r"^[A-Za-z][A-Za-z0-9_]*$",
        description="Name of the collection; Weaviate makes its first letter a capital.",
    )
    grpc_port: int = Field(50051, ge=1, le=65_535, description="Of a server that is not in Weaviate's cloud.")
    vector_name: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,229}$",
        description="The named vector to fill, where there are several.",
    )
    filterable: dict[_WEAVIATE_PROPERTY, WeaviateType] = Field(
        default_factory=dict, description="Metadata fields that become properties of their own, to filter by."
    )
    max_request_bytes: int = Field(10_000_000, ge=10_000, description="Weaviate documents 10 MB a gRPC message.")
    api_key: str = Field(
        "WEAVIATE_API_KEY", pattern=_NAME, description=f"{_KEY} A server with anonymous access needs none."
    )

    @field_validator("filterable")
    @classmethod
    def _not_taken(cls, filterable: dict[str, WeaviateType]) -> dict[str, WeaviateType]:
        if taken := sorted(_WEAVIATE_TAKEN.intersection(filterable)):
            raise ValueError(f"a property cannot be named {taken[0]}: rename the metadata field")
        return filterable


class PgVectorSettings(_WithPublicAddress, title="pgvector"):
    """A PostgreSQL table with a vector column of the pgvector extension."""

    kind: Literal["pgvector"] = Field("pgvector", description=_KIND)
    dsn: str = Field(min_length=1, description="postgresql://user@host:port/database, without the password.")
    table: str = Field(pattern=_IDENTIFIER, description="Name of the table.")
    index: bool = Field(True, description="Make an HNSW index after the load where there is none.")
    password: str = Field("PGPASSWORD", pattern=_NAME, description=f"{_KEY} A server that trusts the user needs none.")


EMBEDDER_SHORTHANDS = (
    "hashing[:DIMENSION]",
    "openai[:MODEL[:DIMENSIONS]]",
    "cohere[:MODEL[:DIMENSIONS]]",
    "sentence-transformers:PATH_OR_NAME",
)
STORE_SHORTHANDS = (
    "lancedb:PATH/TABLE",
    "pinecone:INDEX[/NAMESPACE]",
    "qdrant:URL_OR_PATH/COLLECTION",
    "weaviate:URL/COLLECTION[?vector_name=NAME&grpc_port=PORT]",
    "pgvector:DSN/TABLE",
)

_EMBEDDER_PATTERN = r"^(hashing(:\d+)?|(openai|cohere)(:[^:]*(:\d+)?)?|sentence-transformers:.+)$"
_STORE_PATTERN = r"^(lancedb(:.*)?|pinecone:.+|(qdrant|weaviate|pgvector):.+/.+)$"


def parse_embedder(shorthand: Any) -> Any:
    """Settings for an embedder's shorthand; anything but a string passes through.

    Raises:
        ValueError: not a known shorthand; the message lists them.
    """
    if not isinstance(shorthand, str):
        return shorthand
    kind, _, rest = shorthand.partition(":")
    match kind:
        case "hashing":
            return HashingSettings(dimension=_number(rest)) if rest else HashingSettings()
        case "openai":
            return OpenAISettings(**_model_and_dimensions(rest))
        case "cohere":
            return CohereSettings(**_model_and_dimensions(rest))
        case "sentence-transformers" if rest:
            return SentenceTransformersSettings(model=rest)
    raise ValueError(f"not a known embedder; use one of {', '.join(EMBEDDER_SHORTHANDS)}")


def parse_store(shorthand: Any) -> Any:
    """Settings for a store's shorthand; anything but a string passes through.

    The last part of a LanceDB path is the table: ``lancedb:./data/millrace`` is the table ``millrace`` in ``./data``.

    Raises:
        ValueError: not a known shorthand; the message lists them.
    """
    if not isinstance(shorthand, str):
        return shorthand
    kind, _, rest = shorthand.partition(":")
    place, slash, collection = rest.rstrip("/").rpartition("/")
    match kind:
        case "lancedb":
            return LanceDBSettings(uri=place or (slash or "."), table=collection) if collection else LanceDBSettings()
        case "pinecone" if rest:
            index, _, namespace = rest.partition("/")
            return PineconeSettings(index=index, **({"namespace": namespace} if namespace else {}))
        case "qdrant" if place:
            return QdrantSettings(url=place, collection=collection)
        case "weaviate" if place:
            collection, _, more = collection.partition("?")
            return WeaviateSettings(**dict(parse_qsl(more)) | {"url": place, "collection": collection})
        case "pgvector" if place:
            return PgVectorSettings(dsn=place, table=collection)
    raise ValueError(f"not a known store; use one of {', '.join(STORE_SHORTHANDS)}")


def _model_and_dimensions(rest: str) -> dict[str, Any]:
    model, _, dimensions = rest.partition(":")
    given: dict[str, Any] = {"model": model} if model else {}
    return given | ({"dimensions": _number(dimensions)} if dimensions else {})


def _number(digits: str) -> int:
    if not re.fullmatch(r"[0-9]+", digits):
        raise ValueError(f"{digits!r} is not a number of dimensions")
    return int(digits)


AnyEmbedderSettings = HashingSettings | OpenAISettings | CohereSettings | SentenceTransformersSettings
AnyStoreSettings = LanceDBSettings | PineconeSettings | QdrantSettings | WeaviateSettings | PgVectorSettings
_Embedder = Annotated[AnyEmbedderSettings, Field(discriminator="kind")]
_Store = Annotated[AnyStoreSettings, Field(discriminator="kind")]
# A form offers the alternatives of a flat union by their titles, and a server refuses a shorthand by its pattern.
_EmbedderShorthand = Annotated[str, Field(pattern=_EMBEDDER_PATTERN, title="Shorthand")]
_StoreShorthand = Annotated[str, Field(pattern=_STORE_PATTERN, title="Shorthand")]
EmbedderSettings = Annotated[
    _Embedder, BeforeValidator(parse_embedder, json_schema_input_type=_EmbedderShorthand | AnyEmbedderSettings)
]
StoreSettings = Annotated[
    _Store, BeforeValidator(parse_store, json_schema_input_type=_StoreShorthand | AnyStoreSettings)
]
