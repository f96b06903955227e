"""The budget of a minute: requests, model tokens and inputs, taken together."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Protocol

from tasks.limits.pace import Pace
from tasks.limits.record import NoRecord, Record, Turn
from tasks.limits.token_bucket import Clock, Sleep, TokenBucket
from tasks.limits.turns import Turns
from tasks.records import Quota


class Admission(Protocol):
    """What a gate asks when a request may go, and tells how it went."""

    async def acquire(self, model_tokens: int = 0, inputs: int = 0) -> float:
        """Wait until one request of so many model tokens and texts may go; the moment at which it does.

        Raises:
            RequestTooLargeError: more of a unit than a whole minute has.
        """
        ...

    def answered(self, admitted_at: float, *, model_tokens: int, quota: Quota | None) -> None:
        """What was admitted then was accepted, and this is what the provider said of its limits."""
        ...

    def refused(self, admitted_at: float, retry_after_seconds: float | None) -> None:
        """The provider answered 429 to what was admitted then: nothing goes for a while, and slower after it."""
        ...

    def correct(self, admitted_at: float, more: int) -> None:
        """What was admitted then cost so many more model tokens than it was thought to, or fewer."""
        ...

    def pause(self, seconds: float) -> None:
        """Let nothing go for so long; the longest of several pauses holds."""
        ...


class Budget:
    """At most so many requests, model tokens and inputs (texts) over any rolling minute; None is no limit.

    All are taken in one step, at the latest of their times, so that none is spent while waiting for another.
    Within them the `Pace` keeps below what the provider itself was seen to allow.
    First come, first served. May be shared by threads that each run an event loop, and by processes through a
    ``record``; then ``clock`` must be one that they have in common.
    """

    def __init__(
        self,
        requests_per_minute: int | None = None,
        model_tokens_per_minute: int | None = None,
        inputs_per_minute: int | None = None,
        *,
        record: Record | None = None,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        limits = {
            "requests": requests_per_minute,
            "model tokens": model_tokens_per_minute,
            "inputs": inputs_per_minute,
        }
        self._buckets = {unit: TokenBucket(limit, unit) for unit, limit in limits.items() if limit}
        self._record = record if record is not None and self._buckets else NoRecord()
        self._corrections: list[tuple[float, int]] = []
        self._pace = Pace()
        self._paused_until = float("-inf")
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._turns = Turns()

    async def acquire(self, model_tokens: int = 0, inputs: int = 0) -> float:
        """Wait until one request of so many model tokens and texts may go; the moment at which it does.

        Raises:
            RequestTooLargeError: more of a unit than a whole minute has.
        """
        async with self._turns:
            while True:
                while (wait := self._own_earliest(now := self._clock()) - now) > 0:
                    await self._sleep(wait)
                async with self._record.turn() as turn:
                    if (admitted_at := await self._pass(turn, model_tokens, inputs)) is not None:
                        return admitted_at

    async def _pass(self, turn: Turn, model_tokens: int, inputs: int) -> float | None:
        """Wait for the buckets, which others who share them may not touch meanwhile; None where a pause begins."""
        self._read(turn)
        while self._own_earliest(now := self._clock()) <= now:
            if (wait := self._try(model_tokens, inputs, now)) <= 0:
                turn.write({unit: state for unit, bucket in self._buckets.items() if (state := bucket.state())})
                return now
            await self._sleep(wait)
        return None

    def reserve(self, model_tokens: int, now: float, *, inputs: int = 0) -> float:
        """Book one request behind all that is booked; seconds from ``now`` to wait. Raises what `acquire` raises."""
        with self._lock:
            at = self._earliest(model_tokens, inputs, now)
            self._take(model_tokens, inputs, at)
            return at - now

    def answered(self, admitted_at: float, *, model_tokens: int, quota: Quota | None) -> None:
        """What was admitted then was accepted, and this is what the provider said of its limits."""
        with self._lock:
            self._pace.answered(admitted_at, self._clock(), model_tokens, quota)

    def refused(self, admitted_at: float, retry_after_seconds: float | None) -> None:
        """The provider answered 429 to what was admitted then: nothing goes for a while, and slower after it."""
        with self._lock:
            now = self._clock()
            wait = self._pace.refused(admitted_at, now, retry_after_seconds)
            self._paused_until = max(self._paused_until, now + wait)

    def correct(self, admitted_at: float, more: int) -> None:
        """What was admitted then cost so many more model tokens than it was thought to, or fewer."""
        with self._lock:
            self._corrections.append((admitted_at, more))

    def pause(self, seconds: float) -> None:
        """Let nothing go for so long (a server's Retry-After); the longest of several pauses holds."""
        with self._lock:
            self._paused_until = max(self._paused_until, self._clock() + seconds)

    def _read(self, turn: Turn) -> None:
        with self._lock:
            now = self._clock()
            states = turn.read(now)
            for unit, bucket in self._buckets.items():
                if states is None:
                    bucket.fill(now)
                elif unit in states:
                    bucket.resume(states[unit])

    def _try(self, model_tokens: int, inputs: int, now: float) -> float:
        with self._lock:
            self._correct()
            wait = self._earliest(model_tokens, inputs, now) - now
            if wait <= 0:
                self._take(model_tokens, inputs, now)
            return wait

    def _correct(self) -> None:
        corrections, self._corrections = self._corrections, []
        if (bucket := self._buckets.get("model tokens")) is not None:
            for at, more in corrections:
                bucket.correct(at, more)

    def _own_earliest(self, now: float) -> float:
        return max(now, self._paused_until, self._pace.earliest(now))

    def _earliest(self, model_tokens: int, inputs: int, now: float) -> float:
        buckets = [bucket.earliest(n, now) for bucket, n in self._costs(model_tokens, inputs)]
        return max([self._own_earliest(now), *buckets])

    def _take(self, model_tokens: int, inputs: int, at: float) -> None:
        self._pace.take(at)
        for bucket, n in self._costs(model_tokens, inputs):
            bucket.take(n, at)

    def _costs(self, model_tokens: int, inputs: int) -> list[tuple[TokenBucket, int]]:
        each = {"requests": 1, "model tokens": model_tokens, "inputs": inputs}
        return [(bucket, each[unit]) for unit, bucket in self._buckets.items() if each[unit]]
