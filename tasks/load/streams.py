"""Byte streams over source files: decompressed, filled, and honest about where they break off."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from tasks.errors import MillraceError, UnavailableError, UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Compression = Literal["", "gz", "zst"]
MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gz", b"\x28\xb5\x2f\xfd": "zst"}
BLOCK_BYTES = 1 << 18
_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_ZSTD_PIECE_BYTES = (64, 4096)
"""Least and most to decompress at once: a zstd block of 4 bytes may unfold to 128 KiB."""


class DamagedFileError(MillraceError):
    """From here on the file cannot be decoded; what was read before is good."""


class StoredFile(io.RawIOBase):
    """The bytes as they are stored, of any file object, fsspec's included.

    Raises:
        UnavailableError: the bytes could not be fetched; the message holds no address.
    """

    def __init__(self, inner: Any, name: str) -> None:
        super().__init__()
        self._inner = inner
        self._name = name

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """As the file beneath."""
        return bool(self._inner.seekable())

    def read(self, size: int | None = -1, /) -> bytes:
        """At most ``size`` bytes, empty only at the end."""
        try:
            return self._inner.read(-1 if size is None else size)  # type: ignore[no-any-return]
        except Exception as error:  # fsspec's back ends raise what they like
            raise UnavailableError(f"reading {self._name} failed: {type(error).__name__}") from error

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill some of the buffer."""
        return _fill_buffer(buffer, self.read)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """As the file beneath."""
        return int(self._inner.seek(offset, whence))

    def tell(self) -> int:
        """As the file beneath."""
        return int(self._inner.tell())

    def close(self) -> None:
        """Close the file beneath as well."""
        if not self.closed:
            self._inner.close()
        super().close()


class SourceStream(io.RawIOBase):
    """A decompressed file: ``read(n)`` gives n bytes unless the file ends, and a UTF-8 byte-order mark is dropped.

    Where compressed bytes break off, everything before is handed out first; then ``read`` raises, or, when ``quiet``,
    ends like a file while ``damage`` says so. Only the start of a file (``is_start``) has a byte-order mark.

    Raises:
        DamagedFileError: compressed bytes that do not decode.
        UnavailableError: see `StoredFile`.
        UsageError: the file is UTF-16.
    """

    def __init__(
        self, raw: io.RawIOBase, compression: Compression, name: str, *, quiet: bool = False, is_start: bool = True
    ) -> None:
        super().__init__()
        self._raw = raw
        self._quiet = quiet
        self._ahead = b""
        self.damage: DamagedFileError | None = None
        self._read_some = _reader(raw, compression)
        head = self.peek(3) if is_start else b""
        if head.startswith(_UTF16_BOMS):
            raise UsageError(f"{name} is UTF-16: save it as UTF-8")
        if is_start:
            self._ahead = self._ahead.removeprefix(_UTF8_BOM)

    def readable(self) -> bool:
        """Always."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """The next ``size`` bytes, all where negative or None."""
        wanted = -1 if size is None else size
        block = self._fill(wanted)
        if not block and wanted and self.damage is not None and not self._quiet:
            raise self.damage
        return block

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill the buffer, less only at the end."""
        return _fill_buffer(buffer, self.read)

    def peek(self, size: int) -> bytes:
        """The next bytes, at most ``size``, without moving on."""
        head = self._fill(size)
        self._ahead = head + self._ahead
        return head

    def ends_within(self, size: int) -> bool:
        """Whether the file ends, whole, before ``size`` more bytes."""
        is_short = len(self.peek(size)) < size
        if is_short and self.damage is not None:
            raise self.damage
        return is_short

    def close(self) -> None:
        """Close the file beneath as well."""
        if not self.closed:
            self._raw.close()
        super().close()

    def _fill(self, size: int) -> bytes:
        """``size`` bytes, all where negative, fewer only at the end."""
        parts, have = [self._ahead], len(self._ahead)
        while (have < size or size < 0) and (part := self._next(max(size - have, BLOCK_BYTES))):
            parts.append(part)
            have += len(part)
        block = b"".join(parts)
        self._ahead = b"" if size < 0 else block[size:]
        return block if size < 0 else block[:size]

    def _next(self, size: int) -> bytes:
        if self.damage is not None:
            return b""
        try:
            return self._read_some(size)
        except Exception as error:
            if not _is_damage(error):
                raise
            fault = "break off" if isinstance(error, EOFError) else "are damaged"
            self.damage = DamagedFileError(f"the compressed bytes {fault} here")
            self.damage.__cause__ = error
            return b""


class _ZstdFrames:
    """Every frame of a zstd file, one after another; a frame that is not whole raises EOFError.

    `zstandard.ZstdDecompressor.stream_reader` ends without a word in the middle of a frame.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        import zstandard  # noqa: PLC0415

        self._stored = io.BufferedReader(raw, BLOCK_BYTES)
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._left = b""
        self._piece_bytes = _ZSTD_PIECE_BYTES[0]

    def read_some(self, _size: int) -> bytes:
        """Some bytes, empty only at the end; may be more than asked."""
        while piece := self._left or self._stored.read(self._piece_bytes):
            if block := self._decompress(piece):
                return block
        if self._frame is not None:
            raise EOFError
        return b""

    def _decompress(self, piece: bytes) -> bytes:
        self._frame = self._frame or self._decompressor.decompressobj()
        block: bytes = self._frame.decompress(piece)
        self._left = self._frame.unused_data
        if self._frame.eof:
            self._frame = None
        least, most = _ZSTD_PIECE_BYTES
        too_much = len(block) > BLOCK_BYTES
        self._piece_bytes = max(least, self._piece_bytes // 2) if too_much else min(most, self._piece_bytes * 2)
        return block


def _fill_buffer(buffer: WriteableBuffer, read: Callable[[int], bytes]) -> int:
    view = memoryview(buffer).cast("B")
    block = read(len(view))
    view[: len(block)] = block
    return len(block)


def _reader(raw: io.RawIOBase, compression: Compression) -> Callable[[int], bytes]:
    if compression == "gz":
        return gzip.GzipFile(fileobj=raw, mode="rb").read1  # `read` would lose what comes before an error
    if compression == "zst":
        return _ZstdFrames(raw).read_some
    return raw.read  # none of ours is non-blocking


def _is_damage(error: Exception) -> bool:
    if isinstance(error, (EOFError, zlib.error, gzip.BadGzipFile)):
        return True
    return type(error).__module__.partition(".")[0] == "zstandard"
