"""Laws 2 and 7 over courses that nobody thought of: edits, orders, settings, failures and kills as they come."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from prefect.settings import temporary_settings

from tasks.checkpoints import blobs
from tasks.checkpoints.blobs import FolderBlobs
from tasks.checkpoints.job import JobCheckpoints
from tasks.checkpoints.storage import CheckpointStorage
from tasks.checkpoints.vectors import decode_part
from tasks.fingerprints import Fingerprints
from tasks.ledger import Ledger
from tasks.records import Document
from tests.checkpoints.blobs import KilledError, UnchangedBlobs
from tests.fakes import vector_of
from tests.test_pipeline import Mill, refuse_from, reject

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.slow,
    pytest.mark.usefixtures("prefect_server"),
]

MOST_SHARDS = 3


@dataclass(frozen=True)
class Version:
    """One document of a source; three ids in eight share their texts with another."""

    id: int
    text: int
    metadata: int

    def document(self) -> Document:
        return Document(f"d{self.id}", f"text {self.id % 5}.{self.text}", {"n": self.metadata})


@dataclass(frozen=True)
class Step:
    """A run: what becomes of the source before it, how it is set, and what befalls it after how many times."""

    change: list[Version] | str
    batch_size: int
    interval: int
    concurrency: int
    shards: int
    mishap: str
    after: int


VERSIONS = st.lists(
    st.builds(Version, st.integers(0, 7), st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=14
)
STEPS = st.builds(
    Step,
    change=VERSIONS | st.sampled_from(["as it is", "reversed", "doubled", "halved"]),
    batch_size=st.integers(1, 4),
    interval=st.integers(1, 3),
    concurrency=st.integers(1, 4),
    shards=st.sampled_from([1, 1, 1, 2, MOST_SHARDS]),
    mishap=st.sampled_from(
        ["none", "kill", "kill", "store fails", "answer lost", "embedder fails", "poison", "refused"]
    ),
    after=st.integers(0, 12),
)


def changed(source: list[Version], change: list[Version] | str) -> list[Version]:
    if isinstance(change, list):
        return change
    return {
        "as it is": source,
        "reversed": source[::-1],
        "doubled": source * 2,
        "halved": source[: len(source) // 2] or source,
    }[change]


@dataclass
class Life:
    """Of the process that runs: ends at its n-th change of what is on disk, and does nothing more from then on."""

    changes: int | None = None

    def spend(self) -> None:
        if self.changes is not None:
            self.check()
            self.changes -= 1

    def check(self, _: object = None) -> None:
        if self.changes == 0:
            raise KilledError

    @contextmanager
    def limited(self, changes: int) -> Iterator[None]:
        """Every write and every delete of a checkpoint spends one."""
        replace, remove = blobs._replace, blobs._remove

        def replacing(path: Path, content: bytes, *, durable: bool) -> None:
            self.spend()
            replace(path, content, durable=durable)

        def removing(path: Path) -> None:
            self.spend()
            remove(path)

        self.changes = changes
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blobs, "_replace", replacing)
            patch.setattr(blobs, "_remove", removing)
            yield
        self.changes = None


@dataclass
class Course:
    """One job, run after run; its source is ``versions``."""

    mill: Mill
    results: Path
    versions: list[Version] = field(default_factory=list)

    @property
    def last(self) -> dict[str, Document]:
        """The last version of every id in the source."""
        return {document.id: document for document in (version.document() for version in self.versions)}

    async def run(self, step: Step) -> None:
        self.versions = changed(self.versions, step.change)
        documents = [version.document() for version in self.versions]
        self.mill.write(*(json.dumps({"id": d.id, "text": d.text, "metadata": d.metadata}) for d in documents))
        may_be_paid = await self.unpaid()
        state = await self.befall(step)
        assert set(self.mill.embedder.answered) <= may_be_paid
        if state.is_completed():
            self.check_stored()

    async def befall(self, step: Step) -> Any:
        """Run the job, with its mishap."""
        store, life = self.mill.store, Life()
        store.before, store.after, store.refused = life.check, life.check, {}
        before: Callable[[Sequence[str]], None] = life.check
        if step.mishap == "store fails":
            store.before = refuse_from(step.after)
        elif step.mishap == "answer lost":
            store.after = refuse_from(step.after)
        elif step.mishap == "embedder fails":
            before = refuse_from(step.after)
        elif step.mishap == "poison":
            before = reject(f"text {step.after % 5}.0")
        elif step.mishap == "refused":
            store.refused = {f"d{step.after % 8}": "no"}
        with life.limited(3 * step.after + 1 if step.mishap == "kill" else 1_000_000):
            return await self.mill.run(
                batch_size=step.batch_size,
                checkpoint_interval=step.interval,
                concurrency=step.concurrency,
                shards=step.shards,
                before=before,
            )

    async def unpaid(self) -> set[str]:
        """Texts that a run may ask for: of documents that are not done, and whose vectors are not on disk."""
        storage = CheckpointStorage.over(UnchangedBlobs(FolderBlobs(self.results)), pytest.fail)
        shards = [JobCheckpoints(storage, "job", number, pytest.fail) for number in range(MOST_SHARDS)]
        ledger = Ledger.of([(await shard.load()).entries for shard in shards])
        documents = list(self.last.values())
        embedder, store = self.mill.embedder.identity, self.mill.store.identity
        fingerprints = Fingerprints(embedder=embedder, store=store, keep_text=True)
        keys = fingerprints.vector_keys(documents)
        is_done = ledger.holds(fingerprints.entries(documents, keys)).tolist()
        on_disk = self.keys_on_disk()
        return {
            document.text
            for document, key, done in zip(documents, keys, is_done, strict=True)
            if not done and key not in on_disk
        }

    def keys_on_disk(self) -> set[bytes]:
        parts = (self.results / "millrace" / "vectors-v1").glob("*/*/*/*")
        return {key for path in parts if not path.name.startswith(".") for key in decode_part(path.read_bytes())[0]}

    def check_stored(self) -> None:
        """The store has the last version of every id in the source, each with its own vector."""
        for id_, document in self.last.items():
            record = self.mill.store.records[id_]
            assert (record.text, record.metadata) == (document.text, document.metadata)
            assert record.vector.tolist() == vector_of(document.text).tolist()

    async def end(self) -> None:
        """A run that nothing befalls lands all, and the one after it asks for nothing."""
        whole = Step("as it is", 3, 2, 4, 1, "none", 0)
        for _ in range(2):
            await self.run(whole)
            requests = len(self.mill.store.requests)
            self.check_stored()
        await self.run(whole)
        assert self.mill.embedder.requests == []
        assert len(self.mill.store.requests) == requests
        assert not self.keys_on_disk()


@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(VERSIONS, st.lists(STEPS, min_size=2, max_size=5))
def test_the_store_has_the_last_version_whatever_came_between(first: list[Version], steps: list[Step]) -> None:
    """And no text is paid for whose vector was on disk, or whose document was done."""

    async def course(folder: Path) -> None:
        with temporary_settings(updates={"results.local_storage_path": folder / "results"}):
            course = Course(Mill(folder), folder / "results", first)
            for step in steps:
                await course.run(step)
            await course.end()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(course(Path(folder)))
