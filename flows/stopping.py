"""Ctrl-C, once: what is under way finishes. Only the command line listens; a worker's run is cancelled by Prefect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Stopper:
    """Passes a request to stop on to whatever is running."""

    def __init__(self) -> None:
        self.is_requested = False
        self.is_insisted = False
        self._stop: Callable[[], None] | None = None

    def request(self) -> bool:
        """Ask for a stop; False where nothing is running that could finish first, or it was asked before."""
        if self.is_requested or self._stop is None:
            return False
        self.is_requested = True
        self._stop()
        return True

    @contextmanager
    def passing_to(self, stop: Callable[[], None]) -> Iterator[None]:
        """Requests go to ``stop`` inside this block."""
        self._stop = stop
        try:
            yield
        finally:
            self._stop = None


STOPPER: ContextVar[Stopper | None] = ContextVar("stopper", default=None)


@contextmanager
def stoppable(stop: Callable[[], None]) -> Iterator[None]:
    """Let whoever set `STOPPER` stop what runs inside this block."""
    stopper = STOPPER.get()
    if stopper is None:
        yield
        return
    with stopper.passing_to(stop):
        yield
