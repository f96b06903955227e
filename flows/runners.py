"""Where the shards of a run are worked at: in this process, or in worker processes that Dask looks after."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

from prefect.client.schemas.objects import State
from prefect.tasks import Task

from tasks.errors import UsageError
from tasks.load.locations import is_stream
from tasks.settings import IngestSettings


class Workers(Protocol):
    """Runs one task for each shard, ``parallel`` of them at once."""

    parallel: int
    is_here: bool
    """Whether all run in this process."""
    is_elsewhere: bool
    """Whether they may run on other machines."""

    async def each(
        self, task: Task[..., Any], arguments: Sequence[dict[str, Any]], on_failed: Callable[[], object]
    ) -> list[State[Any]]:
        """Call a task once with each of these arguments; the final states, in order.

        ``on_failed`` is called when the first one fails; those that have not started by then may be left out.

        Raises:
            ShardLostError: its worker died, and so did those that it was given to afterwards.
        """
        ...


def workers_for(settings: IngestSettings) -> AbstractAsyncContextManager[Workers]:
    """The workers that the setting `runner` stands for.

    Raises:
        UsageError: the optional package is missing; workers elsewhere would not share a budget, or see the source.
    """
    kind, _, address = settings.runner.partition(":")
    if kind == "local" or settings.shards == 1:  # one alone is worked at here, and needs no other process
        return _here()
    if address and is_stream(settings.source):
        raise UsageError("a stream is copied to this machine, where others cannot read it: use --runner local or dask")
    if address and (settings.rpm or settings.tpm):
        raise UsageError("rpm and tpm are shared by the processes of one machine: use --runner local or dask")
    from flows.on_dask import dask_workers  # noqa: PLC0415 - imports its vendor

    return dask_workers(address, settings.shards)


class Here:
    """This process, one shard after another: they would share its one core, so together they would be no faster."""

    parallel = 1
    is_here = True
    is_elsewhere = False

    async def each(
        self, task: Task[..., Any], arguments: Sequence[dict[str, Any]], on_failed: Callable[[], object]
    ) -> list[State[Any]]:
        """See `Workers`."""
        states: list[State[Any]] = []
        for each in arguments:
            states.append(await task(**each, return_state=True))
            if not states[-1].is_completed():
                on_failed()
                break
        return states


@asynccontextmanager
async def _here() -> AsyncIterator[Workers]:
    yield Here()
