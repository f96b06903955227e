"""Look after jobs: ``python flows/jobs.py list | show JOB | clean JOB``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from prefect.settings import temporary_settings
from rich.console import Console, JustifyMethod
from rich.table import Table

from flows.local_server import LOCAL_DEFAULTS
from flows.storage import configured_storage, known_job, place_of
from tasks.checkpoints import keys
from tasks.checkpoints.binding import read_record
from tasks.checkpoints.listing import job_keys, job_names, listed
from tasks.checkpoints.lock import one_writer
from tasks.checkpoints.storage import CheckpointStorage
from tasks.errors import MillraceError, UsageError
from tasks.records import EmbedRecord, JobRecord

_NUMBERS = {"documents", "dead letters", "bytes on disk"}

app = App(name="python flows/jobs.py", help=__doc__, result_action="return_value")


@app.command(name="list")
async def list_jobs() -> None:
    """List the jobs that this result storage knows."""
    storage = await _storage()
    names = await job_names(storage.blobs)
    table = Table(box=None, pad_edge=False)
    for name in ("job", "state", "documents", "dead letters", "bytes on disk", "last run"):
        justify: JustifyMethod = "right" if name in _NUMBERS else "left"
        table.add_column(name, no_wrap=name != "job", min_width=24 if name == "job" else None, justify=justify)
    for name in names:
        record = await read_record(storage, name)
        held = sum((await job_keys(storage.blobs, name)).values())
        state, done, dead, last = ("unknown", "", "", "") if record is None else _course(record)
        table.add_row(name, state, done, dead, f"{held:,}", last)
    _console().print(table if names else "no jobs yet")


@app.command
async def show(job: str) -> None:
    """Show one job: what it is bound to, what is done, what is dead, what lies on disk."""
    storage = await _storage()
    record = await known_job(storage, job)
    state, done, dead, last = _course(record)
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in [
        ("job", job),
        ("state", state),
        ("documents", done),
        ("dead letters", dead + (f" ({_dead_letters_file(storage, job)})" if record.dead_letters else "")),
        ("embedder", record.embedder),
        ("collection", record.store),
        ("text kept", "yes" if record.keeps_text else "no"),
        ("first run", _minute(record.first_run_at)),
        ("last run", last),
        *_by_kind(await job_keys(storage.blobs, job)),
    ]:
        table.add_row(name, value)
    _console().print(table)


@app.command
async def clean(job: str, *, force: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Remove all that is kept of a finished job; its collection stays, and its next run starts from nothing.

    Args:
        job: The job.
        force: Also where the job is not finished or has dead letters: what it had embedded is paid for again.
    """
    storage = await _storage()
    record = await known_job(storage, job)
    if not force and (record.state != "Completed" or record.dead_letters):
        stands = f"{record.state}, {record.dead_letters:,} dead letters"
        raise UsageError(f"job {job} is not finished ({stands}): use --force")
    lost: list[str] = []
    async with one_writer(storage.blobs, keys.lock_key(job), owner="clean", wait=False, on_lost=lost.append):
        found = await job_keys(storage.blobs, job) | await _embed_records(storage, job)
        for key in sorted(found, key=lambda key: key == keys.job_record_key(job)):  # last, so that a kill starts over
            await storage.blobs.delete(key)
    Console().print(f"removed {len(found):,} files, {sum(found.values()):,} bytes")


async def _embed_records(storage: CheckpointStorage, job: str) -> dict[str, int]:
    """Those that a kill left behind: they say where vectors lay."""
    found = await listed(storage.blobs, keys.EMBEDS)
    records = {key: await storage.record(key) for key in found}
    return {key: found[key] for key, record in records.items() if isinstance(record, EmbedRecord) and record.job == job}


async def _storage() -> CheckpointStorage:
    return await configured_storage(lambda line: print(f"millrace: {line}", file=sys.stderr))


def _console() -> Console:
    """As wide as the terminal; in a pipe as wide as any job's name."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def _course(record: JobRecord) -> tuple[str, str, str, str]:
    return record.state, f"{record.documents:,}", f"{record.dead_letters:,}", _minute(record.last_run_at)


def _minute(moment: str) -> str:
    return moment[:16].replace("T", " ") + " UTC"


def _dead_letters_file(storage: CheckpointStorage, job: str) -> str:
    folder = place_of(storage)
    return keys.dead_letters_key(job) if folder is None else str(folder / keys.dead_letters_key(job))


def _by_kind(found: dict[str, int]) -> Iterable[tuple[str, str]]:
    for kind in ("receipts", "vectors", "ledgers"):
        sizes = [size for key, size in found.items() if key.startswith(f"millrace/{kind}-v1/")]
        yield kind, f"{len(sizes):,} files, {sum(sizes):,} bytes"
    yield "bytes on disk", f"{sum(found.values()):,}"


def main() -> None:
    """Parse, do, print; ends the process with the exit status."""
    try:
        with temporary_settings(set_defaults=LOCAL_DEFAULTS):
            app(sys.argv[1:], exit_on_error=False, print_error=False)
    except (CycloptsError, MillraceError) as error:
        sys.stderr.write(f"millrace: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
