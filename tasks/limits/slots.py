"""Slots: how many at once, with a number that may change meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque


class Slots:
    """A semaphore of one event loop whose capacity may be changed; first come, first served.

    Taking a slot costs no more than with `asyncio.Semaphore`: who is inside keeps the slot when the capacity falls, and
    nobody new gets one until there is room again.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._fewer = asyncio.Event()

    async def acquire(self) -> None:
        """Wait for a slot."""
        if self.taken < self.capacity and not self._waiting:
            self.taken += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # given, and not taken any more
                self.release()
            else:
                self._waiting.remove(turn)
            raise

    def release(self) -> None:
        """Give a slot back."""
        self.taken -= 1
        self._fewer.set()
        self._hand_out()

    def resize(self, capacity: int) -> None:
        """So many from now on; those who wait get what is new, those inside stay."""
        self.capacity = capacity
        self._hand_out()

    async def within(self, capacity: int) -> None:
        """Return when no more than so many slots are taken."""
        while self.taken > capacity:
            self._fewer.clear()
            await self._fewer.wait()

    def _hand_out(self) -> None:
        while self._waiting and self.taken < self.capacity:
            turn = self._waiting.popleft()
            if not turn.done():
                self.taken += 1
                turn.set_result(None)
