"""What a server says about when to come back."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tasks.limits.headers import parse_duration, read_quota, retry_after_seconds
from tasks.records import Allowance, Quota

NOW = datetime(2026, 10, 21, 7, 28, 0, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "soon", "1x", "ms", "1s later", "nan", "inf", "1 s 2"])
def test_what_is_no_duration_is_none(text: str) -> None:
    """Neither guessed nor raised."""
    assert parse_duration(text) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20ms", 0.02), ("1s", 1.0), ("6m0s", 360.0), ("1h2m3.5s", 3723.5), ("1d", 86_400.0), ("2.5", 2.5), ("-3", 0.0)],
)
def test_durations(text: str, seconds: float) -> None:
    """As OpenAI writes them, and bare seconds; never below zero."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "2"}, 2.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 -0000"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:00:00 GMT"}, 0.0),
        ({"x-ratelimit-reset-requests": "20ms"}, 0.02),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"retry-after": "2", "x-ratelimit-reset-tokens": "6m0s"}, 2.0),
    ],
)
def test_the_most_exact_header_counts(headers: dict[str, str], seconds: float | None) -> None:
    """Milliseconds, then seconds or a date, then the resets."""
    assert retry_after_seconds(headers, NOW) == (None if seconds is None else pytest.approx(seconds))


def test_the_reset_of_a_budget_with_something_left_says_nothing() -> None:
    """It is the time until that budget is whole again."""
    headers = {
        "x-ratelimit-remaining-requests": "99",
        "x-ratelimit-reset-requests": "6m0s",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "3s",
    }
    assert retry_after_seconds(headers) == 3.0
    assert retry_after_seconds({**headers, "x-ratelimit-remaining-tokens": "5"}) is None


@pytest.mark.parametrize(
    ("headers", "quota"),
    [
        ({}, None),
        ({"x-ratelimit-limit-requests": "-1", "x-ratelimit-remaining-requests": "-1"}, None),
        ({"x-ratelimit-limit-requests": "unlimited", "x-ratelimit-limit-tokens": "0"}, None),
        ({"x-ratelimit-limit-requests": "600"}, Quota(requests=Allowance(600))),
        (
            {
                "x-ratelimit-limit-requests": "600",
                "x-ratelimit-remaining-requests": "599",
                "x-ratelimit-reset-requests": "100ms",
                "x-ratelimit-limit-tokens": "1000000",
                "x-ratelimit-remaining-tokens": "-1",
                "x-ratelimit-reset-tokens": "6m0s",
            },
            Quota(Allowance(600, 599, 0.1), Allowance(1_000_000, None, 360.0)),
        ),
    ],
)
def test_an_answers_limits(headers: dict[str, str], quota: Quota | None) -> None:
    """Each of what is there; -1, 0 and words are no limit."""
    assert read_quota(headers) == quota
