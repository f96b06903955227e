"""A lock that the processes of one machine share, first come first served."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tasks.limits.held_files import held_file, held_files, try_lock
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
        self._line = path.with_name(f"{path.name}.line")
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
            if not (self._may_pass_the_line() and try_lock(file)):
                await self._stand_in_line(file)
                self._serving_since = self._clock()
            yield file
        finally:
            os.close(file)

    def _may_pass_the_line(self) -> bool:
        return self._clock() - self._serving_since < SERVE_SECONDS or not held_files(self._line)

    async def _stand_in_line(self, file: int) -> None:
        ticket = f"{self._clock():020.6f}-{secrets.token_hex(8)}"
        with held_file(self._line, ticket):
            while not (held_files(self._line)[:1] == [ticket] and try_lock(file)):
                await self._sleep(POLL_SECONDS)
