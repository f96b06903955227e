"""What a job has upserted so far: 16 bytes a document, looked up by the segment."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.fingerprints import Entries

_ROWS_AT_ONCE = 1 << 16


class Ledger:
    """Entries sorted by the id's hash, one an id."""

    def __init__(self, entries: Entries | None = None) -> None:
        known = np.empty((0, 2), np.uint64) if entries is None else entries
        self._ids = np.ascontiguousarray(known[:, 0])
        self._fingerprints = np.ascontiguousarray(known[:, 1])

    @property
    def entries(self) -> Entries:
        """All of them, sorted by the id's hash, shape (documents, 2)."""
        return np.column_stack((self._ids, self._fingerprints))

    def __len__(self) -> int:
        return len(self._ids)

    @classmethod
    def of(cls, chapters: Sequence[Entries]) -> Ledger:
        """From entries in the order they were confirmed: the newest entry of an id wins.

        Column by column, as the chapters of a large job are most of a run's memory when it ends.
        """
        ledger = cls()
        if chapters:
            entries = chapters[0] if len(chapters) == 1 else np.concatenate(chapters)
            rows, ledger._ids = _newest_rows(entries[:, 0])
            ledger._fingerprints = entries[:, 1][rows]
        return ledger

    def holds(self, entries: Entries) -> NDArray[np.bool_]:
        """Which of these very entries (id and fingerprint) the job has upserted, shape (documents,)."""
        if not len(self):
            return np.zeros(len(entries), np.bool_)
        rows = np.searchsorted(self._ids, entries[:, 0])
        rows[rows == len(self)] = 0
        held: NDArray[np.bool_] = (self._ids[rows] == entries[:, 0]) & (self._fingerprints[rows] == entries[:, 1])
        return held

    def to_bytes(self) -> bytes:
        """16 bytes a document, little-endian, sorted by the id's hash."""
        out = io.BytesIO()  # gives its buffer away, where an array of all entries would be copied
        for first in range(0, len(self), _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            out.write(np.column_stack((self._ids[rows], self._fingerprints[rows])).astype("<u8", copy=False).tobytes())
        return out.getvalue()


def newest(entries: Entries) -> Entries:
    """Entries sorted by the id's hash, of each id only the last."""
    return entries[_newest_rows(entries[:, 0])[0]]


def _newest_rows(ids: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
    """Where the last of each id stands, sorted by id; and these ids."""
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    last = np.ones(len(ids), np.bool_)
    np.not_equal(ids[1:], ids[:-1], out=last[:-1])
    return (order, ids) if last.all() else (order[last], ids[last])


def from_bytes(data: bytes | bytearray) -> Entries:
    """Entries of `Ledger.to_bytes` or of a receipt, shape (documents, 2)."""
    return np.frombuffer(data, "<u8").reshape(-1, 2)
