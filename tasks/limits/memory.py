"""Memory: reading pauses while too much of it is in use, by this run or by anybody who shares it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from tasks.limits.control_groups import limiting_groups
from tasks.limits.token_bucket import Sleep

POLL_SECONDS = 0.25
MAX_BYTES_IN_FLIGHT = 256 * 2**20
"""Of texts, metadata and vectors: what 200 requests of 100 documents of 1 KB hold at 3,072 dimensions. Encoded for the
store, where at most two segments are at a time, a vector takes about three times as much."""
SHARE_IN_FLIGHT = 8
"""At most one part in so many of the memory that this process may use, whose other parts are libraries and copies."""


class MemoryGuard:
    """Holds the reader back while ``max_bytes`` are in flight, or more than ``max_percent`` of the memory is in use.

    By bytes it stops before memory is short; the share in use also tells what others take. However large a segment is,
    one may always be in flight. Above the mark no segment is read while another is on its way, so that what is in
    flight drains and is let go. When nothing is in flight and it is still above, others hold the memory, or what
    was freed does not go back: waiting would never end. Then ``on_alone`` is told so, once, and reading goes on
    one segment at a time while it is above.

    ``in_use`` tells the share of memory in use, 0 to 100 and above.
    """

    def __init__(
        self,
        max_percent: float,
        *,
        max_bytes: int | None = None,
        on_alone: Callable[[str], object] = lambda _: None,
        in_use: Callable[[], float] | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.max_percent = max_percent
        self.max_bytes = bytes_in_flight_allowed() if max_bytes is None else max_bytes
        self.in_flight = 0
        self.bytes_in_flight = 0
        self._in_use = in_use or percent_in_use
        self._on_alone = on_alone
        self._sleep = sleep
        self._has_told = False
        self._fewer = asyncio.Event()

    def took(self, size_bytes: int = 0) -> None:
        """A segment was read, which is going to hold so much."""
        self.in_flight += 1
        self.bytes_in_flight += size_bytes

    def let_go(self, size_bytes: int = 0) -> None:
        """A segment's payload is gone."""
        self.in_flight -= 1
        self.bytes_in_flight -= size_bytes
        self._fewer.set()

    async def wait(self, *, unless: Callable[[], bool] = lambda: False) -> None:
        """Return when a segment may be read, or as soon as ``unless`` says that none will be."""
        while self.in_flight and self.bytes_in_flight >= self.max_bytes and not unless():
            self._fewer.clear()
            with suppress(TimeoutError):  # a halt need not let anything go
                await asyncio.wait_for(self._fewer.wait(), POLL_SECONDS)
        while (percent := self._in_use()) > self.max_percent and not unless():
            if not self.in_flight:
                self._tell(percent)
                return
            await self._sleep(POLL_SECONDS)

    def _tell(self, percent: float) -> None:
        if not self._has_told:
            self._has_told = True
            self._on_alone(
                f"{percent:.0f}% of the memory is in use, more than {self.max_percent:g}%, with nothing of this run in "
                "flight: it goes on one segment at a time"
            )


def bytes_in_flight_allowed(root: Path = Path("/")) -> int:
    """`MAX_BYTES_IN_FLIGHT`, or less where this process may use little memory."""
    limits = [group.limit_bytes for group in limiting_groups(root)]
    usable: int = min([psutil.virtual_memory().total, *limits])
    return min(MAX_BYTES_IN_FLIGHT, usable // SHARE_IN_FLIGHT)


def percent_in_use(root: Path = Path("/")) -> float:
    """The highest of: this process and its children of what they may use, the machine, the groups that limit it."""
    machine = psutil.virtual_memory()
    groups = [group for group in limiting_groups(root) if group.limit_bytes <= machine.total]
    own = used_bytes() / min([machine.total, *(group.limit_bytes for group in groups)])
    shares = [own, 1 - machine.available / machine.total]
    shares += [group.used_bytes() / group.limit_bytes for group in groups]
    return float(100 * max(shares))


def used_bytes() -> int:
    """Resident bytes of this process and all its children."""
    process = psutil.Process()
    return sum(_resident_bytes(each) for each in [process, *process.children(recursive=True)])


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it ended meanwhile
        return 0
