"""One run of a job, from open providers to the report: what `ingest` and `replay` have in common."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled, Failed

from flows.artifacts import publish_dead_letters, publish_report
from flows.display import logger, name_run, progress_line, quiet_runs, watch
from flows.events import announce_dead_letters, announce_finished
from flows.job import Job
from flows.preflight import open_providers
from flows.runners import workers_for
from flows.stopping import stoppable
from tasks.errors import JobBusyError, MillraceError, RunFailedError, UsageError
from tasks.records import Reason
from tasks.settings import IngestSettings, allowed_failures
from tasks.tally import Report

BAD_INPUT = "Bad input"
"""Name of the Failed state of a run that started nothing."""


async def run_job(settings: IngestSettings, replaying: Collection[Reason] | None = None) -> dict[str, Any] | State[Any]:
    """Run one job once inside a flow run: the report, or a final state that says in one line why there is none.

    ``replaying`` sends dead letters alone: those of these reasons, or all where it is empty.
    """
    quiet_runs()
    try:
        async with open_providers(settings) as providers:
            job = Job(settings, providers, warn=logger().warning, owner=_owner(), replaying=replaying)
            async with job.writing():
                return await run(job)
    except JobBusyError as error:  # no failure: the other run does the work
        return Cancelled(message=str(error), data=_bare(error))
    except UsageError as error:
        return Failed(name=BAD_INPUT, message=str(error), data=_bare(error))
    except MillraceError as error:
        return Failed(message=str(error), data=_bare(error))


async def run(job: Job) -> dict[str, Any] | State[Any]:
    """The README's sentence: what is done is skipped, the rest is loaded, batched, embedded and upserted."""
    await job.resume()
    if done := len(job.checkpoints.ledger):
        await resume(done)
    error: MillraceError | None = None
    async with workers_for(job.settings) as workers:
        parts = job.parts() if job.has_work else []
        scans = await job.scan(parts, workers) if parts else []
        items = sum(found.items for found in scans)
        await name_run(f"{job.verb} {job.id} {items:,} documents")
        await job.check_room(items, workers)
        async with watch(job.tally, job.id) as throughput:
            with stoppable(job.stop):
                try:
                    if parts:
                        await job.fill(parts, scans, workers)
                    await job.finish()
                except MillraceError as caught:
                    error = caught
    report = job.report()
    end = conclude(report, error, job, items)
    await job.remember(is_whole=error is None, is_done=not isinstance(end, State))
    logger().info(progress_line(job.tally))
    if report.truncated:
        logger().warning(
            "documents whose end the model cut off, as they are longer than it takes: %s", f"{report.truncated:,}"
        )
    await publish_report(report, job.tally, throughput.intervals(report.seconds, report.documents))
    await publish_dead_letters(job.id, job.history.letters)
    announce(report, job, is_done=not isinstance(end, State))
    return end


@task(task_run_name="resume: {done:,} done", cache_policy=NO_CACHE, persist_result=False)
async def resume(done: int) -> None:
    """Make visible what the ledger lets this run skip."""
    logger().info("resuming: %s documents are done", f"{done:,}")


def conclude(report: Report, error: MillraceError | None, job: Job, items: int) -> dict[str, Any] | State[Any]:
    """A report as the flow's result, or a Failed state that says why in one line and raises it for a caller."""
    accounted, given_up, allowed = report.documents + job.tally.outside, _given_up(report, job), _allowed(report, job)
    if error is not None:
        return _failed(f"{error}; what landed is kept, run again to go on", report)
    if accounted != items:
        return _failed(f"{accounted:,} of {items:,} documents are accounted for", report)
    if given_up > allowed:
        return _failed(f"{given_up:,} dead letters, {allowed:,} are allowed", report)
    return report.to_dict()


def announce(report: Report, job: Job, *, is_done: bool) -> None:
    """Tell automations what they may hang on."""
    if is_done:
        announce_finished(job.verb, report)
    if _given_up(report, job) > (allowed := _allowed(report, job)):
        announce_dead_letters(job.verb, report, job.tally, allowed)


def _given_up(report: Report, job: Job) -> int:
    """Documents that this run gave up on, without those it was told to leave."""
    return report.dead_letters - job.tally.left


def _allowed(report: Report, job: Job) -> int:
    return allowed_failures(job.settings.max_failed, report.documents)


def _failed(message: str, report: Report) -> State[Any]:
    return Failed(message=message, data=RunFailedError(message, report.to_dict()))


def _bare(error: MillraceError) -> MillraceError:
    """The error alone: what a vendor's error below it quotes may be a document's text, and a caller may log it."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _owner() -> str:
    return f"flow run {flow_run.get_name() or 'without a name'}"
