"""One writer a job. The lock lies where the checkpoints lie, so whoever could write the same job sees it.

In a local folder it is the operating system's file lock, which a killed process lets go at once. Any other storage
knows no locks: there the writer beats, a little record under its own token with a number that grows. Whoever finds a
record watches it for `DEAD_SECONDS`; when the number stands still its writer is dead, and the lock is taken over.
Clocks are never compared. Of two that start in the same moment the later write wins, seen after `SETTLE_SECONDS`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import IO, Protocol
from uuid import uuid4

import msgspec

from tasks.checkpoints.blobs import Blobs, FolderBlobs, make_private
from tasks.errors import JobBusyError, StorageError
from tasks.limits.token_bucket import Sleep

BEAT_SECONDS = 10.0
DEAD_SECONDS = 35.0
"""More than three beats, and well under the minute within which a killed job must start again."""
SETTLE_SECONDS = 2.0
POLL_SECONDS = 1.0
_MISSING_READS = 3  # a storage block cannot tell a failed read from a record that is gone


class Lock(Protocol):
    """Something that one writer at a time can have."""

    async def take(self, owner: str) -> str | None:
        """None when it is ours now, else who has it."""
        ...

    async def let_go(self) -> None:
        """Give it back."""
        ...


@asynccontextmanager
async def one_writer(
    blobs: Blobs, key: str, *, owner: str, wait: bool, on_lost: Callable[[str], object], sleep: Sleep = asyncio.sleep
) -> AsyncIterator[None]:
    """Hold the lock under ``key`` for the length of the block. ``on_lost`` is told when another took it meanwhile.

    Raises:
        JobBusyError: another has it, and ``wait`` is false.
    """
    lock: Lock = FolderLock(blobs, key) if isinstance(blobs, FolderBlobs) else BeatingLock(blobs, key, on_lost, sleep)
    while (holder := await lock.take(owner)) is not None:
        if not wait:
            raise JobBusyError(f"another run writes this job ({holder}); wait for its end, or use --wait")
        await sleep(POLL_SECONDS)
    try:
        yield
    finally:
        await lock.let_go()


class FolderLock:
    """A lock on a file of this machine, or of a network file system that knows them."""

    def __init__(self, blobs: FolderBlobs, key: str) -> None:
        self._path = blobs.folder / key
        self._file: IO[str] | None = None

    async def take(self, owner: str) -> str | None:
        """See `Lock`."""
        return await asyncio.to_thread(self._take, owner)

    async def let_go(self) -> None:
        """See `Lock`. The file stays: one that is removed could be held by two."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take(self, owner: str) -> str | None:
        make_private(self._path.parent)
        file = open(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600), "r+")  # noqa: SIM115, PTH123
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                return file.read().strip() or "just started"
        file.truncate(0)
        file.write(owner)
        file.flush()
        self._file = file
        return None


class _Beat(msgspec.Struct, frozen=True):
    token: str
    owner: str
    number: int


class BeatingLock:
    """A record that grows while its writer lives."""

    def __init__(self, blobs: Blobs, key: str, on_lost: Callable[[str], object], sleep: Sleep) -> None:
        self._blobs = blobs
        self._key = key
        self._on_lost = on_lost
        self._sleep = sleep
        self._token = uuid4().hex
        self._beating: asyncio.Task[None] | None = None

    async def take(self, owner: str) -> str | None:
        """See `Lock`."""
        if (other := await self._read()) is not None and await self._lives(other):
            return other.owner
        await self._write(_Beat(self._token, owner, 0))
        await self._sleep(SETTLE_SECONDS)
        if (now := await self._read()) is None or now.token != self._token:
            return "just started" if now is None else now.owner
        self._beating = asyncio.create_task(self._beat(owner))
        return None

    async def let_go(self) -> None:
        """See `Lock`."""
        if self._beating is not None:
            self._beating.cancel()
            with suppress(asyncio.CancelledError):
                await self._beating
            with suppress(StorageError):  # it is taken for dead when it beats no more
                if (now := await self._read()) is not None and now.token == self._token:
                    await self._blobs.delete(self._key)

    async def _lives(self, seen: _Beat) -> bool:
        missing = 0
        for _ in range(round(DEAD_SECONDS / POLL_SECONDS)):
            await self._sleep(POLL_SECONDS)
            now = await self._read()
            if now not in {None, seen}:
                return True
            missing = missing + 1 if now is None else 0
            if missing == _MISSING_READS:
                return False
        return False

    async def _beat(self, owner: str) -> None:
        number = 0
        while True:
            await self._sleep(BEAT_SECONDS)
            with suppress(StorageError):  # a beat that fails must not end a healthy run; three may before others notice
                now = await self._read()
                if now is not None and now.token != self._token:
                    self._on_lost(now.owner)
                    return
                number += 1
                await self._write(_Beat(self._token, owner, number))

    async def _read(self) -> _Beat | None:
        content = await self._blobs.read(self._key)
        try:
            return None if content is None else msgspec.json.decode(content, type=_Beat)
        except msgspec.MsgspecError:
            return None

    async def _write(self, beat: _Beat) -> None:
        await self._blobs.write(self._key, msgspec.json.encode(beat), durable=False)
