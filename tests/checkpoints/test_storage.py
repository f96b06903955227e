"""Storage: atomic, private, and nothing that is not ours is believed."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect._internal.result_records import ResultRecord, ResultRecordMetadata
from prefect.filesystems import LocalFileSystem, RemoteFileSystem, WritableFileSystem
from prefect.results import ResultStore
from prefect.serializers import JSONSerializer, PickleSerializer, Serializer
from pydantic import PrivateAttr

from tasks.checkpoints.blobs import BlockBlobs, FilesystemBlobs, FolderBlobs, blobs_behind
from tasks.checkpoints.serializer import CheckpointSerializer
from tasks.checkpoints.storage import SERIALIZER, CheckpointStorage, decode_result, result_store
from tasks.errors import StorageError
from tasks.records import DeadLetter, EmbedRecord, LedgerHead, Reason, Receipt

LETTER = DeadLetter("a", "s.jsonl", 3, Reason.REJECTED, 'na\u00efve "quoted"')
RECORDS: list[Receipt | EmbedRecord | LedgerHead] = [
    Receipt(7, bytes(range(32)), [LETTER], 2, 100, keeps_vectors=True),
    EmbedRecord("job", 0, 7, 3, 20, [LETTER], 3, 400),
    LedgerHead(3, 1_000, "ab" * 16, 40, 20, [3, 9]),
]


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def planted(value: Any, serializer: Serializer[Any], **metadata: Any) -> bytes:
    """A result file as Prefect writes one."""
    known = ResultRecordMetadata(serializer=serializer, storage_key="millrace/x", **metadata)
    return ResultRecord(metadata=known, result=value).serialize()


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def storage(tmp_path: Path, warnings: list[str]) -> CheckpointStorage:
    return CheckpointStorage.over(FolderBlobs(tmp_path), warnings.append)


async def is_missed(storage: CheckpointStorage, key: str) -> bool:
    """By us, and by Prefect however it asks."""
    store = result_store(storage)
    missed = await storage.record(key) is None and not await store.aexists(key)
    with pytest.raises(FileNotFoundError):
        await store.aread(key)
    return missed


async def test_a_planted_pickle_is_a_miss_and_never_runs(
    storage: CheckpointStorage, tmp_path: Path, warnings: list[str]
) -> None:
    """Prefect's own store would run it: the file names its serializer."""
    marker = tmp_path / "ran"
    (tmp_path / "millrace").mkdir()
    for content in (
        planted(Trap(marker), PickleSerializer(picklelib="pickle")),
        planted({"x": 1}, JSONSerializer()),
        planted({"x": 1}, JSONSerializer()).replace(b'"type":"json"', b'"type":"millrace-v1"'),
    ):
        (tmp_path / "millrace" / "x").write_bytes(content)
        assert await is_missed(storage, "millrace/x")
    assert not marker.exists()
    assert len(warnings) == 9
    assert all("millrace/x" in warning for warning in warnings)


async def test_the_trap_is_real(tmp_path: Path) -> None:
    """Without our storage the planted file does run."""
    marker = tmp_path / "ran"
    (tmp_path / "x").write_bytes(planted(Trap(marker), PickleSerializer(picklelib="pickle")))
    store = ResultStore(result_storage=LocalFileSystem(basepath=str(tmp_path)), serializer=JSONSerializer())
    await store.aexists("x")
    assert marker.exists()


@pytest.mark.parametrize("key", ["serializer", "metadata", "type"])
async def test_a_name_given_twice_does_not_smuggle_a_serializer(
    storage: CheckpointStorage, tmp_path: Path, key: str
) -> None:
    """Whichever of the two Prefect would read, and whichever we do."""
    marker, ours = tmp_path / "ran", planted(RECORDS[0], SERIALIZER).decode()
    trap = json.loads(planted(Trap(marker), PickleSerializer(picklelib="pickle")))
    foreign = {"serializer": {"type": "pickle"}, "metadata": trap["metadata"], "type": "pickle"}[key]
    member = f'"{key}":{json.dumps(foreign)}'
    content = json.loads(ours)
    content["result"] = trap["result"]
    text = json.dumps(content, separators=(",", ":"))
    own = json.loads(ours)["metadata"]
    value = {"serializer": own["serializer"], "metadata": own, "type": "millrace-v1"}[key]
    own_member = f'"{key}":{json.dumps(value, separators=(",", ":"))}'
    assert text.count(own_member) == 1
    for doubled in (f"{member},{own_member}", f"{own_member},{member}"):
        (tmp_path / "x").write_bytes(text.replace(own_member, doubled).encode())
        assert await is_missed(storage, "x")
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"garbage",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b'{"metadata":{},"result":""}',
        b'{"x":' + b"[" * 100_000,
    ],
    ids=["empty", "cut", "garbage", "binary", "null", "array", "object", "no serializer", "deep"],
)
async def test_garbage_is_a_miss_with_a_warning(
    storage: CheckpointStorage, tmp_path: Path, warnings: list[str], content: bytes
) -> None:
    """It costs the work again and never the run."""
    (tmp_path / "x").write_bytes(content)
    assert await storage.record("x") is None
    [warning] = warnings
    assert warning.startswith("checkpoint x is ignored: ")
    assert await is_missed(storage, "x")


async def test_every_cut_of_a_record_is_a_miss(storage: CheckpointStorage, tmp_path: Path) -> None:
    """Also one that is still JSON."""
    key = "millrace/x"
    await result_store(storage).awrite(RECORDS[0], key=key)
    whole = (tmp_path / key).read_bytes()
    for length in range(len(whole)):
        (tmp_path / key).write_bytes(whole[:length])
        assert await storage.record(key) is None
    result = json.loads(whole)
    result["result"] = result["result"].replace("100", "101")
    (tmp_path / key).write_text(json.dumps(result))
    assert await storage.record(key) is None


async def test_a_key_that_is_not_there_is_a_miss_without_a_word(
    storage: CheckpointStorage, warnings: list[str]
) -> None:
    """Also below a file, where a folder would have to be."""
    await storage.blobs.write("a", b"x", durable=False)
    assert await is_missed(storage, "a/b")
    assert await is_missed(storage, "b/c/d")
    assert warnings == []


async def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    """And nothing half-written beside it."""
    blobs = FolderBlobs(tmp_path)
    await blobs.write("a/b", b"old", durable=True)
    with pytest.raises(TypeError):
        await blobs.write("a/b", "no bytes", durable=True)  # type: ignore[arg-type]
    (tmp_path / "a" / "folder").mkdir()
    with pytest.raises(StorageError, match="a/folder cannot be written"):
        await blobs.write("a/folder", b"new", durable=False)
    assert await blobs.read("a/b") == b"old"
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["b", "folder"]


async def test_folders_are_their_owners_alone(tmp_path: Path) -> None:
    """Each that is made, whatever the umask."""
    blobs = FolderBlobs(tmp_path / "data" / "checkpoints")
    await blobs.write("millrace/a/b", b"x", durable=False)
    made = [path for path in (tmp_path / "data", *(tmp_path / "data").rglob("*")) if path.is_dir()]
    assert len(made) == 4
    assert {oct(path.stat().st_mode & 0o777) for path in made} == {"0o700"}


async def test_a_delete_twice_is_harmless(tmp_path: Path) -> None:
    """An empty folder goes, one that holds something stays."""
    blobs = FolderBlobs(tmp_path)
    for name in ("a/1", "a/2"):
        await blobs.write(name, b"x", durable=False)
    for _ in range(2):
        await blobs.delete("a/1")
    assert await blobs.read("a/2") == b"x"
    await blobs.delete("a/2")
    await blobs.delete("never/was")
    assert list(tmp_path.iterdir()) == []


def test_a_write_survives_the_delete_of_its_last_neighbour(tmp_path: Path) -> None:
    """The folder may vanish under it at any moment."""
    from tasks.checkpoints.blobs import _remove, _replace  # noqa: PLC0415 - below the asynchronous surface

    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            _replace(tmp_path / "a" / "neighbour", b"x", durable=False)
            _remove(tmp_path / "a" / "neighbour")

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(300):
            _replace(tmp_path / "a" / "own", b"x", durable=False)
            assert (tmp_path / "a" / "own").read_bytes() == b"x"
            _remove(tmp_path / "a" / "own")
    finally:
        done.set()
        other.join()


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
async def test_a_record_comes_back_through_prefect(
    storage: CheckpointStorage, warnings: list[str], record: Any
) -> None:
    """Written, seen, read, and written over."""
    store = result_store(storage)
    for value in (RECORDS[0], record):
        await store.awrite(value, key="millrace/x")
    assert await store.aexists("millrace/x")
    assert (await store.aread("millrace/x")).result == record
    assert await storage.record("millrace/x") == record
    assert warnings == []


@given(st.binary(max_size=64), st.text(max_size=20), st.integers(0, 2**40))
def test_the_serializer_gives_back_what_it_got(entries: bytes, message: str, number: int) -> None:
    """Any bytes, any message, as UTF-8 text."""
    message = message.encode(errors="replace").decode()
    letter = DeadLetter(None, "", number, Reason.EXHAUSTED, message)
    receipt = Receipt(number, entries, [letter], number, number)
    blob = CheckpointSerializer().dumps(receipt)
    assert CheckpointSerializer().loads(blob) == receipt
    assert blob.decode().isprintable() or message


async def test_a_failed_tasks_exception_is_not_kept(storage: CheckpointStorage, tmp_path: Path) -> None:
    """Prefect writes it under a random key."""
    await result_store(storage).awrite(ValueError("secret text"), key="0123456789abcdef")
    assert list(tmp_path.rglob("*")) == []


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_record_is_an_error(place: int, change: int) -> None:
    """Any byte of it."""
    blob = bytearray(SERIALIZER.dumps(RECORDS[0]))
    blob[place % len(blob)] ^= change
    with pytest.raises(ValueError, match="digest"):
        SERIALIZER.loads(bytes(blob))


def test_a_record_of_another_kind_is_an_error() -> None:
    """Even with a digest that fits."""
    with pytest.raises(ValueError, match="serializer"):
        decode_result(planted({"x": 1}, JSONSerializer()))


class SyncBlock(WritableFileSystem):
    """A storage block as the documentation's example writes one: plain methods."""

    _content: dict[str, bytes] = PrivateAttr(default_factory=dict)
    _threads: set[int] = PrivateAttr(default_factory=set)

    def read_path(self, path: str) -> bytes:  # type: ignore[override]
        self._threads.add(threading.get_ident())
        return self._content[path]

    def write_path(self, path: str, content: bytes) -> None:  # type: ignore[override]
        self._threads.add(threading.get_ident())
        self._content[path] = content


class AsyncBlock(WritableFileSystem):
    """A storage block whose methods are coroutines."""

    _content: dict[str, bytes] = PrivateAttr(default_factory=dict)

    async def read_path(self, path: str) -> bytes:
        return self._content[path]

    async def write_path(self, path: str, content: bytes) -> None:
        self._content[path] = content


@pytest.fixture(params=["folder", "memory", "sync", "async"])
def block(request: pytest.FixtureRequest, tmp_path: Path) -> WritableFileSystem:
    """Storage blocks of every make; two of them are Prefect's own."""
    made: dict[str, WritableFileSystem] = {
        "folder": LocalFileSystem(basepath=str(tmp_path)),
        "memory": RemoteFileSystem(basepath=f"memory://{tmp_path.name}"),
        "sync": SyncBlock(),
        "async": AsyncBlock(),
    }
    return made[request.param]


async def test_any_storage_block_keeps_checkpoints(block: WritableFileSystem) -> None:
    """Miss, write, read, write over, delete, delete again."""
    for key, blobs in (("millrace/a/b", BlockBlobs(block)), ("millrace/c/d", blobs_behind(block))):
        assert await blobs.read(key) is None
        await blobs.write(key, b"\x00one", durable=True)
        assert await blobs.read(key) == b"\x00one"
        await blobs.write(key, b"two", durable=False)
        assert await blobs.read(key) == b"two"
        for _ in range(2):
            await blobs.delete(key)
            assert await blobs.read(key) is None


async def test_any_storage_block_carries_prefects_results(block: WritableFileSystem) -> None:
    """The guard stands before it, too."""
    warnings = list[str]()
    storage = CheckpointStorage.over(BlockBlobs(block), warnings.append)
    await result_store(storage).awrite(RECORDS[1], key="millrace/x")
    assert (await result_store(storage).aread("millrace/x")).result == RECORDS[1]
    await storage.blobs.write("millrace/x", planted({"x": 1}, JSONSerializer()), durable=True)
    assert await is_missed(storage, "millrace/x")
    assert len(warnings) == 3


class BrokenBlock(SyncBlock):
    """One that answers, until it does not."""

    _is_down: bool = PrivateAttr(default=False)

    def read_path(self, path: str) -> bytes:  # type: ignore[override]
        if self._is_down:
            raise ConnectionError("https://user:password@host")
        return super().read_path(path)

    def write_path(self, path: str, content: bytes) -> None:  # type: ignore[override]
        if self._is_down:
            raise ConnectionError("https://user:password@host")
        super().write_path(path, content)


async def test_a_failed_read_is_not_taken_for_a_miss() -> None:
    """Or a run would pay for everything again because the network failed for a moment."""
    block = BrokenBlock()
    blobs = BlockBlobs(block)
    assert await blobs.read("a") is None
    await blobs.write("a", b"x", durable=True)
    block._is_down = True
    for act in (blobs.read("a"), blobs.write("a", b"y", durable=True), blobs.delete("a")):
        with pytest.raises(StorageError, match=r"checkpoint a cannot be .*: ConnectionError$"):
            await act
    block._is_down = False
    assert await blobs.read("a") == b"x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_a_folder_that_may_not_be_read_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    """As above."""
    await FolderBlobs(tmp_path).write("a/b", b"x", durable=True)
    (tmp_path / "a" / "b").chmod(0)
    with pytest.raises(StorageError, match="Permission denied"):
        await FolderBlobs(tmp_path).read("a/b")


async def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    """Below the prefix, and where others may be writing only what is old."""
    blobs = FolderBlobs(tmp_path)
    for key in ("mine/a/.x.0.tmp", "mine/a/x", "shared/.x.0.tmp", "other/.x.0.tmp"):
        await blobs.write(key, b"x", durable=False)
    await blobs.sweep("mine/")
    await blobs.sweep("shared/", older_than_seconds=60)
    await blobs.sweep("never/was/")
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["mine/a/x", "other/.x.0.tmp", "shared/.x.0.tmp"]


async def test_a_plain_method_does_not_stall_the_loop() -> None:
    """It runs in a thread."""
    block = SyncBlock()
    await BlockBlobs(block).write("a", b"x", durable=False)
    await BlockBlobs(block).read("a")
    assert threading.get_ident() not in block._threads


def test_a_local_folder_is_written_by_us(tmp_path: Path) -> None:
    """Prefect's own writes are not atomic; any other block is used as it is."""
    local = blobs_behind(LocalFileSystem(basepath=str(tmp_path / "results")))
    assert isinstance(local, FolderBlobs)
    assert local.folder == tmp_path / "results"
    assert isinstance(blobs_behind(RemoteFileSystem(basepath="memory://x")), FilesystemBlobs)
    assert isinstance(blobs_behind(SyncBlock()), BlockBlobs)
