"""The port that every store fulfils. Packing, limits, retries and receipts stay outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tasks.records import Document, EncodedRecord, Hit, Record, Vectors


@dataclass(frozen=True, slots=True)
class UpsertLimits:
    """What one upsert request may hold, and how many may be in flight.

    ``envelope_bytes`` is what a request costs before its first record; it is part of ``max_request_bytes``.
    """

    max_request_bytes: int | None
    max_records: int
    envelope_bytes: int
    concurrency: int


class Store(Protocol):
    """A collection of one vector database."""

    identity: str
    """Where records go (kind, place, collection), as one printable string without secrets."""
    limits: UpsertLimits

    async def open(self, dimension: int | None, *, create: bool) -> None:
        """Connect and check that the collection exists and fits; make it where that is allowed.

        ``dimension`` is the embedder's, None when not known yet; a later `open` with the number checks again.

        Raises:
            UsageError: missing collection or key, wrong dimension or metric; one line that says what to do.
            TransientError: the store cannot be reached.
        """
        ...

    def refuse(self, document: Document, *, keep_text: bool) -> str | None:
        """Why this document breaks the store's rules for ids and metadata, or None. The message holds no text."""
        ...

    def encode(self, records: Sequence[Record]) -> list[EncodedRecord]:
        """Records in wire form with their exact bytes; CPU only, safe to call in a worker thread."""
        ...

    async def upsert(self, records: Sequence[EncodedRecord]) -> Mapping[str, str]:
        """One request, confirmed by the store when it returns. Ids that the store refused, each with its reason.

        Raises:
            TransientError: another attempt may succeed (an upsert by id may be sent twice).
            RequestTooLargeError: the store refuses this size.
            RequestRejectedError: the store refuses this content; halving finds the record.
            RefusedError: every request will fail.
        """
        ...

    async def query(self, vector: Vectors, *, limit: int) -> list[Hit]:
        """The nearest records, best first, by cosine similarity."""
        ...

    async def fetch(self, ids: Sequence[str]) -> list[Record]:
        """The records that exist among these ids, in no order."""
        ...

    async def count(self) -> int:
        """Records in the collection (a store may be eventually consistent)."""
        ...

    async def delete(self, ids: Sequence[str]) -> None:
        """Remove records by id; an id that is not there is no error."""
        ...

    async def finish(self) -> None:
        """Housekeeping at the end of a run: compact, make indexes."""
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...
