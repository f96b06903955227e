"""``python flows/ingest.py``: options, exit status and what is printed. The options are the flow's own parameters."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from contextvars import copy_context
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
from cyclopts import App, CycloptsError, Parameter
from prefect import Flow
from prefect.client.schemas.objects import State
from prefect.logging.configuration import setup_logging
from prefect.logging.handlers import PrefectConsoleHandler
from rich.console import Console

from flows import display
from flows.local_server import prefect_server
from flows.options import options_of
from flows.preflight import OPENED, open_providers, settings_of
from flows.providers import show_providers
from flows.report import report_table
from flows.run import BAD_INPUT
from flows.stopping import STOPPER, Stopper
from tasks.errors import MillraceError, RunFailedError, UsageError
from tasks.tally import Report

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def run(flow: Flow[..., Any], *, report: Path | None = None, json: bool = False, **parameters: Any) -> int:
    """Run a flow once, as the options say; its exit status."""
    if report is not None:
        _check_writable(report)
    stopper = Stopper()
    # The server outlives the loop: a generator task that was cancelled is closed with the loop, and Prefect, which
    # records that too, would start a server of its own where there is none any more.
    with _collector_off(), ExitStack() as server, asyncio.Runner() as runner, _opened(flow, parameters, runner):
        server.enter_context(prefect_server())
        setup_logging()
        for handler in logging.getLogger().handlers:
            if isinstance(handler, PrefectConsoleHandler):
                handler.addFilter(display.only_ours)
                handler.addFilter(lambda _: not stopper.is_insisted)
        display.TERMINAL.set(display.terminal())
        STOPPER.set(stopper)
        gc.freeze()  # what is there now is never garbage: a look through it takes a tenth of a second each time
        gc.enable()
        state = runner.run(_run_flow(flow, parameters, stopper), context=copy_context())
    return _tell(state, stopper, report_file=report, as_json=json)


@contextmanager
def _collector_off() -> Iterator[None]:
    """What is made until all is open stays; looking through it again and again took half of the sample's start."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _opened(flow: Flow[..., Any], parameters: dict[str, Any], runner: asyncio.Runner) -> Iterator[None]:
    """Open and check what an ingest needs before anything is started, for the run inside the block to work with."""
    if flow.name != "ingest":
        yield
        return
    settings, stack = settings_of(parameters), AsyncExitStack()
    providers = runner.run(stack.enter_async_context(open_providers(settings)))
    token = OPENED.set((settings, providers))
    try:
        yield
    finally:
        OPENED.reset(token)
        runner.run(stack.aclose())


async def _start(flow: Flow[..., Any], parameters: dict[str, Any]) -> State[Any]:
    flow_run: Any = flow(**parameters, return_state=True)
    state: State[Any] = await flow_run
    return state


async def _run_flow(flow: Flow[..., Any], parameters: dict[str, Any], stopper: Stopper) -> State[Any] | None:
    flow_run = asyncio.create_task(_start(flow, parameters))

    def interrupt() -> None:
        if stopper.request():
            _say("stopping: requests under way finish; Ctrl-C again drops them")
        else:
            stopper.is_insisted = True
            flow_run.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        state: State[Any] = await flow_run
    except asyncio.CancelledError:
        if not stopper.is_insisted:
            raise
        return None
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    return state


def _tell(state: State[Any] | None, stopper: Stopper, *, report_file: Path | None, as_json: bool) -> int:
    if state is None:
        _say("dropped what was under way; what landed is kept, run again to go on")
        return INTERRUPTED
    data = asyncio.run(state.aresult(raise_on_failure=False))
    if isinstance(data, RunFailedError):
        data = data.report
    if isinstance(data, dict):
        report = Report(**data)
        if report_file is not None:
            report_file.write_bytes(orjson.dumps(data, option=orjson.OPT_INDENT_2) + b"\n")
        Console(stderr=as_json).print(report_table(report))
        if as_json:
            sys.stdout.write(orjson.dumps(data).decode() + "\n")
    if state.is_completed():
        return DONE
    _say(state.message or "the run failed")
    if state.name == BAD_INPUT:
        return USAGE
    return INTERRUPTED if stopper.is_requested else FAILED


def _check_writable(file: Path) -> None:
    """Find out before a run what would lose its report, and leave nothing behind."""
    place = file if file.exists() else file.absolute().parent
    if file.is_dir() or not os.access(place, os.W_OK):
        raise UsageError(f"--report {file} cannot be written: name a file in a folder that exists")


def _say(line: str) -> None:
    sys.stderr.write(f"millrace: {line}\n")


def main(flow: Flow[..., Any], program: str) -> None:
    """Parse, check, run; ends the process with the exit status."""
    app = App(
        name=program,
        version=f"millrace {version('millrace')}",
        default_parameter=Parameter(negative=()),
        result_action="return_value",
    )
    signature = options_of(flow.fn)

    def command(*arguments: Any, **options: Any) -> int:
        return run(flow, **signature.bind(*arguments, **options).arguments)

    command.__doc__ = flow.fn.__doc__
    command.__signature__ = signature  # type: ignore[attr-defined]
    app.default(command)
    if flow.name == "ingest":
        app.command(show_providers, name="--providers", help="Show what every provider allows and costs, and end.")
    try:
        status = app(sys.argv[1:], exit_on_error=False, print_error=False)
    except (CycloptsError, MillraceError) as error:
        _say(str(error))
        status = USAGE
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status or DONE)
