"""Bytes by key for tests: in memory, and cut off after so many changes."""

from __future__ import annotations

from tasks.checkpoints.blobs import Blobs


class MemoryBlobs:
    """A dictionary."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    async def read(self, key: str) -> bytes | None:
        return self.content.get(key)

    async def write(self, key: str, content: bytes, *, durable: bool) -> None:
        self.content[key] = content

    async def delete(self, key: str) -> None:
        self.content.pop(key, None)

    async def sweep(self, prefix: str, *, older_than_seconds: float = 0) -> None:
        """Nothing is unfinished."""


class KilledError(Exception):
    """The process is gone."""


class MortalBlobs:
    """Passes so many writes and deletes on, then nothing more, as after a kill."""

    def __init__(self, blobs: Blobs, changes: int) -> None:
        self._blobs = blobs
        self.changes = changes

    async def read(self, key: str) -> bytes | None:
        return await self._blobs.read(key)

    async def write(self, key: str, content: bytes, *, durable: bool) -> None:
        self._live()
        await self._blobs.write(key, content, durable=durable)

    async def delete(self, key: str) -> None:
        self._live()
        await self._blobs.delete(key)

    async def sweep(self, prefix: str, *, older_than_seconds: float = 0) -> None:
        await self._blobs.sweep(prefix, older_than_seconds=older_than_seconds)

    def _live(self) -> None:
        if not self.changes:
            raise KilledError
        self.changes -= 1


class UnchangedBlobs:
    """Reads only: what looks at a job's checkpoints through this leaves them as they are."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    async def read(self, key: str) -> bytes | None:
        return await self._blobs.read(key)

    async def write(self, key: str, content: bytes, *, durable: bool) -> None:
        """Not written."""

    async def delete(self, key: str) -> None:
        """Not deleted."""

    async def sweep(self, prefix: str, *, older_than_seconds: float = 0) -> None:
        """Not swept."""
