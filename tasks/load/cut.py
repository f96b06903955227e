"""Cut a source into shards of about equal bytes: files, byte ranges of JSONL, row groups of Parquet.

The bytes of all files, one after another, are cut into equal ranges. What cannot be cut (a compressed file, a JSON
array, CSV) belongs as a whole to the range in which its first byte lies; so do a line and a row group. Shards are
consecutive and lose nothing, whatever lies where; one may be empty.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeGuard, runtime_checkable

from tasks.load.port import SourceFormat
from tasks.load.streams import BLOCK_BYTES, StoredFile

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


@dataclass(frozen=True, slots=True)
class ByteRange:
    """From ``start`` to before ``stop``, of one file's stored bytes."""

    start: int
    stop: int


@runtime_checkable
class Cuttable(Protocol):
    """A format that can read a part of its file."""

    @property
    def can_cut(self) -> bool:
        """False where this very file cannot be read in parts."""
        ...

    def piece(self, part: ByteRange) -> SourceFormat:
        """Reads the items whose first byte lies in this range."""
        ...


def cut(files: Sequence[tuple[SourceFormat, int]], shards: int) -> list[list[tuple[int, ByteRange | None]]]:
    """What each shard reads: numbers of files, each with its range of bytes, or None for the whole file.

    ``files`` are the formats with their bytes, a format that is not `Cuttable` is taken whole.
    """
    total = sum(size for _, size in files)
    bounds = [total * shard // shards for shard in range(shards)] + [total]
    plan: list[list[tuple[int, ByteRange | None]]] = [[] for _ in range(shards)]
    before = 0
    for number, (file, size) in enumerate(files):
        if not is_cuttable(file):
            plan[_shard_of(before, bounds)].append((number, None))
        else:
            for shard in range(shards):
                start, stop = max(bounds[shard] - before, 0), min(bounds[shard + 1] - before, size)
                if start < stop:
                    plan[shard].append((number, ByteRange(start, stop)))
        before += size
    return plan


def is_cuttable(file: SourceFormat) -> TypeGuard[Cuttable]:
    """Whether a file can be read in parts."""
    return isinstance(file, Cuttable) and file.can_cut


def _shard_of(offset: int, bounds: Sequence[int]) -> int:
    """The last shard that begins at or before an offset; shards without bytes are passed over."""
    return max(shard for shard, start in enumerate(bounds[:-1]) if start <= offset)


class LineRange(io.RawIOBase):
    """The lines of a file whose first byte lies in a range, as a file of its own.

    A line that began before the range belongs to another; one that goes on behind its end is read to its line feed.
    """

    def __init__(self, raw: StoredFile, part: ByteRange) -> None:
        super().__init__()
        self._raw = raw
        self._stop = part.stop
        self._at = max(part.start - 1, 0)  # where the line feed before the first line may be
        self._ahead = b""
        self._is_over = False
        raw.seek(self._at)
        if part.start:
            self._skip_line()

    def readable(self) -> bool:
        """Always."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """At most ``size`` bytes, empty only at the end."""
        wanted = BLOCK_BYTES if size is None or size < 0 else size
        if self._is_over or not wanted:
            return b""
        block = self._take(wanted)
        # The last line feed that ends a line of this range stands at `stop - 1` or behind.
        from_last = max(self._stop - 1 - self._at, 0)
        end = block.find(b"\n", from_last) if from_last < len(block) else -1
        if end >= 0:
            block, self._is_over = block[: end + 1], True
        self._at += len(block)
        self._is_over = self._is_over or not block
        return block

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill some of the buffer."""
        view = memoryview(buffer).cast("B")
        block = self.read(len(view))
        view[: len(block)] = block
        return len(block)

    def close(self) -> None:
        """Close the file beneath as well."""
        if not self.closed:
            self._raw.close()
        super().close()

    def _take(self, size: int) -> bytes:
        if self._ahead:
            block, self._ahead = self._ahead[:size], self._ahead[size:]
            return block
        return self._raw.read(size)

    def _skip_line(self) -> None:
        while block := self._raw.read(BLOCK_BYTES):
            end = block.find(b"\n")
            if end >= 0:
                self._at += end + 1
                self._ahead = block[end + 1 :]
                break
            self._at += len(block)
        self._is_over = self._at >= self._stop
