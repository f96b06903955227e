"""The record of a budget that several processes share: what passed in the last minute, under a file's lock."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import msgspec

from tasks.limits.fair_lock import FairLock
from tasks.limits.token_bucket import STEP_SECONDS, BucketState, Clock, Sleep

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
    """A file that the processes of one machine share, one after another in the order of asking (`FairLock`).

    Times are the machine's monotonic clock.
    """

    def __init__(self, path: Path, *, clock: Clock = time.monotonic, sleep: Sleep = asyncio.sleep) -> None:
        self._lock = FairLock(path, clock=clock, sleep=sleep)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[_FileTurn]:
        """See `Record`."""
        async with self._lock.held() as file:
            yield _FileTurn(file)


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
