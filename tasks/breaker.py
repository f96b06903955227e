"""The circuit breaker: a provider that is down stops the run with one error, instead of costing every document."""

from __future__ import annotations

from collections.abc import Callable

from tasks.errors import ProviderDownError, TransientError

GIVEN_UP_IN_A_ROW = 16
"""Requests that spent all their attempts, whichever they were, without one that was answered in between.

Above the 12 in a row that one bad text at the very front can fail by itself, on its way down by halving from the
largest batch there is (2,048). With `tasks.retries.ATTEMPTS`, a provider that is down is asked at most
``(16 + requests in flight) x 6`` times, over a quarter of a minute at ten requests in flight.
"""


class Breaker:
    """Counts requests that were given up on in a row, over all of one provider's; open, it stays open.

    An answer of any kind closes the row, a refusal of the content too: the provider is there. One that asks to be left
    alone for longer than anybody waits opens it at once. ``on_open`` is told when it opens.
    """

    def __init__(
        self,
        provider: str,
        *,
        given_up_in_a_row: int = GIVEN_UP_IN_A_ROW,
        on_open: Callable[[], object] = lambda: None,
    ) -> None:
        self._provider = provider
        self._most = given_up_in_a_row
        self._in_a_row = 0
        self._on_open = on_open
        self._message = ""

    @property
    def is_open(self) -> bool:
        """Whether the provider is taken for down."""
        return bool(self._message)

    def answered(self) -> None:
        """A request was answered."""
        self._in_a_row = 0

    def gave_up(self, error: TransientError) -> None:
        """A request spent its attempts; ``error`` is its last."""
        self._in_a_row += 1
        if self._in_a_row >= self._most:
            self._open(f"{self._provider} is down: {self._in_a_row} requests in a row were given up on ({error})")

    def sent_away(self, error: TransientError, seconds: float) -> None:
        """A request was told to come back after so long, which nobody waits."""
        self._open(f"{self._provider} asks to come back in {seconds:,.0f} seconds ({error})")

    def check(self) -> None:
        """Pass while it is closed.

        Raises:
            ProviderDownError: it is open.
        """
        if self._message:
            raise ProviderDownError(self._message)

    def _open(self, message: str) -> None:
        if not self._message:
            self._message = message
            self._on_open()
