"""Preflight: what is found before a run, over real SDKs and servers, and what it costs."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from flows.findings import of_disk, of_limits, of_vector
from flows.preflight import OPENED, Providers, open_providers, settings_of
from tasks.embed.port import EmbedLimits
from tasks.errors import UsageError
from tasks.settings import IngestSettings
from tasks.upsert.port import UpsertLimits
from tests.emulators.faults import Faults
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.pinecone import PineconeEmulator
from tests.fakes import CountingEmbedder, MemoryStore

DIMENSION = 8


@pytest.fixture
def openai(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIEmulator]:
    with OpenAIEmulator() as server:
        monkeypatch.setenv("OPENAI_API_KEY", server.api_key)
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        yield server


@pytest.fixture
def pinecone(monkeypatch: pytest.MonkeyPatch) -> Iterator[PineconeEmulator]:
    with PineconeEmulator() as server:
        monkeypatch.setenv("PINECONE_API_KEY", server.api_key)
        monkeypatch.setenv("PINECONE_CONTROLLER_HOST", server.base_url)
        server.create_index("docs", DIMENSION)
        server.create_index("other", 1536)
        yield server


class Ground:
    """One source and the settings of a sound run over it; `found` has a change refused."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "docs.jsonl"
        self.write({"id": "a", "text": "some words", "metadata": {}}, {"id": "b", "text": "more words"})

    def write(self, *items: dict[str, Any]) -> None:
        self.source.write_bytes(b"".join(orjson.dumps(item) + b"\n" for item in items))

    def settings(self, **changed: Any) -> IngestSettings:
        sound = {
            "source": str(self.source),
            "embedder": f"openai:text-embedding-3-small:{DIMENSION}",
            "store": "pinecone:docs",
        }
        return settings_of(sound | changed)

    async def found(self, **changed: Any) -> str:
        with pytest.raises(UsageError) as raised:
            async with open_providers(self.settings(**changed)):
                pytest.fail("it was let through")
        (line,) = str(raised.value).splitlines()
        return line


@pytest.fixture
def ground(openai: OpenAIEmulator, pinecone: PineconeEmulator, tmp_path: Path) -> Ground:
    return Ground(tmp_path)


async def test_a_key_that_is_refused_is_named(
    ground: Ground, openai: OpenAIEmulator, pinecone: PineconeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of either provider; nothing is embedded, and the key is not told."""
    monkeypatch.setenv("PINECONE_API_KEY", "pc-wrong")
    line = await ground.found()
    assert "PINECONE_API_KEY" in line
    assert "pc-wrong" not in line
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    line = await ground.found()
    assert "OPENAI_API_KEY" in line
    assert "sk-wrong" not in line
    assert openai.texts == 0
    assert pinecone.upsert_requests == 0


async def test_an_account_without_funds_is_found_by_the_tiny_request(ground: Ground, openai: OpenAIEmulator) -> None:
    """Its key is good, and its models can be listed."""
    openai.insufficient_quota = True
    assert "insufficient_quota" in await ground.found()


async def test_the_index_must_exist_and_fit_the_embedder(ground: Ground) -> None:
    """Its name and its dimension."""
    assert "no index named absent" in await ground.found(store="pinecone:absent")
    line = await ground.found(store="pinecone:other")
    assert "1536 dimensions, the embedder makes 8" in line


async def test_a_metric_that_is_not_cosine_needs_vectors_of_length_one(
    ground: Ground, pinecone: PineconeEmulator
) -> None:
    """OpenAI's have it; those of another embedder may not."""
    pinecone.create_index("dots", DIMENSION, "dotproduct")
    async with open_providers(ground.settings(store="pinecone:dots")) as providers:
        (finding,) = of_vector(np.full(DIMENSION, 2.0, np.float32), providers.store)
        assert "dotproduct" in finding
        assert "length 5.66" in finding


async def test_rules_that_every_document_breaks_are_told_before(ground: Ground, openai: OpenAIEmulator) -> None:
    """Ids, metadata, the namespace; a single one is a dead letter of the run."""
    good, bad = {"id": "a", "text": "words"}, {"id": "ü", "text": "words"}
    ground.write(bad, {"id": "x" * 600, "text": "words"})
    assert "refuses each of the first 2 documents: id holds a character" in await ground.found()
    ground.write(bad, good)
    async with open_providers(ground.settings()):
        pass
    assert "namespace is ASCII" in await ground.found(store="pinecone:docs/ünique")
    ground.write({"key": "a", "text": "words"}, {"key": "b", "text": "words"})
    line = await ground.found()
    assert "no document among its first 2 items" in line
    assert "--id-field" in line
    assert openai.texts == 0


async def test_a_budget_that_no_document_keeps_is_told_before(ground: Ground) -> None:
    """Where the shortest is over it."""
    ground.write(
        {"id": "a", "text": "one two three four " * 10}, {"id": "b", "text": "five six seven eight nine " * 10}
    )
    assert "--tpm 39 is less than each of the first 2 documents has: at least 41" in await ground.found(tpm=39)
    async with open_providers(ground.settings(tpm=45)):  # preflight's own request fits the same minute
        pass


async def test_all_that_is_wrong_stands_in_one_line(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person mends it in one go."""
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("PINECONE_API_KEY")
    line = await ground.found(source="missing.jsonl")
    assert [
        part in line for part in ("no source file", "OPENAI_API_KEY is not set", "PINECONE_API_KEY is not set")
    ] == [
        True,
        True,
        True,
    ]


async def test_no_collection_is_made_where_something_else_is_wrong(
    ground: Ground, pinecone: PineconeEmulator, openai: OpenAIEmulator
) -> None:
    """`--create` comes last."""
    openai.api_key = "another"
    assert "OPENAI_API_KEY" in await ground.found(store="pinecone:new", create=True)
    assert "new" not in pinecone.indexes


async def test_a_provider_that_stumbles_is_asked_again(
    ground: Ground, openai: OpenAIEmulator, pinecone: PineconeEmulator
) -> None:
    """One failed answer of either is no finding."""
    openai.faults = Faults(script=("none", "status_503", "status_500"))
    pinecone.faults = Faults(script=("status_503",))
    async with open_providers(ground.settings()):
        pass
    assert openai.tiny_requests == 1


async def test_a_sound_run_costs_one_tiny_request_and_is_opened_once(ground: Ground, openai: OpenAIEmulator) -> None:
    """What the command line has opened serves the flow."""
    settings = ground.settings()
    async with open_providers(settings) as providers:
        assert isinstance(providers, Providers)
        token = OPENED.set((settings, providers))
        try:
            async with open_providers(ground.settings()) as again:
                assert again is providers
            async with open_providers(ground.settings(batch_size=7)) as other:
                assert other is not providers
        finally:
            OPENED.reset(token)
    assert (openai.tiny_requests, openai.texts) == (2, 0)


async def test_without_preflight_nothing_is_asked(ground: Ground, openai: OpenAIEmulator) -> None:
    """As the dimension is set; what is wrong shows in the run."""
    ground.write({"key": "a"})
    async with open_providers(ground.settings(no_preflight=True)):
        pass
    assert openai.requests == 0


def test_a_batch_over_the_texts_a_minute_is_told() -> None:
    """It could never go; a smaller one can."""
    embedder = CountingEmbedder(limits=EmbedLimits(max_inputs=96, inputs_per_minute=50))
    assert "a batch of 96 texts never fits 50" in "".join(of_limits(IngestSettings(), embedder))
    assert list(of_limits(IngestSettings(batch_size=50), embedder)) == []


@contextmanager
def open_files(most: int) -> Iterator[None]:
    """So many open files at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_requests_than_open_files_are_told() -> None:
    """Each has a connection."""
    with open_files(256):
        found = "".join(of_limits(IngestSettings(concurrency=500), CountingEmbedder()))
        assert "--concurrency 500 needs more open files than the 256" in found
        assert list(of_limits(IngestSettings(concurrency=100), CountingEmbedder())) == []


def test_a_vector_over_the_stores_request_is_told() -> None:
    """Every record would be a dead letter."""
    store = MemoryStore(limits=UpsertLimits(max_request_bytes=40, max_records=10, envelope_bytes=10, concurrency=1))
    (finding,) = of_vector(np.ones(100, np.float32), store)
    assert "one vector takes 411 bytes, a request to the store 40" in finding
    assert list(of_vector(np.ones(4, np.float32), store)) == []


def test_too_little_room_for_checkpoints_is_told() -> None:
    """Vectors in flight, receipts and ledger, and a fifth more."""
    asked = {"documents": 1_000_000, "kept": 10_000, "dimension": 1536}
    (finding,) = of_disk(100_000_000, **asked)
    assert finding == "checkpoints may take 112 MB, 100 MB are free where they lie"
    assert list(of_disk(120_000_000, **asked)) == []
