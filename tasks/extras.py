"""Packages that only one provider needs: a missing one is bad usage, and the message says how to get it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tasks.errors import UsageError

_OWN = ("flows", "tasks")


@contextmanager
def optional(extra: str) -> Iterator[None]:
    """A block that imports what comes with ``millrace[extra]``.

    Raises:
        UsageError: a package is missing, or is too old to have what is asked of it.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] in _OWN:
            raise  # a mistake of ours, which no installation mends
        raise missing_extra(extra, error) from error


def missing_extra(extra: str, error: ImportError) -> UsageError:
    """The one line for an optional package that cannot be imported."""
    package = (error.name or extra).partition(".")[0]
    return UsageError(f"{package} is not installed or too old: pip install 'millrace[{extra}]'")
