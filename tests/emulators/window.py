"""A provider's own rate limit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class SlidingWindow:
    """At most ``limit`` units in any ``window_seconds``, by the given clock."""

    def __init__(self, limit: float, window_seconds: float, clock: Callable[[], float]) -> None:
        self.limit = limit
        self._window_seconds = window_seconds
        self._clock = clock
        self._spent: deque[tuple[float, float]] = deque()
        self.used = 0.0
        self.most_used = 0.0
        self.first_at: float | None = None
        self.last_at = 0.0

    def wait_seconds(self, units: float) -> float:
        """How long until ``units`` more fit; 0 when they fit now. Spends nothing."""
        now = self._clock()
        while self._spent and self._spent[0][0] <= now - self._window_seconds:
            self.used -= self._spent.popleft()[1]
        free = self.limit - self.used
        for at, spent in self._spent:
            if free >= units:
                break
            free += spent
            if free >= units:
                return at + self._window_seconds - now
        return 0.0 if free >= units else self._window_seconds

    def spend(self, units: float) -> None:
        """Count ``units`` now."""
        now = self._clock()
        self._spent.append((now, units))
        self.used += units
        self.most_used = max(self.most_used, self.used)
        self.first_at, self.last_at = now if self.first_at is None else self.first_at, now
