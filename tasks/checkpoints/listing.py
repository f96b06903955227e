"""What lies under a prefix, for a person who tidies up. Runs never list: not every storage can."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from tasks.checkpoints import keys
from tasks.checkpoints.blobs import Blobs, BlockBlobs, FilesystemBlobs, FolderBlobs
from tasks.errors import UsageError


async def listed(blobs: Blobs, prefix: str) -> dict[str, int]:
    """Keys below a prefix that ends in a slash, each with its bytes.

    Raises:
        UsageError: this kind of storage block does not list.
    """
    if isinstance(blobs, FolderBlobs):
        return await asyncio.to_thread(_in_folder, blobs, prefix)
    if isinstance(blobs, FilesystemBlobs):
        return await asyncio.to_thread(_in_filesystem, blobs, prefix)
    if isinstance(blobs, BlockBlobs) and hasattr(blobs.block, "list_objects"):
        return await asyncio.to_thread(_in_bucket, blobs, prefix)
    raise UsageError("this result storage cannot list what it holds: name the job, or look with the storage's own tool")


async def job_keys(blobs: Blobs, job: str) -> dict[str, int]:
    """All keys of one job but its locks, each with its bytes."""
    found: dict[str, int] = {}
    for prefix in keys.job_prefixes(job):
        found |= await listed(blobs, prefix)
    return {key: size for key, size in found.items() if not keys.is_lock(job, key)}


async def job_names(blobs: Blobs) -> list[str]:
    """The jobs that have a record."""
    found = await listed(blobs, keys.JOBS)
    names = {key.removeprefix(keys.JOBS).partition("/")[0] for key in found}
    return sorted(name for name in names if keys.job_record_key(name) in found)


def _in_folder(blobs: FolderBlobs, prefix: str) -> dict[str, int]:
    files = (path for path in (blobs.folder / prefix).rglob("*") if path.is_file())
    return {path.relative_to(blobs.folder).as_posix(): path.stat().st_size for path in files}


def _in_filesystem(blobs: FilesystemBlobs, prefix: str) -> dict[str, int]:
    block = blobs.block
    filesystem, base = block.filesystem, block._resolve_path("")  # noqa: SLF001
    filesystem.invalidate_cache()  # others write, too
    root = filesystem._strip_protocol(base).rstrip("/") + "/"  # noqa: SLF001 - as fsspec's own callers do
    return _relative(((path, info["size"]) for path, info in filesystem.find(root + prefix, detail=True).items()), root)


def _in_bucket(blobs: BlockBlobs, prefix: str) -> dict[str, int]:
    block = blobs.block
    folder = block.bucket_folder  # type: ignore[attr-defined]
    objects = block.list_objects(prefix, _sync=True)  # type: ignore[attr-defined]
    return _relative(((found["Key"], found["Size"]) for found in objects), f"{folder.strip('/')}/" if folder else "")


def _relative(found: Iterable[tuple[str, int]], root: str) -> dict[str, int]:
    """An empty object is what is left of a deleted one."""
    return {path.removeprefix(root): size for path, size in found if size}
