"""A lock that the processes of one machine share, first come first served."""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from tasks.limits.token_bucket import Clock, Sleep

POLL_SECONDS = 0.005
SERVE_SECONDS = 0.05
"""So long may a process take the lock again and again while another one waits: a line costs a poll for each turn."""


class FairLock:
    """A file's lock, held by this process for the length of a block; the file is what it guards.

    Who finds it taken stands in line: a ticket in a folder beside the file, named by the machine's monotonic clock and
    locked by its owner. The oldest ticket is next. The operating system lets go what a killed process had locked, and
    a ticket that nobody holds is thrown away by whoever sees it, so the dead keep nobody waiting.
    """

    def __init__(self, path: Path, *, clock: Clock = time.monotonic, sleep: Sleep = asyncio.sleep) -> None:
        self._path = path
        self._tickets = path.with_name(f"{path.name}.line")
        self._clock = clock
        self._sleep = sleep
        self._serving_since = float("-inf")

    @asynccontextmanager
    async def held(self) -> AsyncIterator[int]:
        """Wait for it; gives the file's descriptor, open for reading and writing.

        Raises:
            OSError: the folder cannot be written to.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not (self._may_pass_the_line() and _try_lock(file)):
                await self._stand_in_line(file)
                self._serving_since = self._clock()
            yield file
        finally:
            os.close(file)

    def _may_pass_the_line(self) -> bool:
        return self._clock() - self._serving_since < SERVE_SECONDS or self._first_in_line() is None

    async def _stand_in_line(self, file: int) -> None:
        with self._ticket() as mine:
            while not (self._first_in_line() == mine and _try_lock(file)):
                await self._sleep(POLL_SECONDS)

    @contextmanager
    def _ticket(self) -> Iterator[str]:
        self._tickets.mkdir(mode=0o700, exist_ok=True)
        unique = secrets.token_hex(8)
        unlocked = self._tickets / f".{unique}"
        ticket = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        mine = self._tickets / f"{self._clock():020.6f}-{unique}"
        try:
            fcntl.flock(ticket, fcntl.LOCK_EX)
            unlocked.rename(mine)  # nobody sees it before it is locked
            yield mine.name
        finally:
            mine.unlink(missing_ok=True)
            os.close(ticket)

    def _first_in_line(self) -> str | None:
        with suppress(FileNotFoundError):
            for name in sorted(os.listdir(self._tickets)):
                if not name.startswith(".") and self._is_held(name):
                    return name
        return None

    def _is_held(self, name: str) -> bool:
        path = self._tickets / name
        try:
            ticket = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            if _try_lock(ticket):
                path.unlink(missing_ok=True)
                return False
            return True
        finally:
            os.close(ticket)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
