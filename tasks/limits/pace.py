"""The pace: how fast a provider seems to take requests, learned from what it says and from what it refuses."""

from __future__ import annotations

import math
from collections import deque

from tasks.records import Allowance, Quota

MINUTE_SECONDS = 60.25
HEADROOM = 0.97
"""Share of a limit that the provider names, or that it was seen to keep, at which requests go."""
DECREASE = 0.8
LONE_DECREASE = 0.95
"""A single refusal may have another cause than the pace: a busy server."""
MOST_REFUSED = 0.04
"""Of the requests of a minute: more single refusals than these do come from the pace."""
GROWTH_PER_SECOND = 0.02 / 60
"""A fiftieth more each minute, additive where it matters: at 600 a minute a refusal in some three minutes."""
DOUBLING_SECONDS = 5.0
FIRST_PAUSE_SECONDS = 1.0
PAUSE_FACTOR = 4.0
SLACK_SECONDS = 0.25
"""A request that wakes up so late does not delay those behind it."""
PROBE_POLL_SECONDS = 0.25
PROBE_SECONDS = 30.0
"""After so long without an answer a probe counts as lost, and another one may go."""
_SLOWEST_PER_SECOND = 1 / 60
_REPRESENTATIVE_SECONDS = 50.0


class Pace:
    """Decides how fast requests may go; it neither sleeps nor knows the time, all moments are given.

    Unbounded while nothing is known. A limit that the answers name caps it. A refusal pauses everything; after the
    pause one request at a time finds out whether the provider takes them again. A second refusal in a row cuts the
    pace, once until then: to what was accepted in the last minute, where that minute tells; else the first accepted
    probe decides, by whether it had to wait for the minute to pass. Later the pace grows again, slowly, or quickly
    while the provider takes clearly more than it did at the cut.
    """

    def __init__(self) -> None:
        self._learned = math.inf  # requests a second, from refusals
        self._named = math.inf  # requests a second, from the provider's own words
        self._accepted: deque[float] = deque()  # moments of the last minute
        self._refused: deque[float] = deque()  # the same of refusals
        self._refusals = 0  # in a row
        self._pauses = 0  # in a row
        self._paused_at = -math.inf
        self._probe_until = -math.inf
        self._next_at = -math.inf
        self._is_cut = False  # since the last accepted probe
        self._rate_when_cut: float | None = None  # requests a second; None once the pace is decided
        self._window_opens_at = math.inf  # if the provider counts what it accepted in the last minute
        self._accepted_when_cut = math.inf
        self._grown_at = -math.inf
        self._tokens_per_request = 0.0

    @property
    def per_second(self) -> float:
        """Requests a second that may go now; infinite where nothing is known."""
        return min(self._learned, self._named)

    def earliest(self, now: float) -> float:
        """The first moment from ``now`` on at which the next request may go; while a probe is out, ask again then."""
        if self._refusals and now < self._probe_until:
            return now + PROBE_POLL_SECONDS
        return max(now, self._next_at)

    def take(self, at: float) -> None:
        """A request goes at ``at``."""
        if self._refusals:
            self._probe_until = at + PROBE_SECONDS
        elif math.isfinite(self.per_second):
            self._next_at = max(self._next_at, at - SLACK_SECONDS) + 1 / self.per_second

    def answered(self, sent_at: float, now: float, model_tokens: int = 0, quota: Quota | None = None) -> None:
        """A request that went at ``sent_at`` was accepted."""
        self._forget(now)
        if sent_at > self._paused_at:
            self._decide(now)
            self._refusals = self._pauses = 0
            self._is_cut = False
        self._accepted.append(now)
        if model_tokens:
            known = self._tokens_per_request or model_tokens
            self._tokens_per_request = 0.9 * known + 0.1 * model_tokens
        if quota is not None:
            of_tokens = _named_pace(quota.model_tokens, self._tokens_per_request)
            self._named = min(_named_pace(quota.requests, 1.0), of_tokens)
        self._grow(now)

    def refused(self, sent_at: float, now: float, retry_after_seconds: float | None = None) -> float:
        """A request was refused that went at ``sent_at``; seconds for which nothing should go."""
        self._forget(now)
        self._refused.append(now)
        self._refusals += 1
        if sent_at > self._paused_at:
            self._paused_at, self._probe_until = now, -math.inf
            self._pauses += 1
        if not self._is_cut:
            self._cut(now)
        if retry_after_seconds is not None:
            return retry_after_seconds
        return max(0.0, self._paused_at + self._pause_seconds() - now)

    def _cut(self, now: float) -> None:
        count = len(self._accepted)
        span = now - self._accepted[0] if self._accepted else 0.0
        seen = HEADROOM * count / 60 if span >= _REPRESENTATIVE_SECONDS else 0.0
        self._grown_at = now
        self._accepted_when_cut = count
        if self._refusals == 1:
            if math.isfinite(self._learned):
                self._learned = max(seen, LONE_DECREASE * self._learned)
            elif len(self._refused) > max(2, MOST_REFUSED * count):
                self._learned = HEADROOM * count / max(1.0, span)
            return
        self._is_cut = True
        if seen:
            self._learned = max(seen, DECREASE * min(self.per_second, 2 * seen))
        elif math.isfinite(self._learned):
            self._learned *= DECREASE
        else:
            self._rate_when_cut = count / max(1.0, span)
            self._window_opens_at = now - span + 59.0

    def _decide(self, now: float) -> None:
        """The pace after a cut, at the first request that is accepted again."""
        if self._rate_when_cut is None:
            return
        whole_minute = HEADROOM * self._accepted_when_cut / 60
        waited_for_the_minute = now >= self._window_opens_at
        self._learned = max(_SLOWEST_PER_SECOND, whole_minute if waited_for_the_minute else self._rate_when_cut / 2)
        self._rate_when_cut = None
        self._next_at = self._grown_at = now

    def _pause_seconds(self) -> float:
        """Ever longer, but not beyond the moment at which a window of a minute has room again."""
        ramp = FIRST_PAUSE_SECONDS * PAUSE_FACTOR ** (self._pauses - 1)
        window = self._accepted[0] + MINUTE_SECONDS - self._paused_at if self._accepted else PROBE_SECONDS
        return min(ramp, max(window, FIRST_PAUSE_SECONDS))

    def _grow(self, now: float) -> None:
        seconds, self._grown_at = now - self._grown_at, now
        if math.isinf(self._learned):
            return
        if len(self._accepted) > 1.1 * self._accepted_when_cut:  # the limit that was learned is none any more
            self._learned *= 2 ** min(1.0, seconds / DOUBLING_SECONDS)
        elif len(self._accepted) / 60 >= DECREASE * self._learned:  # else it is not the pace that holds requests back
            self._learned *= 1 + GROWTH_PER_SECOND * min(60.0, seconds)

    def _forget(self, now: float) -> None:
        for moments in (self._accepted, self._refused):
            while moments and moments[0] <= now - MINUTE_SECONDS:
                moments.popleft()


def _named_pace(allowance: Allowance | None, per_request: float) -> float:
    """Requests a second that a named limit allows: one of a minute, unless its reset is farther away than that."""
    if allowance is None or not per_request:
        return math.inf
    reset = allowance.reset_seconds
    if reset is None or reset <= MINUTE_SECONDS or allowance.remaining is None:
        return HEADROOM * allowance.limit / 60 / per_request
    return max(_SLOWEST_PER_SECOND, allowance.remaining / reset / per_request)
