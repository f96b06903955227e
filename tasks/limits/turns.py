"""First come, first served, over threads and event loops."""

from __future__ import annotations

import asyncio
import threading
from collections import deque


class _Ticket:
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._called = asyncio.Event()

    async def called(self) -> None:
        await self._called.wait()

    def call(self) -> None:
        self._loop.call_soon_threadsafe(self._called.set)


class Turns:
    """A queue before a counter: ``async with turns`` lets one in at a time, in the order of asking.

    Like `asyncio.Lock`, but those who wait may live in different threads, each with an event loop of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[_Ticket] = deque()

    async def __aenter__(self) -> None:
        ticket = _Ticket()
        with self._lock:
            self._queue.append(ticket)
            is_first = self._queue[0] is ticket
        if is_first:
            return
        try:
            await ticket.called()
        except BaseException:
            self._leave(ticket)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._leave(self._queue[0])

    def _leave(self, ticket: _Ticket) -> None:
        with self._lock:
            was_first = self._queue[0] is ticket
            self._queue.remove(ticket)
            if was_first and self._queue:
                self._queue[0].call()
