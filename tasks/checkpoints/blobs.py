"""Bytes by key: in a folder, in a file system of fsspec, in any other storage block. Every write is atomic."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from prefect.filesystems import LocalFileSystem, RemoteFileSystem, WritableFileSystem

from tasks.checkpoints.keys import KEY_PREFIX
from tasks.errors import StorageError

AT_ONCE = 32
"""Most reads or deletes under way: an object store answers each in tens of milliseconds."""
_FOLDER_ATTEMPTS = 20
_TEMPORARY = ".tmp"

T = TypeVar("T")


class Blobs(Protocol):
    """Bytes by key. What cannot be read or written raises `StorageError`: it is not the same as not there."""

    async def read(self, key: str) -> bytes | None:
        """The bytes, or None where there are none."""
        ...

    async def write(self, key: str, content: bytes, *, durable: bool) -> None:
        """Replace the bytes atomically; ``durable`` waits until they would survive a power cut."""
        ...

    async def delete(self, key: str) -> None:
        """Remove the bytes; a key without any is no error."""
        ...

    async def sweep(self, prefix: str, *, older_than_seconds: float = 0) -> None:
        """Remove the unfinished writes of killed processes below a prefix that nobody else writes to."""
        ...


class FolderBlobs:
    """A folder on this machine, readable by its owner alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def read(self, key: str) -> bytes | None:
        """See `Blobs`."""
        try:
            return await asyncio.to_thread((self.folder / key).read_bytes)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageError(f"checkpoint {key} cannot be read: {error.strerror}") from error

    async def write(self, key: str, content: bytes, *, durable: bool) -> None:
        """See `Blobs`."""
        try:
            await asyncio.to_thread(_replace, self.folder / key, content, durable=durable)
        except OSError as error:
            raise StorageError(f"checkpoint {key} cannot be written: {error.strerror}") from error

    async def delete(self, key: str) -> None:
        """See `Blobs`; a folder that becomes empty goes too."""
        try:
            await asyncio.to_thread(_remove, self.folder / key)
        except OSError as error:
            raise StorageError(f"checkpoint {key} cannot be deleted: {error.strerror}") from error

    async def sweep(self, prefix: str, *, older_than_seconds: float = 0) -> None:
        """See `Blobs`."""
        await asyncio.to_thread(_sweep, self.folder / prefix, time.time() - older_than_seconds)


class FilesystemBlobs:
    """A `RemoteFileSystem` block (S3, GCS, Azure, ...), through its fsspec file system.

    The block's own methods stall the event loop, and cannot delete. Object stores replace an object as a whole.
    """

    def __init__(self, block: RemoteFileSystem) -> None:
        self.block = block

    async def read(self, key: str) -> bytes | None:
        """See `Blobs`."""
        try:
            content: bytes = await asyncio.to_thread(self.block.filesystem.cat_file, self._path(key))
        except FileNotFoundError:
            return None
        except Exception as error:  # fsspec's back ends raise what they like
            raise _failed(key, "read", error) from error
        return content

    async def write(self, key: str, content: bytes, *, durable: bool) -> None:  # noqa: ARG002 - an object store always is
        """See `Blobs`."""
        try:
            await asyncio.to_thread(self._put, self._path(key), content)
        except Exception as error:
            raise _failed(key, "written", error) from error

    async def delete(self, key: str) -> None:
        """See `Blobs`."""
        try:
            await asyncio.to_thread(self.block.filesystem.rm_file, self._path(key))
        except FileNotFoundError:
            return
        except Exception as error:
            raise _failed(key, "deleted", error) from error

    async def sweep(self, prefix: str, *, older_than_seconds: float = 0) -> None:
        """See `Blobs`: nothing is ever unfinished."""

    def _path(self, key: str) -> str:
        return self.block._resolve_path(key)  # noqa: SLF001 - as the block's own methods do

    def _put(self, path: str, content: bytes) -> None:
        filesystem = self.block.filesystem
        try:
            filesystem.pipe_file(path, content)
        except FileNotFoundError:  # one that has folders
            filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
            filesystem.pipe_file(path, content)


class BlockBlobs:
    """Any other Prefect storage block; its single writes are atomic."""

    def __init__(self, block: WritableFileSystem) -> None:
        self.block = block
        self._absent: object = None

    async def read(self, key: str) -> bytes | None:
        """See `Blobs`."""
        try:
            content: bytes = await _call(self.block, "read_path", key)
        except Exception as error:
            if _kind(error) == await self._kind_of_absence():
                return None
            raise _failed(key, "read", error) from error
        return content or None

    async def write(self, key: str, content: bytes, *, durable: bool) -> None:  # noqa: ARG002 - the block's own affair
        """See `Blobs`."""
        try:
            await _call(self.block, "write_path", key, content)
        except Exception as error:
            raise _failed(key, "written", error) from error

    async def delete(self, key: str) -> None:
        """See `Blobs`. Blocks have no common way to delete: an empty object is a miss and costs next to nothing."""
        if await self.read(key) is not None:
            await self.write(key, b"", durable=False)

    async def sweep(self, prefix: str, *, older_than_seconds: float = 0) -> None:
        """See `Blobs`: nothing is ever unfinished."""

    async def _kind_of_absence(self) -> object:
        """What this block raises for what is not there. Blocks have no common error for it, so it is asked once."""
        if self._absent is None:
            self._absent = "nothing"
            try:
                await _call(self.block, "read_path", f"{KEY_PREFIX}absent/{uuid.uuid4().hex}")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the block's word for it
                self._absent = _kind(error)
        return self._absent


def blobs_behind(storage: WritableFileSystem) -> Blobs:
    """Bytes by key in whatever Prefect is configured to keep results in."""
    if isinstance(storage, LocalFileSystem):
        return FolderBlobs(Path(storage.basepath or ".").expanduser().resolve())
    return FilesystemBlobs(storage) if isinstance(storage, RemoteFileSystem) else BlockBlobs(storage)


async def each(act: Callable[[str], Awaitable[T]], keys: Iterable[str]) -> list[T]:
    """Do something with every key, `AT_ONCE` at a time; the results in order."""
    remaining, results = list(keys), list[T]()
    for start in range(0, len(remaining), AT_ONCE):
        results += await asyncio.gather(*map(act, remaining[start : start + AT_ONCE]))
    return results


def make_private(folder: Path) -> None:
    """Make a folder and its missing parents, each readable by its owner alone."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(mode=0o700, exist_ok=True)


def _failed(key: str, what: str, error: Exception) -> StorageError:
    """By its class alone: a message may hold an address or a key."""
    return StorageError(f"checkpoint {key} cannot be {what}: {type(error).__name__}")


def _kind(error: Exception) -> object:
    """What tells one error of a block from another: its class, and the code of those that botocore raises."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return type(error), code


async def _call(block: WritableFileSystem, method: str, *arguments: Any) -> Any:
    """Call a block's method, whichever of Prefect's ways to write one its author chose."""
    found = getattr(block, f"a{method}", None) or getattr(block, method)
    if inspect.iscoroutinefunction(inspect.unwrap(found)):
        return await found(*arguments)
    answer = await asyncio.to_thread(found, *arguments)
    return await answer if inspect.isawaitable(answer) else answer


def _replace(path: Path, content: bytes, *, durable: bool) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_TEMPORARY}")
    try:
        with _created(temporary) as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _created(path: Path) -> BinaryIO:
    """A new file, its folder made again where the delete of a neighbour has just taken it away."""
    for _ in range(_FOLDER_ATTEMPTS):
        with suppress(FileNotFoundError, FileExistsError):  # the second is `mkdir`'s when the folder went meanwhile
            with suppress(FileNotFoundError):
                return path.open("xb")
            make_private(path.parent)
            return path.open("xb")
    make_private(path.parent)
    return path.open("xb")


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    with suppress(OSError):
        path.parent.rmdir()


def _sweep(folder: Path, before: float) -> None:
    for parent, _, names in os.walk(folder, topdown=False):  # it does not mind folders that vanish
        for name in names:
            path = Path(parent, name)
            with suppress(FileNotFoundError):
                if name.startswith(".") and name.endswith(_TEMPORARY) and path.stat().st_mtime <= before:
                    _remove(path)
