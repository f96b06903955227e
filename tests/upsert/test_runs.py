"""Whole runs into every store: what is embedded is there, exactly, and what the server refuses is a dead letter."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from prefect import flow

from flows.job import Job
from flows.preflight import Providers
from flows.run import run
from flows.search import find_place, search
from tasks.embed.hashing import HashingEmbedder
from tasks.errors import RunFailedError
from tasks.load.source import open_source
from tasks.provider_settings import HashingSettings, WeaviateSettings
from tasks.records import Reason
from tasks.settings import IngestSettings, SourceSettings
from tasks.upsert.open import build_store
from tasks.upsert.port import Store
from tests.emulators.weaviate import WeaviateEmulator
from tests.upsert.contract import SECRET, Bed, assert_kept, needs
from tests.upsert.test_contract import BEDS

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("results")]

DOCUMENTS = 5_000
HASHING = HashingSettings(dimension=64)


class CountingHashing(HashingEmbedder):
    """Counts the texts that it embeds."""

    embedded = 0

    async def embed(self, texts: Any) -> Any:
        self.embedded += len(texts)
        return await super().embed(texts)


def text_of(number: int) -> str:
    return f'Mill number {number}: "wheel {number * 7}" turns stone {number % 13}\nünï'


def write_source(folder: Path, documents: int) -> Path:
    source = folder / "source.jsonl"
    lines = (
        orjson.dumps(
            {"id": f"doc-{n}", "text": text_of(n), "metadata": {"n": n, "even": n % 2 == 0, "tags": [f"t{n}"]}}
        )
        for n in range(documents)
    )
    source.write_bytes(b"\n".join(lines) + b"\n")
    return source


@dataclass(frozen=True)
class Filled:
    """What one run of the job did: its report, the texts it embedded, its dead letters by reason."""

    report: dict[str, Any]
    embedded: int
    reasons: dict[Reason, int]

    @property
    def counts(self) -> tuple[int, ...]:
        """Of law 1, the whole first."""
        return tuple(self.report[key] for key in ("documents", "upserted", "unchanged", "duplicates", "dead_letters"))


async def fill(store: Store, source: Path, **changed: Any) -> Filled:
    reasons: dict[Reason, int] = {}
    embedder = CountingHashing(HASHING)
    settings = IngestSettings(**({"source": str(source), "job_id": "job", "embedder": HASHING} | changed))
    await store.open(HASHING.dimension, create=True)

    @flow(persist_result=False)
    async def filling() -> Any:
        providers = Providers(open_source(SourceSettings(location=str(source))), embedder, store)
        job = Job(settings, providers, pytest.fail)
        async with job.writing():
            result = await run(job)
        reasons.update(job.tally.dead_letters)
        return result

    state = await filling(return_state=True)
    result: Any = await state.aresult(raise_on_failure=False)
    report = dict(result.report if isinstance(result, RunFailedError) else result)
    return Filled(report, embedder.embedded, reasons)


@pytest.fixture(params=BEDS)
def bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    with request.param(request) as made:
        yield made


@pytest.fixture
async def store(bed: Bed) -> AsyncIterator[Store]:
    made = bed.make("collection")
    yield made
    await made.aclose()


async def test_five_thousand_documents_are_counted_and_fetched_back_exactly(
    store: Store, bed: Bed, tmp_path: Path
) -> None:
    """And nothing is embedded or upserted again by another run."""
    source = write_source(tmp_path, DOCUMENTS)
    filled = await fill(store, source)
    assert filled.counts == (DOCUMENTS, DOCUMENTS, 0, 0, 0)
    assert filled.embedded == DOCUMENTS
    assert await store.count() == DOCUMENTS
    found = {one.id: one for one in await store.fetch([f"doc-{n}" for n in range(DOCUMENTS)])}
    expected = (await HashingEmbedder(HASHING).embed([text_of(n) for n in range(DOCUMENTS)])).vectors
    assert len(found) == DOCUMENTS
    for n, vector in enumerate(expected):
        one = found[f"doc-{n}"]
        assert_kept(one.vector, vector, normalised=bed.normalises)
        assert one.text == text_of(n)
        assert one.metadata == {"n": n, "even": n % 2 == 0, "tags": [f"t{n}"]}

    again = await fill(store, source)
    assert again.counts == (DOCUMENTS, 0, DOCUMENTS, 0, 0)
    assert (again.embedded, again.report["upsert_requests"]) == (0, 0)


async def test_what_the_server_refuses_is_a_dead_letter_and_its_neighbours_land(
    store: Store, bed: Bed, tmp_path: Path
) -> None:
    """Named by the store or found by halving; a later run sends it again and pays nothing for it."""
    needs(bed.refuse, "server that refuses")
    assert bed.refuse is not None
    source = write_source(tmp_path, 60)
    await store.open(HASHING.dimension, create=True)
    bed.refuse("doc-3")  # and doc-30 to doc-39
    filled = await fill(store, source, batch_size=20, checkpoint_interval=1)
    assert filled.counts == (60, 49, 0, 0, 11)
    assert filled.embedded == 60
    assert filled.reasons == {Reason.REJECTED: 11}
    assert await store.count() == 49

    bed.refuse("nothing")
    again = await fill(store, source, batch_size=20, checkpoint_interval=1)
    assert again.counts == (60, 11, 49, 0, 0)
    assert again.embedded == 0
    assert await store.count() == 60


async def test_search_finds_in_weaviate_what_a_run_put_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the shorthand that a person types."""
    monkeypatch.setenv("WEAVIATE_API_KEY", SECRET)
    with WeaviateEmulator(api_key=SECRET) as server:
        settings = WeaviateSettings(url=server.url, grpc_port=server.grpc_port, collection="Docs")
        store = build_store(settings)
        await fill(store, write_source(tmp_path, 50))
        await store.aclose()
        place = await find_place(None, "hashing:64", f"weaviate:{server.url}/Docs?grpc_port={server.grpc_port}")
        hits = await search(text_of(17), place, limit=3)
    assert hits[0].id == "doc-17"
    assert hits[0].score == pytest.approx(1, abs=1e-6)
    assert (hits[0].text, hits[0].metadata["n"]) == (text_of(17), 17)
