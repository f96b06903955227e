"""The gate: the one place that a request passes before it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tasks.errors import RateLimitedError, StoppedError
from tasks.limits.budget import Admission, Budget
from tasks.limits.calibration import Calibration
from tasks.limits.slots import Slots
from tasks.records import Quota


class Passage:
    """One request inside the gate; `answered` tells what came of it, so that the next ones are judged better."""

    def __init__(self, budget: Admission, calibration: Calibration, counted: int) -> None:
        self._budget = budget
        self._calibration = calibration
        self._counted = counted
        self._admitted_at = 0.0
        self._reserved = 0
        self._is_told = False

    async def admit(self, inputs: int) -> None:
        """Wait for the budget."""
        self._reserved = self._calibration.expected(self._counted)
        self._admitted_at = await self._budget.acquire(self._reserved, inputs)

    def answered(self, model_tokens: int = 0, quota: Quota | None = None) -> None:
        """It was not refused for its rate: so many model tokens are billed, and this is what was said of limits.

        Only the first word counts; leaving the gate without any says the same.
        """
        if self._is_told:
            return
        self._is_told = True
        if self._counted and model_tokens:
            self._calibration.learn(self._counted, model_tokens)
            self._budget.correct(self._admitted_at, model_tokens - self._reserved)
        self._budget.answered(self._admitted_at, model_tokens=model_tokens, quota=quota)

    def refused(self, retry_after_seconds: float | None) -> None:
        """The provider answered 429: all wait, and go slower afterwards."""
        self._is_told = True
        self._budget.refused(self._admitted_at, retry_after_seconds)


class Gate:
    """A concurrency slot first, then the budget. Closed, it lets nothing pass any more.

    Every attempt passes it anew: a failed request counts, and nobody holds a slot while backing off. A block that
    raises RateLimitedError holds all others back for the server's own wait.
    ``in_flight`` are the requests inside now, ``most_in_flight`` the most there ever were. It belongs to one event
    loop; its budget may be shared with gates of other threads. ``slots`` may be resized while requests pass.
    """

    def __init__(self, concurrency: int, budget: Admission | None = None) -> None:
        self.in_flight = 0
        self.most_in_flight = 0
        self.is_closed = False
        self.slots = Slots(concurrency)
        self._budget = budget or Budget()
        self._calibration = Calibration()
        self._waiting: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def slot(self, *, model_tokens: int = 0, inputs: int = 0) -> AsyncIterator[Passage]:
        """Wait for a slot and the budget, and hold the slot for the length of the block.

        ``model_tokens`` are counted offline; what is reserved follows what the answers are billed.

        Raises:
            StoppedError: the gate is closed, or was closed during the wait.
            RequestTooLargeError: more model tokens or inputs than the budget has in a whole minute.
        """
        passage = Passage(self._budget, self._calibration, model_tokens)
        async with self.until_closed():
            await self._enter(passage, inputs)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            yield passage
        except RateLimitedError as error:
            passage.refused(error.retry_after_seconds)
            raise
        finally:
            passage.answered()
            self.in_flight -= 1
            self.slots.release()

    @asynccontextmanager
    async def until_closed(self) -> AsyncIterator[None]:
        """A block that only waits (for a slot, or between attempts): closing the gate ends it with StoppedError."""
        if self.is_closed:
            raise StoppedError("the run was told to stop")
        try:
            async with asyncio.timeout(None) as waiting:
                self._waiting.add(waiting)
                try:
                    yield
                finally:
                    self._waiting.discard(waiting)
        except TimeoutError:
            if not waiting.expired():
                raise
            raise StoppedError("the run was told to stop") from None

    def close(self) -> None:
        """Let nothing pass from now on and wake all who wait; those inside go on. Call it on the gate's event loop."""
        self.is_closed = True
        for waiting in self._waiting:
            waiting.reschedule(asyncio.get_running_loop().time())

    def pause(self, seconds: float) -> None:
        """Let nobody in for so long (a server's Retry-After)."""
        self._budget.pause(seconds)

    async def _enter(self, passage: Passage, inputs: int) -> None:
        await self.slots.acquire()
        try:
            await passage.admit(inputs)
        except BaseException:
            self.slots.release()
            raise
