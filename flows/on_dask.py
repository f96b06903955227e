"""Shards on a Dask cluster: worker processes of this machine, or the workers of a scheduler somewhere else.

The scheduling, the watching and the running again of what a dead worker had are Dask's own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from prefect.client.schemas.objects import State
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.results import ResultStore
from prefect.tasks import Task

from flows.display import quiet_console
from flows.runners import Workers
from flows.storage import flow_run_context
from tasks.errors import ShardLostError, UsageError
from tasks.extras import optional

with optional("dask"):
    import dask
    import distributed
    from prefect_dask.task_runners import DaskTaskRunner

DRAIN_SECONDS = 10
_CONNECT_SECONDS = "10s"
_LEVEL_OF_WORKERS = "DASK_LOGGING__DISTRIBUTED"
"""Dask's own variable, which must be there before a worker imports it."""


@asynccontextmanager
async def dask_workers(address: str, shards: int) -> AsyncIterator[Workers]:
    """Workers of the scheduler at an address, or without one of this machine: one a core, at most one a shard.

    Raises:
        UsageError: nobody answers at the address, or has workers.
    """
    runner = _elsewhere(address) if address else _on_this_machine(min(shards, cores()))
    await asyncio.to_thread(runner.__enter__)
    try:
        try:
            client: distributed.Client = await asyncio.to_thread(lambda: runner.client)
        except (OSError, TimeoutError, ValueError) as error:
            raise UsageError(f"no Dask scheduler answers at {address}: {type(error).__name__}") from error
        threads: dict[str, int] = await asyncio.to_thread(client.nthreads)
        if not threads:
            raise UsageError(f"the Dask scheduler at {address} has no workers")
        try:
            yield OnDask(runner, min(shards, sum(threads.values())), is_elsewhere=bool(address))
        finally:
            await asyncio.to_thread(_send_unsent, client)
    finally:
        await asyncio.to_thread(runner.__exit__, None, None, None)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OnDask:
    """Workers of a Dask cluster. When one dies, its shard is run again on another."""

    is_here = False

    def __init__(self, runner: DaskTaskRunner, parallel: int, *, is_elsewhere: bool) -> None:
        self.parallel = parallel
        self.is_elsewhere = is_elsewhere
        self._runner = runner

    async def each(
        self, task: Task[..., Any], arguments: Sequence[dict[str, Any]], on_failed: Callable[[], object]
    ) -> list[State[Any]]:
        """See `Workers`."""
        futures = [await asyncio.to_thread(self._submit, task, each) for each in arguments]

        async def final(future: distributed.Future[Any]) -> State[Any]:
            state = await _final_state(future)
            if not state.is_completed():
                on_failed()
            return state

        return await asyncio.gather(*map(final, futures))

    def _submit(self, task: Task[..., Any], arguments: dict[str, Any]) -> distributed.Future[Any]:
        # Our result storage stays here: a worker is told where it lies, and finds the keys to it by itself.
        with flow_run_context().model_copy(update={"result_store": ResultStore()}):
            return self._runner.submit(task, arguments).wrapped_future


async def _final_state(future: distributed.Future[Any]) -> State[Any]:
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    future.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))  # type: ignore[no-untyped-call]
    await done.wait()
    try:
        state: State[Any] = await asyncio.to_thread(future.result)
    except Exception as error:
        raise ShardLostError(f"a shard was lost with its worker ({type(error).__name__}), more than once") from error
    return state


def _elsewhere(address: str) -> DaskTaskRunner:
    return DaskTaskRunner(address=address, client_kwargs={"timeout": _CONNECT_SECONDS})


def _on_this_machine(workers: int) -> DaskTaskRunner:
    logging.getLogger("distributed").setLevel(logging.ERROR)
    dask.config.set({f"distributed.nanny.pre-spawn-environ.{_LEVEL_OF_WORKERS}": "error"})
    options = {
        "n_workers": workers,
        "threads_per_worker": 1,
        "processes": True,
        "memory_limit": 0,  # our own guard holds a shard back, Dask's would kill it
        "dashboard_address": "127.0.0.1:0",  # or it would listen everywhere, on a port that another run has
        "preload": ["flows.on_dask"],
    }
    return DaskTaskRunner(cluster_class="distributed.LocalCluster", cluster_kwargs=options)


def dask_setup(worker: distributed.Worker) -> None:  # noqa: ARG001 - Dask's name for what a worker process does first
    """Leave Ctrl-C to the run, which tells its shards, and the terminal as well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet_console()


def _send_unsent(client: distributed.Client) -> None:
    """What workers have to tell the Prefect server, before they are ended."""
    client.run(_drain, on_error="ignore")


async def _drain() -> None:
    for service in (EventsWorker, APILogWorker):
        await asyncio.to_thread(service.drain_all, DRAIN_SECONDS, at_exit=False)
