"""The record of a budget that several processes share: what passed in the last minute, under a file's lock."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import msgspec

from tasks.limits.token_bucket import STEP_SECONDS, BucketState, Clock, Sleep

POLL_SECONDS = 0.005
SERVE_SECONDS = 0.05
"""So long may a process let its own requests through one after another while another one waits."""
States = dict[str, BucketState]


class Turn(Protocol):
    """The record in the hands of one."""

    def read(self, now: float) -> States | None:
        """The state of every bucket; None where what was written cannot be read."""
        ...

    def write(self, states: States) -> None:
        """It is there for the others before this returns."""
        ...


class Record(Protocol):
    """What of a budget lies where all who share it find it."""

    def turn(self) -> AbstractAsyncContextManager[Turn]:
        """Be the only one that reads and writes it for the length of the block."""
        ...


class NoRecord:
    """Of a budget that nobody shares."""

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[NoRecord]:
        """See `Record`."""
        yield self

    def read(self, now: float) -> States | None:  # noqa: ARG002 - the port's
        """See `Turn`."""
        return {}

    def write(self, states: States) -> None:
        """See `Turn`."""


class FileRecord:
    """A file that the processes of one machine share; the operating system lets a killed one's lock go at once.

    Times are the machine's monotonic clock. Nobody is starved: who waits says so (by a shared lock on a second file),
    and who served its own for `SERVE_SECONDS` then stays away from the lock for a few polls.
    """

    def __init__(self, path: Path, *, clock: Clock = time.monotonic, sleep: Sleep = asyncio.sleep) -> None:
        self._path = path
        self._clock = clock
        self._sleep = sleep
        self._serving_since = float("-inf")
        self._away_until = float("-inf")

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[_FileTurn]:
        """See `Record`."""
        if (away := self._away_until - self._clock()) > 0:
            await self._sleep(away)
        file = _open(self._path)
        try:
            await self._lock(file)
            yield _FileTurn(file)
            self._be_fair()
        finally:
            os.close(file)

    async def _lock(self, file: int) -> None:
        if _try_lock(file, fcntl.LOCK_EX):
            return
        asking = _open(self._asking)
        try:
            _try_lock(asking, fcntl.LOCK_SH)
            while not _try_lock(file, fcntl.LOCK_EX):
                await self._sleep(POLL_SECONDS)
        finally:
            os.close(asking)
        self._serving_since = self._clock()

    def _be_fair(self) -> None:
        now = self._clock()
        if now - self._serving_since < SERVE_SECONDS:
            return
        asking = _open(self._asking)
        try:
            if not _try_lock(asking, fcntl.LOCK_EX):
                self._away_until = now + 4 * POLL_SECONDS
        finally:
            os.close(asking)
        self._serving_since = now

    @property
    def _asking(self) -> Path:
        return self._path.with_name(f"{self._path.name}.asking")


class _FileTurn:
    def __init__(self, file: int) -> None:
        self._file = file

    def read(self, now: float) -> States | None:
        """See `Turn`. What lies in the future was written before the machine was started anew; it counts from now."""
        content = os.pread(self._file, os.fstat(self._file).st_size, 0)
        if not content:
            return {}
        try:
            states = msgspec.json.decode(content.partition(b"\n")[0], type=States)
        except msgspec.MsgspecError:
            return None
        return {unit: state.not_after(now + STEP_SECONDS) for unit, state in states.items()}

    def write(self, states: States) -> None:
        """See `Turn`. One line in one write; what a longer one left behind it is not read."""
        os.pwrite(self._file, msgspec.json.encode(states) + b"\n", 0)


def _open(path: Path) -> int:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _try_lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
