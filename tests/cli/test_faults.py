"""Twenty thousand documents through providers that fail in every way they know: each stored once, as it should be."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from tasks.provider_settings import PineconeSettings
from tasks.records import Record
from tasks.upsert.pinecone import PineconeStore
from tests.command import Command, Finished, server_url
from tests.emulators.process import EmulatorProcess
from tests.emulators.vectors import vectors_for

pytestmark = [pytest.mark.cli, pytest.mark.slow]

DOCUMENTS = 20_000
DIMENSION = 16
EMBEDDING_FAULTS = {
    **dict.fromkeys(("status_500", "status_503", "status_429", "reset_before", "reset_after", "truncate"), 0.02),
    **dict.fromkeys(("drop_item", "duplicate_item", "nan", "wrong_dimension"), 0.02),
    "shuffle": 0.2,
}
"""Shares of the requests, of the embeddings endpoint alone, as the kinds from `shuffle` on are of its answers."""
UPSERT_FAULTS = dict.fromkeys(
    ("status_500", "status_503", "status_429", "reset_before", "reset_after", "truncate"), 0.03
)
POISON = "arsenic"
POISON_EVERY = 500
"""0.2 % of the documents."""


@dataclass
class Mills:
    """The command line between two providers that are processes of their own."""

    command: Command
    openai: EmulatorProcess
    pinecone: EmulatorProcess

    def run(self, *arguments: object) -> Finished:
        """Fill the index from the source, with small batches, so that there are many requests to fail."""
        return self.command.run(
            *("--source", "docs.jsonl", "--job-id", "j", "--json", "--concurrency", 10),
            *("--embedder", f"openai:text-embedding-3-small:{DIMENSION}", "--store", "pinecone:docs"),
            *("--batch-size", 20, "--checkpoint-interval", 5),
            *arguments,
        )

    def stored(self, ids: Sequence[str]) -> list[Record]:
        """What the index holds of these documents."""
        before = {name: os.environ.get(name) for name in ("PINECONE_API_KEY", "PINECONE_CONTROLLER_HOST")}
        os.environ |= {name: self.command.environment[name] for name in before}
        try:
            return asyncio.run(_fetched(ids))
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


async def _fetched(ids: Sequence[str]) -> list[Record]:
    store = PineconeStore(PineconeSettings(index="docs"), api_key=os.environ["PINECONE_API_KEY"])
    try:
        await store.open(DIMENSION, create=False)
        return await store.fetch(ids)
    finally:
        await store.aclose()


@pytest.fixture
def mills(prefect_server: None, tmp_path: Path) -> Iterator[Mills]:
    with EmulatorProcess("openai") as openai, EmulatorProcess("pinecone", "--index", f"docs:{DIMENSION}") as pinecone:
        command = Command(
            tmp_path,
            server_url(),
            OPENAI_API_KEY="sk-emulator",
            OPENAI_BASE_URL=openai.base_url,
            PINECONE_API_KEY="pc-emulator",
            PINECONE_CONTROLLER_HOST=pinecone.base_url,
        )
        yield Mills(command, openai, pinecone)


def text_of(number: int) -> str:
    return f"document {number} of many" + (f" with {POISON}" if number % POISON_EVERY == POISON_EVERY // 2 else "")


def write(folder: Path, documents: int) -> list[str]:
    """The source; the documents' ids."""
    ids = [f"d{number:05}" for number in range(documents)]
    lines = (orjson.dumps({"id": id_, "text": text_of(number)}) + b"\n" for number, id_ in enumerate(ids))
    (folder / "docs.jsonl").write_bytes(b"".join(lines))
    return ids


def assert_each_has_its_own_vector(records: Sequence[Record], ids: Sequence[str]) -> None:
    """Every document once, with the vector of its own text."""
    found = {record.id: record for record in records}
    assert sorted(found) == sorted(ids)
    texts = [text_of(int(id_[1:])) for id_ in ids]
    assert [found[id_].text for id_ in ids] == texts
    assert np.allclose([found[id_].vector for id_ in ids], vectors_for(texts, DIMENSION), atol=1e-6)


def test_every_document_lands_once_with_its_own_vector_whatever_goes_wrong(mills: Mills) -> None:
    """Exit status 0: nothing lost, nothing mixed up, no dead letter, and each kind of fault really happened."""
    ids = write(mills.command.folder, DOCUMENTS)
    mills.openai.set_faults(seed=1, only=["/embeddings"], retry_after_seconds=0.1, **EMBEDDING_FAULTS)
    mills.pinecone.set_faults(seed=2, only=["/upsert"], retry_after_seconds=0.1, **UPSERT_FAULTS)
    done = mills.run()
    assert done.status == 0, done.stderr
    assert (done.report["upserted"], done.report["dead_letters"]) == (DOCUMENTS, 0)
    assert done.report["retries"].keys() == {
        *("embed.rate_limited", "embed.unavailable", "upsert.rate_limited", "upsert.unavailable")
    }
    embedding, upserting = mills.openai.state(), mills.pinecone.state()
    assert embedding["injected"].keys() == EMBEDDING_FAULTS.keys()
    assert upserting["injected"].keys() == UPSERT_FAULTS.keys()
    assert upserting["stored"] == {"docs": {"__default__": DOCUMENTS}}
    assert_each_has_its_own_vector(mills.stored(ids), ids)

    again = mills.run()
    assert again.status == 0, again.stderr
    assert (again.report["unchanged"], again.report["embedding_requests"]) == (DOCUMENTS, 0)


def test_poison_documents_are_exactly_the_dead_letters(mills: Mills) -> None:
    """Exit status 1, or 0 where so many are allowed; their neighbours land, and are not paid for again."""
    documents = DOCUMENTS
    ids = write(mills.command.folder, documents)
    poisoned = [id_ for number, id_ in enumerate(ids) if POISON in text_of(number)]
    assert len(poisoned) == documents // POISON_EVERY
    mills.openai.set_faults(poison=[POISON])
    failed = mills.run()
    assert failed.status == 1
    assert f"{len(poisoned)} dead letters, 0 are allowed" in failed.stderr
    assert dead_letters(mills.command.folder) == dict.fromkeys(poisoned, "rejected")
    assert_each_has_its_own_vector(mills.stored(ids), [id_ for id_ in ids if id_ not in set(poisoned)])
    assert mills.openai.state()["paid_again"] == 0

    allowed = mills.run("--max-failed", "0.2%")
    assert allowed.status == 0, allowed.stderr
    assert (allowed.report["unchanged"], allowed.report["dead_letters"]) == (documents - len(poisoned), len(poisoned))
    assert mills.openai.state()["paid_again"] == 0


def dead_letters(folder: Path) -> dict[str, Any]:
    """Ids and reasons on file."""
    (file,) = (folder / "results").rglob("dead_letters.jsonl")
    letters = [orjson.loads(line) for line in file.read_bytes().splitlines()]
    return {letter["id"]: letter["reason"] for letter in letters}


def test_where_nothing_fails_no_limit_of_the_providers_is_broken(mills: Mills) -> None:
    """No request refused, none repeated, every document embedded and sent once."""
    ids = write(mills.command.folder, DOCUMENTS)
    done = mills.run()
    assert done.status == 0, done.stderr
    embedding, upserting = mills.openai.state(), mills.pinecone.state()
    assert (embedding["refused"], upserting["refused"]) == ({}, {})
    assert (embedding["texts"], embedding["paid_again"], embedding["tiny_requests"]) == (DOCUMENTS, 0, 1)
    assert (upserting["upserted"], upserting["upserted_again"]) == (DOCUMENTS, 0)
    assert done.report["retries"] == {}
    assert_each_has_its_own_vector(mills.stored(ids), ids)
