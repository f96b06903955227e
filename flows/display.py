"""What a person watching sees: a bar in a terminal, sparse log lines elsewhere."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.logging import get_run_logger
from prefect.logging.configuration import setup_logging
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.logging.loggers import PrefectLogAdapter
from prefect.runtime import flow_run
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flows.artifacts import show_progress
from flows.throughput import Throughput
from tasks.errors import MillraceError
from tasks.tally import Tally

TERMINAL: ContextVar[Console | None] = ContextVar("terminal", default=None)
"""Where the command line wants a bar; None under a worker and in a pipe."""

_ORIGIN = "millrace"
_RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")
_REFRESH_SECONDS = 0.2
_SAMPLE_SECONDS = 0.5
_LOG_SECONDS = 15.0


@asynccontextmanager
async def watch(tally: Tally, job_id: str) -> AsyncIterator[Throughput]:
    """Show how a run gets on, for the length of the block; yields how fast it was."""
    console, throughput = TERMINAL.get(), Throughput()
    shows = [
        _log(tally) if console is None else _draw(tally, console),
        _sample(tally, throughput),
        show_progress(tally, job_id),
    ]
    watchers = [asyncio.create_task(show) for show in shows]
    try:
        yield throughput
    finally:
        for watcher in watchers:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher


def logger() -> PrefectLogAdapter:
    """The run's logger, marked: what it says is for the person who watches."""
    return get_run_logger(origin=_ORIGIN)  # type: ignore[return-value]


def only_ours(record: logging.LogRecord) -> bool:
    """Whether a log record belongs into a terminal that already shows the run's result: ours, or a surprise."""
    if getattr(record, "origin", None) == _ORIGIN:
        return True
    is_state = record.name in _RUN_LOGGERS and record.exc_info is None
    return record.levelno >= logging.WARNING and not is_state


def quiet_console() -> None:
    """Let Prefect's own lines go to the server alone; the terminal gets ours, and surprises."""
    setup_logging()
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.addFilter(only_ours)


async def _log(tally: Tally) -> None:
    said = logger()
    while True:
        await asyncio.sleep(_LOG_SECONDS)
        said.info(progress_line(tally))


async def _sample(tally: Tally, throughput: Throughput) -> None:
    while True:
        await asyncio.sleep(_SAMPLE_SECONDS)
        throughput.sample(tally.seconds, tally.documents)


async def _draw(tally: Tally, console: Console) -> None:
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("[progress.percentage]{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[rest]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=tally.total or None, rate="", rest="")
        try:
            while True:
                await asyncio.sleep(_REFRESH_SECONDS)
                _advance(bar, task, tally)
        finally:
            _advance(bar, task, tally)


def _advance(bar: Progress, task: object, tally: Tally) -> None:
    rate = f"{tally.documents / tally.seconds:,.0f} documents/s" if tally.seconds else ""
    rest = f"{tally.dead_letter_count:,} dead letters, {tally.sample_memory() / 1e6:,.0f} MB"
    bar.update(task, completed=tally.documents, total=tally.total or None, rate=rate, rest=rest)  # type: ignore[arg-type]


def progress_line(tally: Tally) -> str:
    """One line of where a run stands."""
    rate = tally.documents / tally.seconds if tally.seconds else 0
    return (
        f"{tally.documents:,} of {tally.total:,} documents, {rate:,.0f}/s, "
        f"{tally.dead_letter_count:,} dead letters, {tally.sample_memory() / 1e6:,.0f} MB"
    )


def quiet_runs() -> None:
    """Keep from Prefect's logs what nobody would miss, and what must not be there."""
    logging.getLogger("prefect.task_runs").setLevel(logging.WARNING)  # a line a task run says what its page shows
    logging.getLogger("prefect.task_runs").addFilter(_is_news)
    for name in _RUN_LOGGERS:
        logging.getLogger(name).addFilter(_without_traceback)


def _is_news(record: logging.LogRecord) -> bool:
    """An error of ours that ends a task run ends the flow run too, which says it once instead of twice a segment."""
    is_ours = record.exc_info is not None and isinstance(record.exc_info[1], MillraceError)
    return not is_ours and not str(record.msg).startswith("Finished in state")


def _without_traceback(record: logging.LogRecord) -> bool:
    """Our errors say all in one line, and what a vendor's error below them quotes may be a document's text."""
    if record.exc_info and isinstance(record.exc_info[1], MillraceError | asyncio.CancelledError):
        record.exc_info = record.exc_text = None
    return True


async def name_run(name: str) -> None:
    """Give the flow run a name that says what it does."""
    if (run_id := flow_run.get_id()) is not None:
        async with get_client() as client:
            await client.update_flow_run(UUID(run_id), name=name)


def terminal() -> Console | None:
    """The terminal on standard error, or None where nobody watches."""
    console = Console(stderr=True)
    return console if console.is_terminal and sys.stderr.isatty() else None
