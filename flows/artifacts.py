"""What a run leaves on its page in Prefect's UI: how far it is, its report, its dead letters.

A page that cannot be written ends no run. No text of a document is on any.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID

from prefect.artifacts import (
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from prefect.logging import get_run_logger

from flows.report import report_markdown
from flows.throughput import Interval
from tasks.dead_letters import FiledLetter
from tasks.tally import MOST_SHOWN, Report, Tally

PROGRESS_SECONDS = 5.0
"""Between two updates of the progress: one request of 15 ms each."""


async def show_progress(tally: Tally, job_id: str) -> None:
    """Keep a progress artifact up to date until cancelled, and then once more; it is only written where it moved."""
    shown: tuple[float, str] | None = None
    artifact: UUID | None = None

    async def show() -> None:
        nonlocal shown, artifact
        now = percent(tally.documents, tally.total), f"{tally.documents:,} of {tally.total:,} documents"
        if now == shown:
            return
        with _no_harm("the progress"):
            if artifact is None:
                artifact = await acreate_progress_artifact(now[0], artifact_key(job_id, "progress"), now[1])
            else:
                await aupdate_progress_artifact(artifact, *now)
            shown = now

    try:
        while True:
            await show()
            await asyncio.sleep(PROGRESS_SECONDS)
    finally:
        await show()


def percent(done: int, total: int) -> float:
    """From 0 to 100, also where more is done than there was to do."""
    return 100.0 if done >= total else round(100 * done / total, 1)


async def publish_report(report: Report, tally: Tally, intervals: Sequence[Interval]) -> None:
    """Leave the report as a page."""
    summary = f"{report.documents:,} documents, {report.dead_letters:,} dead letters, {report.seconds:,.1f} seconds"
    with _no_harm("the report"):
        await acreate_markdown_artifact(
            report_markdown(report, tally, intervals), key=artifact_key(report.job_id, "report"), description=summary
        )


async def publish_dead_letters(job_id: str, letters: Sequence[FiledLetter]) -> None:
    """Leave a job's dead letters as a table, the first of them where there are many; nothing where there are none."""
    if not letters:
        return
    rows = [
        {
            "id": letter.id or "",
            "source": letter.source,
            "position": letter.position,
            "reason": letter.reason.value,
            "message": letter.message,
            "attempts": letter.attempts,
            "since": letter.first_at,
        }
        for letter in letters[:MOST_SHOWN]
    ]
    shown = f"the first {len(rows):,} of {len(letters):,}" if len(rows) < len(letters) else f"{len(letters):,}"
    with _no_harm("the dead letters"):
        await acreate_table_artifact(
            rows, key=artifact_key(job_id, "dead-letters"), description=f"Dead letters: {shown}"
        )


def artifact_key(job_id: str, what: str) -> str:
    """A key that Prefect takes: lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{job_id}-{what}".lower()).strip("-")


@contextmanager
def _no_harm(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever keeps a page from being written, the documents matter more
        get_run_logger().warning("%s could not be shown in Prefect: %s", what, type(error).__name__)
