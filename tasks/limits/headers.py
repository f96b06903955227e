"""What a server says about when to come back, read from its headers. Pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from tasks.records import Allowance, Quota

_UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|d|h|m|s)")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")


def retry_after_seconds(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """The server's own wait in seconds, from the most exact header that is there; None where it named none.

    In order: ``retry-after-ms`` (OpenAI), ``retry-after`` as seconds or as an HTTP date (RFC 9110, 10.2.3), and
    ``x-ratelimit-reset-requests`` and ``-tokens`` of what is used up (OpenAI's rate-limit guide). The names in
    ``headers`` are lower case, or case is ignored; ``now`` is the time by which a date is read.
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    if "retry-after" in headers:
        wait = _retry_after(headers["retry-after"], now or datetime.now(UTC))
        if wait is not None:
            return wait
    return _longest_reset(headers)


def read_quota(headers: Mapping[str, str]) -> Quota | None:
    """What an answer says of the limits: ``x-ratelimit-{limit,remaining,reset}-{requests,tokens}`` (OpenAI's guide).

    A limit that is absent, -1 or no number is none, as some compatible servers write it.
    """
    requests, model_tokens = _allowance(headers, "requests"), _allowance(headers, "tokens")
    return Quota(requests, model_tokens) if requests or model_tokens else None


def _allowance(headers: Mapping[str, str], unit: str) -> Allowance | None:
    limit, remaining = (_count(headers.get(f"x-ratelimit-{of}-{unit}", "")) for of in ("limit", "remaining"))
    return Allowance(limit, remaining, parse_duration(headers.get(f"x-ratelimit-reset-{unit}", ""))) if limit else None


def _count(text: str) -> int | None:
    return int(text) if text.strip().isdecimal() else None


def parse_duration(text: str) -> float | None:
    """Seconds of a duration such as ``20ms``, ``1s`` or ``6m0s``, or of a bare number; None where it is neither."""
    text = text.strip()
    if _DURATION.fullmatch(text):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    return _number(text)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None


def _retry_after(text: str, now: datetime) -> float | None:
    seconds = _number(text)
    if seconds is not None:
        return seconds
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:  # "-0000": an unknown zone, and HTTP dates are always GMT
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())


def _longest_reset(headers: Mapping[str, str]) -> float | None:
    """The longest reset among what is used up: the reset of a budget with something left says nothing."""
    resets = [
        parse_duration(headers.get(f"x-ratelimit-reset-{unit}", ""))
        for unit in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{unit}", "0") == "0"
    ]
    return max((seconds for seconds in resets if seconds), default=None)
