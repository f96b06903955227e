"""Settings: shorthands, limits, and one line for each mistake."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from flows.preflight import settings_of
from tasks.errors import UsageError
from tasks.provider_settings import (
    HashingSettings,
    LanceDBSettings,
    OpenAISettings,
    PineconeSettings,
    parse_embedder,
    parse_store,
)
from tasks.settings import (
    IngestSettings,
    allowed_failures,
    parse_max_failed,
)


@pytest.mark.parametrize(
    ("parameters", "option", "advice"),
    [
        ({"embedder": "word2vec"}, "--embedder", "hashing[:DIMENSION], openai[:MODEL[:DIMENSIONS]]"),
        ({"embedder": "hashing:many"}, "--embedder", "not a number of dimensions"),
        ({"embedder": "hashing:4"}, "--embedder", "greater than or equal to 8"),
        ({"embedder": "openai:m:0"}, "--embedder", "greater than or equal to 1"),
        ({"embedder": 3}, "--embedder", ""),
        ({"store": "redis:x"}, "--store", "lancedb:PATH/TABLE, pinecone:INDEX[/NAMESPACE]"),
        ({"store": "pinecone:"}, "--store", "pinecone:INDEX"),
        ({"store": "lancedb:./data/my table"}, "--store", "pattern"),
        ({"job_id": "../escape"}, "--job-id", "beginning with a letter or digit"),
        ({"job_id": "a" * 101}, "--job-id", "up to 100 letters"),
        ({"batch_size": 0}, "--batch-size", "greater than or equal to 1"),
        ({"max_failed": "most"}, "--max-failed", "a count of documents nor a percentage"),
        ({"max_memory_percent": 0}, "--max-memory-percent", "greater than 0"),
        ({"colour": "red"}, "--colour", "not permitted"),
    ],
)
async def test_a_mistake_is_one_line_that_names_its_option(
    parameters: dict[str, Any], option: str, advice: str
) -> None:
    """And nothing of pydantic."""
    with pytest.raises(UsageError) as raised:
        settings_of(parameters)
    message = str(raised.value)
    assert message.startswith(option + " ")
    assert advice in message
    assert "\n" not in message
    assert "pydantic" not in message


@pytest.mark.parametrize("value", ["-1", "101%", "5 %", "%", "", "1.5", 1.0, True, None, "five"])
def test_neither_a_count_nor_a_percentage_is_refused(value: Any) -> None:
    """The message says both forms."""
    with pytest.raises(ValueError, match="5%"):
        parse_max_failed(value)


@pytest.mark.parametrize("settings", [HashingSettings(), LanceDBSettings(), IngestSettings()])
def test_settings_are_frozen_and_know_their_fields(settings: BaseModel) -> None:
    """A typing mistake in a name is no new field."""
    with pytest.raises(ValidationError):
        settings.kind = "other"  # type: ignore[attr-defined]
    with pytest.raises(ValidationError):
        type(settings).model_validate({"colour": "red"})


@pytest.mark.parametrize(
    ("shorthand", "settings"),
    [
        ("hashing", HashingSettings(dimension=1024)),
        ("hashing:", HashingSettings(dimension=1024)),
        ("hashing:64", HashingSettings(dimension=64)),
        ("openai", OpenAISettings(model="text-embedding-3-small", dimensions=None)),
        ("openai:text-embedding-3-large", OpenAISettings(model="text-embedding-3-large")),
        ("openai:text-embedding-3-large:256", OpenAISettings(model="text-embedding-3-large", dimensions=256)),
        ("openai::256", OpenAISettings(model="text-embedding-3-small", dimensions=256)),
        ("openai:org/model", OpenAISettings(model="org/model")),
    ],
)
def test_an_embedders_shorthand(shorthand: str, settings: BaseModel) -> None:
    """The table of the README."""
    assert parse_embedder(shorthand) == settings
    assert IngestSettings.model_validate({"embedder": shorthand}).embedder == settings


@pytest.mark.parametrize(
    ("shorthand", "settings"),
    [
        ("lancedb", LanceDBSettings(uri="./data", table="millrace")),
        ("lancedb:notes", LanceDBSettings(uri=".", table="notes")),
        ("lancedb:./data/notes", LanceDBSettings(uri="./data", table="notes")),
        ("lancedb:./data/notes/", LanceDBSettings(uri="./data", table="notes")),
        ("lancedb:/notes", LanceDBSettings(uri="/", table="notes")),
        ("lancedb:s3://bucket/folder/notes", LanceDBSettings(uri="s3://bucket/folder", table="notes")),
        ("pinecone:docs", PineconeSettings(index="docs", namespace="__default__")),
        ("pinecone:docs/", PineconeSettings(index="docs", namespace="__default__")),
        ("pinecone:docs/english", PineconeSettings(index="docs", namespace="english")),
    ],
)
def test_a_stores_shorthand(shorthand: str, settings: BaseModel) -> None:
    """The table of the README."""
    assert parse_store(shorthand) == settings
    assert IngestSettings.model_validate({"store": shorthand}).store == settings


def test_settings_pass_as_models_and_as_dictionaries() -> None:
    """From Python and from a deployment's parameters."""
    model = OpenAISettings(dimensions=256)
    assert IngestSettings(embedder=model).embedder is model
    assert IngestSettings.model_validate({"embedder": model.model_dump()}).embedder == model
    assert IngestSettings.model_validate(IngestSettings(embedder=model).model_dump()).embedder == model


@pytest.mark.parametrize(
    ("value", "parsed"), [(0, 0), ("7", 7), (" 7 ", 7), ("5%", "5%"), ("0.5%", "0.5%"), ("100%", "100%")]
)
def test_how_many_may_fail(value: Any, parsed: int | str) -> None:
    """A count is a number, a percentage stays as it is written."""
    assert parse_max_failed(value) == parsed


@pytest.mark.parametrize(
    ("max_failed", "documents", "allowed"),
    [(0, 10, 0), (7, 10, 7), ("5%", 1_000, 50), ("5%", 19, 0), ("100%", 19, 19), ("0.57%", 10_000, 57), ("1%", 0, 0)],
)
def test_a_percentage_is_of_the_sources_documents(max_failed: int | str, documents: int, allowed: int) -> None:
    """Rounded down, from the decimal that was written."""
    assert allowed_failures(max_failed, documents) == allowed


def test_a_segment_is_a_checkpoints_batches() -> None:
    """Documents of `checkpoint_interval` requests."""
    assert IngestSettings(batch_size=20, checkpoint_interval=3).segment_size == 60
