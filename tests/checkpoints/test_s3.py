"""Checkpoints on S3: the same laws, by the storage block that an operator configures, against a server of its own."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3  # type: ignore[import-untyped]
import pytest
from moto.server import ThreadedMotoServer
from prefect.filesystems import RemoteFileSystem
from prefect.settings import temporary_settings

from tasks.checkpoints import keys
from tasks.checkpoints.blobs import FilesystemBlobs
from tasks.checkpoints.lock import DEAD_SECONDS, BeatingLock, one_writer
from tasks.errors import JobBusyError
from tests.command import Command, server_url
from tests.test_pipeline import Mill, counts, numbered, refuse_from

pytestmark = [pytest.mark.prefect, pytest.mark.slow]

KEY, SECRET, BUCKET = "test-key-id", "test-secret-key", "checkpoints"
MINUTE = 60


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server on loopback."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@dataclass
class Bucket:
    """A bucket, and the block through which Prefect keeps results in it."""

    address: str
    block: RemoteFileSystem
    name: str

    def content(self) -> list[str]:
        found = self.client().list_objects_v2(Bucket=BUCKET, Prefix=f"{self.name}/").get("Contents", [])
        return sorted(each["Key"].removeprefix(f"{self.name}/") for each in found)

    def client(self) -> Any:
        return boto3.client(
            "s3", "us-east-1", endpoint_url=self.address, aws_access_key_id=KEY, aws_secret_access_key=SECRET
        )


@pytest.fixture
async def bucket(prefect_server: None, s3: str) -> Bucket:
    """Saved as `docs/checkpoints.md` says, under a folder of its own."""
    name = f"s3-{uuid4().hex[:8]}"
    block = RemoteFileSystem(
        basepath=f"s3://{BUCKET}/{name}",
        settings={
            "key": KEY,
            "secret": SECRET,
            "max_concurrency": 1,
            "client_kwargs": {"endpoint_url": s3, "region_name": "us-east-1"},
        },
    )
    bucket = Bucket(s3, block, name)
    bucket.client().create_bucket(Bucket=BUCKET)
    await block.save(name)
    return bucket


@pytest.fixture
def mill(bucket: Bucket, tmp_path: Path) -> Iterator[Mill]:
    """Its flow runs keep their results in the bucket; nothing of a job lies on the local disk."""
    with temporary_settings(
        updates={
            "results.default_storage_block": f"remote-file-system/{bucket.name}",
            "results.local_storage_path": tmp_path / "results",
        }
    ):
        yield Mill(tmp_path)
    assert not (tmp_path / "results").exists()


async def test_a_job_on_s3_fails_resumes_compacts_and_is_cleaned(mill: Mill, bucket: Bucket, tmp_path: Path) -> None:
    """Nothing is paid twice; a whole run leaves the ledger and the record; `jobs.py` sees the same from elsewhere."""
    mill.write(*numbered(12))
    mill.store.before = refuse_from(1)
    state = await mill.run()
    assert state.is_failed(), state
    embedded = set(mill.embedder.answered)
    assert len(embedded) > len(mill.store.records)
    assert any(key.startswith("millrace/vectors-v1/job/") for key in bucket.content())

    mill.store.before = lambda _: None
    report = await mill.report(await mill.run(batch_size=3))
    assert (report["documents"], report["dead_letters"], report["resumed"]) == (12, 0, True)
    assert not embedded & set(mill.embedder.answered)
    assert {id_: record.text for id_, record in mill.store.records.items()} == dict(numbered(12))
    left = [keys.job_record_key("job"), keys.ledger_head_key("job", 0), keys.ledger_key("job", 0, 1)]
    # A segment that was cut otherwise leaves the small record of the old cut; `clean` takes it.
    assert [key for key in bucket.content() if not key.startswith(keys.EMBEDS)] == sorted(left)

    requests = len(mill.store.requests)
    assert counts(await mill.report(await mill.run())) == (12, 0, 12, 0, 0)
    assert mill.embedder.requests == []
    assert len(mill.store.requests) == requests
    assert mill.warnings == []

    command = Command(tmp_path, server_url(), PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK=f"remote-file-system/{bucket.name}")
    listed = command.run("list", flow="jobs")
    assert "job" in listed.stdout.split(), listed.stderr
    assert "Completed" in listed.stdout
    shown = command.run("show", "job", flow="jobs")
    assert "ledgers        2 files" in shown.stdout, shown.stderr
    assert command.run("clean", "job", flow="jobs").status == 0
    assert bucket.content() == []


class Time:
    """Passes at once, and lets another writer do something meanwhile."""

    def __init__(self, meanwhile: Callable[[float], Awaitable[None]] | None = None) -> None:
        self.seconds = 0.0
        self._meanwhile = meanwhile

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        if self._meanwhile is not None:
            await self._meanwhile(self.seconds)


async def test_a_dead_writers_lock_is_taken_over_within_a_minute(bucket: Bucket) -> None:
    """A living one's is not: who comes later is told who has it."""
    blobs, key = FilesystemBlobs(bucket.block), keys.lock_key("job")

    async def beat(number: float) -> None:
        record = {"token": "x", "owner": "flow run alive", "number": int(number)}
        await blobs.write(key, json.dumps(record).encode(), durable=False)

    await beat(0)
    with pytest.raises(JobBusyError, match="flow run alive"):
        async with one_writer(blobs, key, owner="next", wait=False, on_lost=pytest.fail, sleep=Time(beat).sleep):
            pytest.fail("two writers")

    time = Time()
    lock = BeatingLock(blobs, key, pytest.fail, time.sleep)
    assert await lock.take("next") is None
    assert DEAD_SECONDS <= time.seconds < MINUTE
    lock_of_a_third = BeatingLock(blobs, key, pytest.fail, Time().sleep)
    await lock.let_go()
    assert await blobs.read(key) is None
    assert await lock_of_a_third.take("third") is None
    await lock_of_a_third.let_go()
