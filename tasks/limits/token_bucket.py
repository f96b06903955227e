"""The token bucket: how much may be sent in a minute, and when."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from tasks.errors import RequestTooLargeError
from tasks.limits.turns import Turns

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[object]]

WINDOW_SECONDS = 60.25
"""A minute, and a quarter of a second for requests that reach the server slower than later ones do."""
BURST_SHARE = 0.015
"""Share of the limit that an idle bucket gives at once: ten minutes of demand use (10 - 9 x 0.015) / 10 = 98.65 %."""
STEP_SECONDS = 0.125
"""A bucket at rest keeps sums of so long, each at its end: a minute is 480 of them, however much passes."""


class BucketState(msgspec.Struct, frozen=True):
    """A bucket at rest: its level at a moment, and what passed in the minute before (moments and costs)."""

    level: float
    updated_at: float
    log: Sequence[tuple[float, int]]

    def not_after(self, moment: float) -> BucketState:
        """With everything that lies behind ``moment`` put there."""
        log = [(min(at, moment), cost) for at, cost in self.log]
        return BucketState(self.level, min(self.updated_at, moment), log)


class TokenBucket:
    """Admits at most ``per_minute`` over any rolling 60 seconds, each cost counted whole at its moment of admission.

    Two rules; the later of their times holds. The *bucket* sets the pace: it holds a burst of 1.5 % of the limit and
    refills with the other 98.5 % over a minute, so that costs up to the burst keep the law by this alone. A cost above
    the burst passes when the bucket is full and leaves a debt, which those behind wait for; with debt a bucket cannot
    promise the law, so a *log* of what passed in the last minute keeps it, for any cost up to ``per_minute``.

    `acquire` admits one caller at a time, first come, first served, at the moment it really goes, so that neither a
    late wake-up nor a pause squeezes two minutes into one. `reserve` is the same arithmetic, booked ahead.
    The lock is held for arithmetic only, never while anybody sleeps.
    """

    def __init__(
        self, per_minute: int, unit: str = "requests", *, clock: Clock = time.monotonic, sleep: Sleep = asyncio.sleep
    ) -> None:
        if per_minute < 1:
            raise ValueError(f"a limit of {per_minute} {unit} a minute lets nothing pass")
        self.per_minute = per_minute
        self.unit = unit
        self._burst = BURST_SHARE * per_minute
        self._refill_per_second = (per_minute - self._burst) / 60
        self._level = self._burst
        self._updated_at = float("-inf")  # the moment of the newest admission
        self._paused_until = float("-inf")
        self._log: deque[tuple[float, int]] = deque()  # moment and cost of what is admitted, oldest first
        self._logged = 0
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._turns = Turns()

    async def acquire(self, n: int = 1) -> None:
        """Wait for the turn and the time of a cost of ``n``. Raises as `earliest`."""
        async with self._turns:
            while (wait := self._try(n, self._clock())) > 0:
                await self._sleep(wait)

    def reserve(self, n: int, now: float) -> float:
        """Book a cost of ``n`` behind all that is booked; seconds from ``now`` to wait. Raises as `earliest`."""
        with self._lock:
            at = self.earliest(n, now)
            self.take(n, at)
            return at - now

    def pause_until(self, moment: float) -> None:
        """Admit nothing before ``moment`` of the clock (a server's Retry-After). What was booked ahead stays."""
        with self._lock:
            self._paused_until = max(self._paused_until, moment)

    def earliest(self, n: int, now: float) -> float:
        """The first moment from ``now`` on at which a cost of ``n`` may pass. Changes nothing, takes no lock.

        Raises:
            RequestTooLargeError: ``n`` is above the limit itself, so it can never pass.
        """
        if n > self.per_minute:
            raise RequestTooLargeError(f"{n:,} {self.unit} in one request never fit {self.per_minute:,} a minute")
        missing = min(n, self._burst) - self._level
        full_enough_at = self._updated_at + max(0.0, missing) / self._refill_per_second
        at = max(now, full_enough_at, self._paused_until)
        over = self._logged + n - self.per_minute
        for moment, cost in self._log:
            if over <= 0:
                break
            at, over = max(at, moment + WINDOW_SECONDS), over - cost
        return at

    def take(self, n: int, at: float) -> None:
        """Admit a cost of ``n`` at a moment not before its `earliest`; like it, without the lock."""
        refilled = (at - self._updated_at) * self._refill_per_second
        self._level = min(self._burst, self._level + refilled) - n
        self._updated_at = at
        self._log.append((at, n))
        self._logged += n
        while self._log[0][0] + WINDOW_SECONDS <= at:
            self._logged -= self._log.popleft()[1]

    def correct(self, at: float, more: int) -> None:
        """Let what was taken at ``at`` cost ``more`` than it was thought to, or less where negative; takes no lock."""
        for place in range(len(self._log) - 1, -1, -1):
            moment, cost = self._log[place]
            if moment < at:
                break
            if place == 0 or self._log[place - 1][0] < at:
                self._log[place] = (moment, cost + more)
                self._logged += more
                self._level = min(self._burst, self._level - more)

    def state(self) -> BucketState | None:
        """What `resume` needs, None where nothing ever passed. Costs are summed up as `STEP_SECONDS` says."""
        if not self._log:
            return None
        sums: dict[float, int] = {}
        for moment, cost in self._log:
            end = math.ceil(moment / STEP_SECONDS) * STEP_SECONDS
            sums[end] = sums.get(end, 0) + cost
        return BucketState(self._level, self._updated_at, list(sums.items()))

    def resume(self, state: BucketState) -> None:
        """Go on from there."""
        self._level, self._updated_at, self._log = state.level, state.updated_at, deque(state.log)
        self._logged = sum(cost for _, cost in state.log)

    def fill(self, now: float) -> None:
        """Go on as if the whole limit had passed just now, where it is not known what did."""
        self.resume(BucketState(0.0, now, [(now, self.per_minute)]))

    def _try(self, n: int, now: float) -> float:
        with self._lock:
            wait = self.earliest(n, now) - now
            if wait <= 0:
                self.take(n, now)
            return wait
