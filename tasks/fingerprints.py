"""Hashes that name content: of ids, of texts under an embedder, of whole records.

blake2b everywhere: fast enough (about a microsecond a kilobyte) and not to be fooled by a document made to collide.
Every input is framed by its length or is the only one, so no two inputs share a preimage by concatenation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import msgspec
import numpy as np
from numpy.typing import NDArray

from tasks.records import Document

VERSION = b"millrace-1"
"""Changed by hand when a hash changes its meaning; every document then counts as changed."""

Entries = NDArray[np.uint64]
"""Shape (documents, 2): the id's hash and the fingerprint."""

_metadata = msgspec.json.Encoder(order="deterministic")


def framed(*parts: str | bytes) -> bytes:
    """32 bytes that stand for these parts, each framed by its length."""
    digest = blake2b(VERSION, digest_size=32)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


def hash_ids(ids: Iterable[str]) -> Entries:
    """16 bytes an id, shape (ids, 2); the first column is the id's hash in the ledger."""
    digests = b"".join([blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=16).digest() for id_ in ids])
    return np.frombuffer(digests, "<u8").reshape(-1, 2)


class Fingerprints:
    """Keys and fingerprints of documents under one embedder, one store and one record shape."""

    def __init__(self, *, embedder: str, store: str, keep_text: bool) -> None:
        self._vector_salt = framed("vector", embedder)
        self._record_salt = framed("record", embedder, store, "text" if keep_text else "no text")

    def vector_keys(self, documents: Sequence[Document]) -> list[bytes]:
        """16 bytes a text: the same text under the same embedder has the same vector."""
        salt = self._vector_salt
        return [blake2b(document.text.encode(), digest_size=16, key=salt).digest() for document in documents]

    def entries(self, documents: Sequence[Document], vector_keys: Sequence[bytes]) -> Entries:
        """The ledger entries that these documents would have, shape (documents, 2)."""
        salt, encode = self._record_salt, _metadata.encode
        fingerprints = b"".join(
            [
                blake2b(vector_key + encode(document.metadata), digest_size=8, key=salt).digest()
                for document, vector_key in zip(documents, vector_keys, strict=True)
            ]
        )
        entries = np.empty((len(documents), 2), np.uint64)
        entries[:, 0] = hash_ids([document.id for document in documents])[:, 0]
        entries[:, 1] = np.frombuffer(fingerprints, "<u8")
        return entries
