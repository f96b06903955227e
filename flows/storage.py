"""Where checkpoints lie: whatever Prefect is configured to keep results in, inside a flow run and outside of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import msgspec
from prefect.context import FlowRunContext
from prefect.filesystems import LocalFileSystem
from prefect.results import aget_default_result_storage, aresolve_result_storage
from prefect.settings import get_current_settings

from tasks.checkpoints.binding import read_record
from tasks.checkpoints.blobs import BlockBlobs, FilesystemBlobs, FolderBlobs, blobs_behind
from tasks.checkpoints.storage import CheckpointStorage
from tasks.errors import UsageError
from tasks.records import JobRecord
from tasks.settings import IngestSettings


def flow_run_context() -> FlowRunContext:
    """The running flow's."""
    context = FlowRunContext.get()
    assert context is not None
    return context


def flow_storage(warn: Callable[[str], None]) -> CheckpointStorage:
    """The running flow's result storage, made safe."""
    storage = flow_run_context().result_store.result_storage
    assert storage is not None
    return CheckpointStorage.over(blobs_behind(storage), warn)


async def configured_storage(warn: Callable[[str], None]) -> CheckpointStorage:
    """The result storage that a flow would have here; a server is asked only where one is configured."""
    settings = get_current_settings()
    if settings.results.default_storage_block is None and settings.api.url is None:
        storage = LocalFileSystem(basepath=str(settings.results.local_storage_path))
        return CheckpointStorage.over(blobs_behind(storage), warn)
    return CheckpointStorage.over(blobs_behind(await aget_default_result_storage()), warn)


class StorageAddress(msgspec.Struct, frozen=True):
    """Where another process finds the same storage: a folder, or the id of a block that is saved on the server."""

    folder: str = ""
    block: str = ""


def address_of(storage: CheckpointStorage) -> StorageAddress:
    """How another process finds a storage; no key travels in it.

    Raises:
        UsageError: it is a block that is not saved.
    """
    blobs = storage.blobs
    if isinstance(blobs, FolderBlobs):
        return StorageAddress(folder=str(blobs.folder))
    block_id = blobs.block._block_document_id if isinstance(blobs, BlockBlobs | FilesystemBlobs) else None  # noqa: SLF001
    if block_id is None:
        raise UsageError("the result storage must be a saved block, or worker processes cannot find it")
    return StorageAddress(block=str(block_id))


async def storage_at(address: StorageAddress, warn: Callable[[str], None]) -> CheckpointStorage:
    """The storage at an address that another process gave."""
    if address.folder:
        return CheckpointStorage.over(FolderBlobs(Path(address.folder)), warn)
    return CheckpointStorage.over(blobs_behind(await aresolve_result_storage(UUID(address.block))), warn)


def place_of(storage: CheckpointStorage) -> Path | None:
    """The folder where the checkpoints lie, None where it is no folder."""
    return getattr(storage.blobs, "folder", None)


async def known_job(storage: CheckpointStorage, job_id: str) -> JobRecord:
    """A job's record.

    Raises:
        UsageError: it never ran with this result storage.
    """
    record = await read_record(storage, job_id)
    if record is None:
        raise UsageError(f"no job {job_id} is known here: `python flows/jobs.py list` shows which are")
    return record


def recorded_settings(record: JobRecord) -> IngestSettings:
    """What the job's last run was told."""
    return IngestSettings.model_validate_json(record.parameters).model_copy(update={"job_id": record.job})
