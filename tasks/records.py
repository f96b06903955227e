"""The nouns that travel through the stages. All are frozen but the travelling `Segment`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
"""One row per text, shape (texts, dimension)."""


class Reason(StrEnum):
    """Why a document was given up on."""

    MALFORMED = "malformed"  # the source could not be read as a document
    INVALID = "invalid"  # the document breaks a rule known before sending
    TOO_LARGE = "too_large"  # alone it is over a limit of the embedder or the store
    REJECTED = "rejected"  # the provider refused this very document
    EXHAUSTED = "exhausted"  # every attempt was spent


class Document(msgspec.Struct, frozen=True, gc=False):
    """One item of a source.

    ``source`` is the file it came from and ``position`` its line (JSONL) or its place (otherwise) there, from 1.
    """

    id: str
    text: str
    metadata: dict[str, Any]
    source: str = ""
    position: int = 0


class DeadLetter(msgspec.Struct, frozen=True, gc=False):
    """A document given up on. ``message`` never holds the document's text.

    ``fingerprint`` is the document's, as 16 hex digits, or empty where it was given up before it had one.
    """

    id: str | None
    source: str
    position: int
    reason: Reason
    message: str
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a provider says of one of its limits: so much in all, so much left, whole again in so many seconds."""

    limit: int
    remaining: int | None = None
    reset_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Quota:
    """A provider's limits as an answer names them; None where it names none."""

    requests: Allowance | None = None
    model_tokens: Allowance | None = None


@dataclass(frozen=True, slots=True)
class Embedding:
    """One answer of an embedder: ``vectors`` has a row per text, in order; ``model_tokens`` is what was billed.

    ``truncated`` are texts that the embedder cut because they are longer than its model takes.
    """

    vectors: Vectors
    model_tokens: int
    truncated: int = 0
    quota: Quota | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """What is stored: a document and its vector, shape (dimension,). ``text`` is None where it is not kept."""

    id: str
    vector: Vectors
    text: str | None
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EncodedRecord:
    """A record in the store's own wire form, with the bytes it adds to an upsert request."""

    id: str
    payload: Any
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer of a query: ``score`` is a similarity, higher is nearer."""

    id: str
    score: float
    text: str | None
    metadata: dict[str, Any]


class Receipt(msgspec.Struct, frozen=True, tag="receipt", weakref=True):
    """What a store confirmed for one segment.

    ``entries`` holds 16 bytes a document: the id's hash and the fingerprint, little-endian uint64 each.
    ``keeps_vectors`` says that documents were given up after they were embedded, so their vectors are still on disk.
    """

    sequence: int
    entries: bytes
    dead_letters: list[DeadLetter]
    upsert_requests: int
    bytes_sent: int
    keeps_vectors: bool = False


class EmbedRecord(msgspec.Struct, frozen=True, tag="embed", weakref=True):
    """Where the vectors of one segment lie: ``parts`` vector parts under ``sequence`` of ``job`` and ``shard``."""

    job: str
    shard: int
    sequence: int
    parts: int
    embedded: int
    dead_letters: list[DeadLetter]
    embedding_requests: int
    model_tokens: int
    truncated: int = 0


class LedgerHead(msgspec.Struct, frozen=True, tag="ledger", weakref=True):
    """What the compacted ledger covers: every receipt below ``next_sequence``.

    ``digest`` is the hex blake2b of the raw file of this ``generation``; receipts from ``delete_from`` on may still be
    there to delete; ``keeps_vectors`` are the sequences whose vectors are still on disk. The ledger of shard 0 is that
    of the whole job; ``shards`` says of how many there may be receipts or vectors that it does not cover.
    """

    generation: int
    documents: int
    digest: str
    next_sequence: int
    delete_from: int
    keeps_vectors: list[int] = []
    shards: int = 1


class JobRecord(msgspec.Struct, frozen=True, tag="job", weakref=True):
    """What a job is bound to, and how its last run went.

    ``parameters`` are that run's, as JSON; ``sample_ids`` are some that the store confirmed; times are ISO 8601, UTC.
    """

    job: str
    embedder: str
    store: str
    keeps_text: bool
    parameters: str
    state: str
    first_run_at: str
    last_run_at: str
    documents: int = 0
    dead_letters: int = 0
    sample_ids: list[str] = []


class Segment(msgspec.Struct, weakref=True, eq=False):
    """Consecutive documents of the source on their way through the stages.

    ``first`` and ``last`` are the places of its documents in the source, from 0. ``batch`` fills the pending fields
    (row ``i`` of each belongs to ``pending[i]``), ``embed`` fills ``vectors`` and ``embedded``. ``left`` are dead
    letters that this run was told not to try, ``outside`` documents that a replay does not concern. Whoever takes it
    out of the pipeline calls `let_go`, and ``on_let_go`` is told so, once.
    Not a dataclass: Prefect would walk through every field of one on every task call.
    """

    first: int
    last: int
    documents: list[Document]
    places: Sequence[int]
    dead_letters: list[DeadLetter]
    sequence: int = -1
    unchanged: int = 0
    duplicates: int = 0
    left: int = 0
    outside: int = 0
    pending: list[Document] = []
    vector_keys: list[bytes] = []
    entries: NDArray[np.uint64] | None = None
    batches: list[list[int]] = []
    vectors: Vectors | None = None
    embedded: NDArray[np.bool_] | None = None
    on_let_go: Callable[[], object] | None = None

    @property
    def span(self) -> str:
        """The places as a person reads them, from 0: ``12,000-12,999``."""
        return f"{self.first:,}-{self.last:,}"

    def give_up(self, row: int, reason: Reason, message: str) -> DeadLetter:
        """The dead letter of a pending document."""
        assert self.entries is not None
        return dead_letter(self.pending[row], reason, message, int(self.entries[row, 1]))

    def handed_on(self) -> Segment:
        """A twin with the whole payload; this one, which a generator may still hold, keeps nothing alive."""
        twin, self.on_let_go = copy(self), None
        self.let_go()
        return twin

    def let_go(self) -> None:
        """Drop the payload; Prefect's unsent events may keep the shell alive for a while."""
        self.documents = []
        self.pending = []
        self.vector_keys = []
        self.batches = []
        self.entries = self.vectors = self.embedded = None
        tell, self.on_let_go = self.on_let_go, None
        if tell is not None:
            tell()

    def __repr__(self) -> str:
        return f"Segment({self.span})"


def dead_letter(document: Document, reason: Reason, message: str, fingerprint: int | None = None) -> DeadLetter:
    """Give up on a document."""
    digits = "" if fingerprint is None else f"{fingerprint:016x}"
    return DeadLetter(document.id, document.source, document.position, reason, message, digits)


def select(documents: Sequence[Document], rows: NDArray[np.bool_]) -> list[Document]:
    """The documents whose row is true."""
    return [document for document, chosen in zip(documents, rows.tolist(), strict=True) if chosen]
