"""Law 2 under SIGKILL: the command line as a process, killed again and again, against OpenAI and Pinecone over HTTP."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.settings import get_current_settings

from tasks.checkpoints.binding import read_record
from tasks.checkpoints.blobs import FolderBlobs
from tasks.checkpoints.job import JobCheckpoints
from tasks.checkpoints.storage import CheckpointStorage
from tasks.fingerprints import Fingerprints
from tasks.records import Document
from tests.checkpoints.blobs import UnchangedBlobs
from tests.command import delete_limits
from tests.emulators.openai import OpenAIEmulator, text_digest, vector_for
from tests.emulators.pinecone import PineconeEmulator

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.cli,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

ROOT = Path(__file__).parent.parent.parent
DIMENSION, DOCUMENTS = 64, 3000
BATCH_SIZE, INTERVAL, CONCURRENCY = 5, 4, 4
MOST_IN_FLIGHT = BATCH_SIZE * CONCURRENCY

WHILE_DOCUMENTS_LAND = [
    ("before", "vectors-v1", 3),
    ("half", "vectors-v1", 6),
    ("after", "vectors-v1", 9),
    ("before", "embeds-v1", 2),
    ("half", "embeds-v1", 1),
    ("after", "embeds-v1", 3),
    ("sending", "", 2),
    ("confirmed", "", 2),
    ("before", "receipts-v1", 2),
    ("half", "receipts-v1", 1),
    ("after", "receipts-v1", 3),
    ("removed", "vectors-v1", 2),
    ("removed", "embeds-v1", 2),
]
RANDOM_KILLS = 6
WHILE_THE_LEDGER_IS_COMPACTED = [
    ("before", "ledgers-v1", 1),
    ("half", "ledgers-v1", 1),
    ("after", "ledgers-v1", 1),
    ("half", "/head", 1),
    ("after", "/head", 1),
    ("removed", "receipts-v1", 3),
    ("before", "/head", 1),
]


class Mill:
    """One job over OpenAI and Pinecone, run as a process again and again."""

    def __init__(self, folder: Path, openai: OpenAIEmulator, pinecone: PineconeEmulator) -> None:
        self.folder = folder
        self.openai = openai
        self.pinecone = pinecone
        self.texts = {f"d{i}": f"text {i} of the source" for i in range(DOCUMENTS)}
        self.lost: Counter[bytes] = Counter()
        lines = [json.dumps({"id": id_, "text": text}) for id_, text in self.texts.items()]
        (folder / "source.jsonl").write_text("\n".join(lines) + "\n")

    def start(self, *killed: str) -> subprocess.Popen[str]:
        """The command line; ``killed`` says when it ends itself."""
        module = ["-m", "tests.checkpoints.killed", *killed] if killed else [str(ROOT / "flows/ingest.py")]
        options = {
            "source": self.folder / "source.jsonl",
            "job-id": "job",
            "embedder": f"openai:text-embedding-3-small:{DIMENSION}",
            "store": "pinecone:docs",
            "batch-size": BATCH_SIZE,
            "checkpoint-interval": INTERVAL,
            "concurrency": CONCURRENCY,
        }
        given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        environment = os.environ | {
            "OPENAI_API_KEY": self.openai.api_key,
            "OPENAI_BASE_URL": self.openai.base_url,
            "PINECONE_API_KEY": self.pinecone.api_key,
            "PINECONE_CONTROLLER_HOST": self.pinecone.base_url,
            "PREFECT_API_URL": str(get_current_settings().api.url),
            "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(self.folder / "results"),
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, *module, *given, "--json"]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=self.folder
        )

    def wait_for_requests(self, enough: int) -> None:
        self.openai.wait_for(lambda: self.openai.requests >= enough)

    async def buried(self, process: subprocess.Popen[str]) -> int:
        """After a kill: how many texts were paid for and are not on disk. They are what a later run may pay again."""
        _, said = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, said
        delete_limits()  # a lease may have been granted in the very moment of the kill
        self.openai.wait_for(lambda: not self.openai.in_flight)
        return await self.count_lost()

    async def count_lost(self) -> int:
        blobs = UnchangedBlobs(FolderBlobs(self.folder / "results"))
        storage = CheckpointStorage.over(blobs, lambda _: None)
        checkpoints = JobCheckpoints(storage, "job", 0, lambda _: None)
        await checkpoints.load()
        documents = [Document(id_, text, {}) for id_, text in self.texts.items()]
        fingerprints = await self.fingerprints(storage)
        vector_keys = fingerprints.vector_keys(documents)
        done = checkpoints.ledger.holds(fingerprints.entries(documents, vector_keys))
        lost = 0
        for document, key, is_done in zip(documents, vector_keys, done.tolist(), strict=True):
            digest = text_digest(document.text)
            if self.openai.paid[digest] > self.lost[digest] and not is_done and key not in checkpoints.vectors:
                self.lost[digest] += 1
                lost += 1
        return lost

    async def fingerprints(self, storage: CheckpointStorage) -> Fingerprints:
        record = await read_record(storage, "job")
        assert record is not None
        return Fingerprints(embedder=record.embedder, store=record.store, keep_text=record.keeps_text)


@pytest.fixture
def mill(prefect_server: None, tmp_path: Path) -> Iterator[Mill]:
    with OpenAIEmulator() as openai, PineconeEmulator() as pinecone:
        pinecone.create_index("docs", DIMENSION)
        yield Mill(tmp_path, openai, pinecone)


def check_stored(mill: Mill) -> None:
    """Every document is there once, with its own vector, and nothing else is."""
    records = mill.pinecone.records("docs")
    assert records.keys() == mill.texts.keys()
    for id_, text in mill.texts.items():
        vector, metadata = records[id_].vector, records[id_].metadata
        assert vector is not None
        assert np.allclose(vector, vector_for(text, DIMENSION), atol=1e-6)
        assert metadata == {"text": text}


async def test_a_job_that_is_killed_at_every_boundary_loses_nothing_and_pays_once(mill: Mill) -> None:
    """26 kills in one job. What is paid twice are texts of requests that were in flight at a kill, and only those."""
    kills = 0
    for moment, place, nth in WHILE_DOCUMENTS_LAND:
        lost = await mill.buried(mill.start(moment, place, str(nth)))
        assert lost <= MOST_IN_FLIGHT, (moment, place)
        kills += 1
    chance = random.Random(7)
    for _ in range(RANDOM_KILLS):
        enough, process = mill.openai.requests + chance.randint(1, 40), mill.start()
        mill.wait_for_requests(enough)
        process.kill()
        assert await mill.buried(process) <= MOST_IN_FLIGHT
        kills += 1
    assert mill.openai.texts < DOCUMENTS, "the source must outlast the kills"
    for moment, place, nth in WHILE_THE_LEDGER_IS_COMPACTED:
        assert await mill.buried(mill.start(moment, place, str(nth))) == 0, (moment, place)
        kills += 1
    assert kills == 26

    process = mill.start()
    out, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    report: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert (report["documents"], report["unchanged"], report["embedding_requests"]) == (DOCUMENTS, DOCUMENTS, 0)
    check_stored(mill)
    assert {digest: paid - 1 for digest, paid in mill.openai.paid.items() if paid > 1} == dict(mill.lost)
    kept = mill.folder / "results" / "millrace"
    assert not [path for kind in ("receipts", "vectors") for path in kept.glob(f"{kind}-v1/**/*") if path.is_file()]
    assert not [path for kind in ("ledgers", "jobs") for path in kept.glob(f"{kind}-v1/**/.*")]
