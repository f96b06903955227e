"""The one retry layer. The SDKs' own retries are off."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TypeVar

import stamina

from tasks.breaker import Breaker
from tasks.errors import RateLimitedError, RequestRejectedError, StoppedError, TransientError

T = TypeVar("T")
Uniform = Callable[[float, float], float]

ATTEMPTS = 6
TOTAL_SECONDS = 120.0
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
SPREAD_SECONDS = 0.25
"""Those whom the server told the same moment come back spread over this long, never before it."""


def wait_seconds(error: TransientError, failures: int, uniform: Uniform = random.uniform) -> float:
    """How long to wait after so many failures, from 1 on.

    The server's own wait where it named one; else full jitter: anything from 0 to an exponentially growing ceiling.
    """
    if error.retry_after_seconds is not None:
        return error.retry_after_seconds + uniform(0, SPREAD_SECONDS)
    return uniform(0, min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** (failures - 1)))


def kind_of(error: TransientError) -> str:
    """The name under which a retry is counted."""
    return "rate_limited" if isinstance(error, RateLimitedError) else "unavailable"


class Retries:
    """Calls again what failed with a TransientError, at most ``attempts`` times in all.

    ``total_seconds`` bounds the waits between the attempts, summed: an attempt is bounded by its own time-out, and its
    queueing at the gate is no failure. A wait that would go beyond is not begun. ``waiting`` is entered around each
    wait (`Gate.until_closed` ends it when the run is told to stop). ``breaker`` sees how each call ends, and ends those
    that are still trying when it opens.
    ``counts`` has the retries that were made: ``embed.rate_limited``, ``upsert.unavailable``.
    """

    def __init__(
        self,
        *,
        attempts: int = ATTEMPTS,
        total_seconds: float = TOTAL_SECONDS,
        waiting: Callable[[], AbstractAsyncContextManager[object]] = nullcontext,
        breaker: Breaker | None = None,
        uniform: Uniform = random.uniform,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._breaker = breaker or Breaker("the provider")
        self._attempts = attempts
        self._total_seconds = total_seconds
        self._waiting = waiting
        self._uniform = uniform
        _quiet_stamina()

    async def call(self, stage: str, act: Callable[[], Awaitable[T]]) -> T:
        """What ``act()`` returns, the first time that it does.

        Raises:
            TransientError: the last one, when the attempts or the seconds are spent.
            ProviderDownError: this provider's requests were given up on too often in a row, or it asks for a wait above
                ``total_seconds``.
            Exception: any other that ``act`` raises, at once.
        """
        self._breaker.check()
        try:
            answer = await self._attempts_of(stage, act)
        except TransientError as error:
            wait = error.retry_after_seconds or 0.0
            if wait > self._total_seconds:
                self._breaker.sent_away(error, wait)
            self._breaker.gave_up(error)
            self._breaker.check()
            raise
        except RequestRejectedError:
            self._breaker.answered()
            raise
        except StoppedError:
            self._breaker.check()  # where it closed the gate, its reason is what a person must read
            raise
        self._breaker.answered()
        return answer

    async def _attempts_of(self, stage: str, act: Callable[[], Awaitable[T]]) -> T:
        patience = _Patience(self._total_seconds, self._uniform)
        context = stamina.retry_context(on=patience.wait_after, attempts=self._attempts, timeout=None)
        attempts = aiter(context)
        while True:
            async with self._waiting():
                attempt = await anext(attempts)  # waits; raises the last error when there is no further attempt
            if patience.last_error is not None:
                self._breaker.check()
                self.counts[f"{stage}.{kind_of(patience.last_error)}"] += 1
            with attempt:
                return await act()


class _Patience:
    """What is left of the seconds of one call; stamina asks it after each failure."""

    def __init__(self, seconds: float, uniform: Uniform) -> None:
        self.last_error: TransientError | None = None
        self._seconds_left = seconds
        self._failures = 0
        self._uniform = uniform

    def wait_after(self, error: Exception) -> bool | float:
        """Seconds to wait, or False where the error is not to be retried."""
        if not isinstance(error, TransientError):
            return False
        self._failures += 1
        self.last_error = error
        wait = wait_seconds(error, self._failures, self._uniform)
        if wait > self._seconds_left:
            return False
        self._seconds_left -= wait
        return wait


def _quiet_stamina() -> None:
    """No log line per retry, the report counts them. A level that somebody set stays, and so do their hooks."""
    logger = logging.getLogger("stamina")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.ERROR)
