"""Prefect result storage made safe: atomic writes, no foreign serializer, delete, and a miss that is said once.

Prefect 3.8.8 opens the target with ``"wb"``, so a kill leaves half a file; and a result file names its own serializer,
so that a planted one runs code when it is read. Both are closed here, for a local folder and for any other block.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from prefect.filesystems import WritableFileSystem
from prefect.results import ResultStore
from pydantic import PrivateAttr

from tasks.checkpoints.blobs import Blobs
from tasks.checkpoints.keys import KEY_PREFIX
from tasks.checkpoints.serializer import CheckpointRecord, CheckpointSerializer

SERIALIZER = CheckpointSerializer()


class _SerializerName(msgspec.Struct):
    type: str


class _ResultMetadata(msgspec.Struct):
    serializer: _SerializerName


class _ResultFile(msgspec.Struct):
    """What of a Prefect result file matters here."""

    metadata: _ResultMetadata
    result: str


_result_file = msgspec.json.Decoder(_ResultFile)


def decode_result(content: bytes) -> CheckpointRecord:
    """The record in a Prefect result file.

    Raises:
        ValueError: damaged, or written by a serializer that is not ours.
    """
    file = _result_file.decode(content)
    if file.metadata.serializer.type != SERIALIZER.type:
        raise ValueError("it names a foreign serializer")
    return SERIALIZER.loads(file.result.encode())


class CheckpointStorage(WritableFileSystem):
    """What Prefect's result store reads and writes through."""

    _block_type_name = "Millrace checkpoints"
    _block_type_slug = "millrace-checkpoints"
    _blobs: Blobs = PrivateAttr()
    _warn: Callable[[str], None] = PrivateAttr()

    @classmethod
    def over(cls, blobs: Blobs, warn: Callable[[str], None]) -> CheckpointStorage:
        """Storage over these bytes; ``warn`` is told of every checkpoint that is there but ignored."""
        storage = cls()
        storage._blobs = blobs
        storage._warn = warn
        return storage

    @property
    def blobs(self) -> Blobs:
        """The bytes below."""
        return self._blobs

    async def record(self, key: str) -> CheckpointRecord | None:
        """The record under a key, or None where there is none or it cannot be trusted (said)."""
        content = await self._blobs.read(key)
        return None if content is None else self._checked(key, content)

    async def aread_path(self, path: str) -> bytes:
        """A result file of our own serializer.

        Raises:
            FileNotFoundError: there is none, or it cannot be trusted (said); Prefect takes that as a miss.
        """
        content: bytes | None = await self._blobs.read(path)
        if content is None or self._checked(path, content) is None:
            raise FileNotFoundError(path)
        return content

    async def awrite_path(self, path: str, content: bytes) -> None:
        """Replace a result file, durably. What lies under no key of ours is a failed task's exception: not kept."""
        if path.startswith(KEY_PREFIX):
            await self._blobs.write(path, content, durable=True)

    async def read_path(self, path: str) -> bytes:
        """See `aread_path`."""
        return await self.aread_path(path)

    async def write_path(self, path: str, content: bytes) -> None:
        """See `awrite_path`."""
        await self.awrite_path(path, content)

    def _resolve_path(self, path: str) -> None:
        """Tell Prefect, which asks storage that is not saved as a block, that a key is no path and stays as it is."""

    def _checked(self, key: str, content: bytes) -> CheckpointRecord | None:
        try:
            return decode_result(content)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self._warn(f"checkpoint {key} is ignored: {error}")
            return None


def result_store(storage: CheckpointStorage) -> ResultStore:
    """A Prefect result store that can be trusted with receipts."""
    return ResultStore(result_storage=storage, serializer=SERIALIZER, cache_result_in_memory=False)
