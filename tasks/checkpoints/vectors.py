"""Vectors on disk: one part per embedding answer, found again by each text's own key.

A part is ``magic, texts, dimension, digest of all the others, a key of 16 bytes a text, a float32 row a text``. It is
whole or it is a miss; nothing in it is trusted before its digest fits. The digest is against damage: no digest without
a secret tells who wrote a file, and xxh3 takes a fiftieth of blake2b's time.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128

from tasks.checkpoints.blobs import Blobs
from tasks.checkpoints.keys import vectors_key
from tasks.records import EmbedRecord, Vectors

_MAGIC = b"MRV2"
_HEADER = struct.Struct("<4sII16s")
_KEY_BYTES = 16
_OPEN_PARTS = 8  # decoded parts kept at hand: neighbours of a segment were embedded together


def encode_part(keys: Sequence[bytes], vectors: Vectors) -> bytes:
    """One answer as bytes. ``vectors`` has shape (texts, dimension), one key a row."""
    rows = np.ascontiguousarray(vectors, "<f4")
    if len(keys) != len(rows):
        raise ValueError(f"{len(keys)} keys for {len(rows)} vectors")
    texts, dimension = rows.shape
    named, raw = b"".join(keys), rows.reshape(-1).view(np.uint8).data
    return b"".join((_HEADER.pack(_MAGIC, texts, dimension, _digest(texts, dimension, named, raw)), named, raw))


def decode_part(content: bytes) -> tuple[list[bytes], Vectors]:
    """Keys and vectors, shape (texts, dimension).

    Raises:
        ValueError: cut short, damaged, or not a vector part.
    """
    if len(content) < _HEADER.size:
        raise ValueError("cut short")
    magic, texts, dimension, digest = _HEADER.unpack_from(content)
    body = memoryview(content)[_HEADER.size :]
    if magic != _MAGIC or len(body) != texts * (_KEY_BYTES + 4 * dimension):
        raise ValueError("not a whole vector part")
    if _digest(texts, dimension, body) != digest:
        raise ValueError("its digest does not match")
    keys = [bytes(body[row : row + _KEY_BYTES]) for row in range(0, texts * _KEY_BYTES, _KEY_BYTES)]
    vectors = np.frombuffer(body, "<f4", offset=texts * _KEY_BYTES).reshape(texts, dimension)
    return keys, vectors


def _digest(texts: int, dimension: int, *body: bytes | memoryview) -> bytes:
    digest = xxh3_128(seed=texts << 32 | dimension)
    for part in body:
        digest.update(part)
    return digest.digest()


class VectorParts:
    """The vector parts of one job (one shard)."""

    def __init__(self, blobs: Blobs, job: str, shard: int, warn: Callable[[str], None]) -> None:
        self._blobs = blobs
        self.job = job
        self.shard = shard
        self._warn = warn
        self._found: dict[bytes, tuple[int, int, int]] = {}
        self._open: OrderedDict[tuple[int, int], Vectors] = OrderedDict()
        self.sequences: dict[int, int] = {}
        self._others: Sequence[VectorParts] = ()

    def look_also_in(self, others: Sequence[VectorParts]) -> None:
        """Recall what lies under other shards too."""
        self._others = others

    async def write(self, sequence: int, part: int, keys: Sequence[bytes], vectors: Vectors) -> None:
        """Put one answer on disk."""
        await self._blobs.write(self._key(sequence, part), encode_part(keys, vectors), durable=False)

    async def read(self, sequence: int, part: int) -> tuple[list[bytes], Vectors] | None:
        """One answer, or None where there is none or it is damaged (said once)."""
        content = await self._blobs.read(self._key(sequence, part))
        if content is None:
            return None
        try:
            return decode_part(content)
        except ValueError as error:
            self._warn(f"vector part {self._key(sequence, part)} is ignored: {error}")
            return [], np.empty((0, 0), np.float32)

    async def read_from(self, record: EmbedRecord, part: int) -> tuple[list[bytes], Vectors] | None:
        """One answer of a segment that any job embedded, or None where it is gone or damaged."""
        other = VectorParts(self._blobs, record.job, record.shard, self._warn)
        answer = await other.read(record.sequence, part)
        return answer if answer and answer[0] else None

    async def remember(self, sequence: int) -> bool:
        """Make what an earlier run left under this sequence number findable; whether there was anything."""
        part = 0
        while (answer := await self.read(sequence, part)) is not None:
            for row, key in enumerate(answer[0]):
                self._found[key] = (sequence, part, row)
            part += 1
        if part:
            self.sequences[sequence] = part
        return bool(part)

    def keep(self, sequence: int, parts: int) -> None:
        """Leave what this run wrote under a sequence number on disk, for later runs to find."""
        if parts:
            self.sequences[sequence] = parts

    def __contains__(self, key: bytes) -> bool:
        return key in self._found

    async def recall(self, keys: Sequence[bytes]) -> tuple[NDArray[np.bool_], Vectors | None]:
        """Vectors of these texts from earlier runs: which rows were found, and rows of shape (keys, dimension)."""
        known = np.zeros(len(keys), np.bool_)
        vectors: Vectors | None = None
        if not any(parts._found for parts in (self, *self._others)):  # noqa: SLF001 - its own kind
            return known, None
        for row, key in enumerate(keys):
            if (found := await self._vector(key)) is None:
                continue
            if vectors is None:
                vectors = np.zeros((len(keys), len(found)), np.float32)
            if len(found) == vectors.shape[1]:
                vectors[row] = found
                known[row] = True
        return known, vectors

    async def drop(self, sequences: Iterable[int], parts: int | None = None) -> None:
        """Delete all parts of these sequence numbers."""
        for sequence in sequences:
            count = self.sequences.pop(sequence, 0) if parts is None else parts
            for part in reversed(range(count)):  # a kill in here leaves no part behind a gap
                await self._blobs.delete(self._key(sequence, part))

    async def _vector(self, key: bytes) -> Vectors | None:
        for parts in (self, *self._others):
            place = parts._found.get(key)  # noqa: SLF001 - its own kind
            if place is not None and (rows := await parts._rows(place[0], place[1])) is not None:  # noqa: SLF001
                row: Vectors = rows[place[2]]
                return row
        return None

    async def _rows(self, sequence: int, part: int) -> Vectors | None:
        if (sequence, part) not in self._open:
            answer = await self.read(sequence, part)
            if answer is None or not answer[0]:
                return None
            self._open[sequence, part] = answer[1]
            if len(self._open) > _OPEN_PARTS:
                self._open.popitem(last=False)
        return self._open[sequence, part]

    def _key(self, sequence: int, part: int) -> str:
        return vectors_key(self.job, self.shard, sequence, part)
