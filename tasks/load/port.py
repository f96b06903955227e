"""The port that every source format fulfils."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from tasks.records import DeadLetter, Document


class SourceFormat(Protocol):
    """Reads documents from one open file. Streaming: memory is bounded by one document and a read buffer."""

    def documents(self) -> Iterator[Document | DeadLetter]:
        """Every document in order; what cannot be read as one is a dead letter with its position and reason.

        Raises:
            UsageError: the file as a whole cannot be read this way (no such JSON path, missing column).
        """
        ...

    def ids(self) -> Iterator[str | None]:
        """The same items in the same order, ids only; None where `documents` gives a dead letter."""
        ...
