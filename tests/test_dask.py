"""Shards in worker processes that Dask looks after: together they do one job, also when one of them is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distributed
import orjson
import psutil
import pytest
from prefect.client.schemas.objects import State

from flows.ingest import ingest
from flows.stopping import STOPPER, Stopper
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.pinecone import PineconeEmulator
from tests.test_pipeline import counts

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.slow,
    pytest.mark.usefixtures("results"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

CONCURRENCY = 4


@dataclass
class Providers:
    """Both emulators, and a source for them."""

    openai: OpenAIEmulator
    pinecone: PineconeEmulator
    source: Path

    def write(self, documents: int) -> None:
        lines = [orjson.dumps({"id": f"d{i}", "text": f"the text of document {i}"}) for i in range(documents)]
        self.source.write_bytes(b"\n".join(lines) + b"\n")

    async def run(self, **changed: Any) -> State[Any]:
        given: dict[str, Any] = {
            "source": str(self.source),
            "job_id": "job",
            "embedder": "openai:text-embedding-3-small:8",
            "store": "pinecone:docs",
            "batch_size": 10,
            "checkpoint_interval": 2,
            "concurrency": CONCURRENCY,
            "shards": 2,
            "runner": "dask",
        }
        ending: Any = ingest(**given | changed, return_state=True)
        state: State[Any] = await ending
        return state

    def stored(self) -> set[str]:
        return set(self.pinecone.records("docs"))


@pytest.fixture
def providers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Providers]:
    with OpenAIEmulator() as openai, PineconeEmulator() as pinecone:
        pinecone.create_index("docs", 8)
        monkeypatch.setenv("OPENAI_API_KEY", openai.api_key)
        monkeypatch.setenv("OPENAI_BASE_URL", openai.base_url)
        monkeypatch.setenv("PINECONE_API_KEY", pinecone.api_key)
        monkeypatch.setenv("PINECONE_CONTROLLER_HOST", pinecone.base_url)
        yield Providers(openai, pinecone, tmp_path / "source.jsonl")


def workers() -> list[psutil.Process]:
    """The worker processes of this one."""
    children = psutil.Process().children(recursive=True)
    alive = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in alive if any("spawn_main" in part for part in child.cmdline())]


def ids(documents: int) -> set[str]:
    return {f"d{i}" for i in range(documents)}


async def test_a_killed_worker_costs_the_requests_in_flight_and_nothing_else(providers: Providers) -> None:
    """Half-way one of two workers is killed: every document is stored once, no vector on disk is asked for again."""
    providers.write(400)
    openai = providers.openai
    openai.hold(after=20)
    running = asyncio.create_task(providers.run())
    await asyncio.to_thread(openai.wait_held, CONCURRENCY, 120)
    victim = workers()[0]
    os.kill(victim.pid, signal.SIGKILL)
    await asyncio.to_thread(victim.wait, 30)
    openai.release()
    state = await running
    assert state.is_completed(), state.message
    report: Any = await state.aresult()
    assert report["documents"] == 400 == report["upserted"] + report["unchanged"]
    assert providers.stored() == ids(400)
    assert openai.state()["distinct_texts"] >= 400
    in_flight = CONCURRENCY // 2 + sum(report["retries"].values())  # held for more than a minute, one is sent again
    assert openai.paid_again <= in_flight * 10

    paid = openai.state()["texts"]
    state = await providers.run(shards=3)
    report = await state.aresult()
    assert (report["unchanged"], report["resumed"]) == (400, True)
    assert openai.state()["texts"] - paid <= 1  # the tiny request of a preflight


async def test_a_request_to_stop_reaches_every_worker(providers: Providers) -> None:
    """What is under way lands, and the next run goes on there; nothing is paid for twice."""
    providers.write(400)
    openai, stopper = providers.openai, Stopper()
    openai.hold(after=10)
    STOPPER.set(stopper)
    running = asyncio.create_task(providers.run())
    await asyncio.to_thread(openai.wait_held, CONCURRENCY, 120)
    assert stopper.request()
    openai.latency_seconds = 0.5
    openai.release()
    state = await running
    assert state.is_failed()
    assert "stopped" in str(state.message)
    landed = providers.stored()
    assert 0 < len(landed) < 400

    openai.latency_seconds = 0
    STOPPER.set(None)
    report: Any = await (await providers.run(runner="local", shards=1)).aresult()
    assert report["unchanged"] == len(landed)
    assert providers.stored() == ids(400)
    assert openai.paid_again <= 1


async def test_a_refusal_in_one_worker_ends_the_run_with_its_words(providers: Providers) -> None:
    """And stops the others."""
    providers.write(100)
    providers.pinecone.indexes.clear()
    state = await providers.run(no_preflight=True)
    assert state.is_failed()


async def test_workers_of_a_scheduler_elsewhere_do_the_job(providers: Providers) -> None:
    """Its address is all that the run knows; the cluster outlives it."""
    providers.write(100)
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "memory_limit": 0}
    with await asyncio.to_thread(lambda: distributed.LocalCluster(**options)) as cluster:  # type: ignore[no-untyped-call]
        state = await providers.run(runner=f"dask:{cluster.scheduler_address}")
        report: Any = await state.aresult()
        assert counts(report) == (100, 100, 0, 0, 0)
        assert providers.stored() == ids(100)
        assert len(cluster.scheduler_info["workers"]) == 2


async def test_nobody_at_the_address_is_bad_input(providers: Providers) -> None:
    """One line with the address."""
    providers.write(10)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        state = await providers.run(runner=f"dask:tcp://127.0.0.1:{taken.getsockname()[1]}")
    assert state.name == "Bad input"
    assert "no Dask scheduler answers at tcp://127.0.0.1" in str(state.message)
