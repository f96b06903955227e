"""Halving: a poison document costs itself alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import (
    MillraceError,
    RefusedError,
    RequestRejectedError,
    RequestTooLargeError,
    SourceChangedError,
    StoppedError,
    UnavailableError,
)
from tasks.halving import reason_of, send_halving
from tasks.records import Reason


class Wire:
    """Counts requests and refuses those that hold a poison row."""

    def __init__(self, poison: set[int], error: type[MillraceError]) -> None:
        self.requests: list[list[int]] = []
        self.landed: list[int] = []
        self._poison = poison
        self._error = error

    async def send(self, rows: Sequence[int]) -> None:
        self.requests.append(list(rows))
        if found := self._poison.intersection(rows):
            raise self._error(f"refused for {sorted(found)}")
        self.landed += rows


@pytest.mark.parametrize(
    "error", [RefusedError("quota"), StoppedError("stop"), SourceChangedError("x"), OSError("disk")]
)
async def test_an_error_that_concerns_every_request_passes_through(error: Exception) -> None:
    """Nothing is halved for it."""
    requests: list[Sequence[int]] = []

    async def send(rows: Sequence[int]) -> None:
        requests.append(rows)
        raise error

    with pytest.raises(type(error)) as raised:
        await send_halving(range(8), send)
    assert raised.value is error
    assert len(requests) == 1


@given(
    st.integers(1, 40),
    st.sets(st.integers(0, 39)),
    st.sampled_from([RequestRejectedError, RequestTooLargeError, UnavailableError]),
)
def test_exactly_the_poison_rows_fail(count: int, poison: set[int], error: type[MillraceError]) -> None:
    """Each with its own error; the others land once, in at most 2n-1 requests."""
    wire, rows = Wire(poison, error), range(count)
    failures = asyncio.run(send_halving(rows, wire.send))
    expected = poison & set(rows)
    assert set(failures) == expected
    assert [str(failures[row]) for row in expected] == [f"refused for [{row}]" for row in expected]
    assert sorted(wire.landed) == sorted(set(rows) - expected)
    assert len(wire.requests) <= 2 * count - 1


async def test_rows_that_are_sound_take_one_request() -> None:
    """Halving costs only where something fails."""
    wire = Wire(set(), RequestRejectedError)
    assert await send_halving(range(100), wire.send) == {}
    assert len(wire.requests) == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RequestTooLargeError("413"), Reason.TOO_LARGE),
        (RequestRejectedError("400"), Reason.REJECTED),
        (UnavailableError("503"), Reason.EXHAUSTED),
    ],
)
def test_the_error_gives_the_reason(error: MillraceError, reason: Reason) -> None:
    """By its class, never by its text."""
    assert reason_of(error) is reason
