"""The slots of a global concurrency limit of Prefect, leased for a run in bulk and shared out by its gate.

The limit stands under the provider's `limit_name` and is what all runs keep together; an operator's value wins over
`--concurrency`. Each run also holds one slot of `NAME-runs`, by which the others count it for their fair shares.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import get_current_settings

from flows.lease_book import Note, lease_book, left_leases
from flows.runs_limit import RunsLimit
from tasks.limits.shares import fair_share, next_chunk, to_give_back
from tasks.limits.slots import Slots
from tasks.profiles import EMBEDDERS
from tasks.provider_settings import EmbedderSettings

LEASE_SECONDS = 60.0
"""The least that Prefect takes; the server looks for expired ones every 15 seconds."""
RENEW_SECONDS = 15.0
POLL_SECONDS = 1.0
"""Between two looks at a limit of which the share is not held yet."""
STEADY_POLL_SECONDS = 5.0
"""The same where it is: so late may a run see another one come. Each look is two requests to the Prefect API."""
STARVED_SECONDS = 120.0
"""After so long without any slot a run says so: what a killed run of another machine held has come back by then."""
MOST_RUNS = 10_000

Say = Callable[[str], object]


def limit_name(embedder: EmbedderSettings) -> str:
    """The limit's name on the Prefect server, such as `millrace-openai`."""
    return f"millrace-{embedder.kind}"


def embedder_slots(
    embedder: EmbedderSettings, slots: Slots, say: Say, *, of_run: int
) -> AbstractAsyncContextManager[None]:
    """`leased_slots` of this provider. A limit is made for one that somebody bills, not for a model in the process.

    ``of_run`` is the concurrency of the whole run, of which ``slots`` may be one worker's part.
    """
    profile = next(profile for profile in EMBEDDERS if profile.kind == embedder.kind)
    return leased_slots(limit_name(embedder), slots, say, make=None if profile.is_free else of_run)


@asynccontextmanager
async def leased_slots(name: str, slots: Slots, say: Say, *, make: int | None) -> AsyncIterator[None]:
    """Keep ``slots`` at this run's share of the limit for the length of the block.

    Where there is no such limit one of ``make`` slots is made, or, for None, ``slots`` stay as they are. Nobody gets a
    slot before it is leased. What a killed run held is given back by the next run of its machine; on another one it
    comes back when its leases end.
    """
    async with get_client() as client:
        limit = RunsLimit(client, name)
        if make is not None:
            await limit.make(make)
        if (limit_id := await limit.id()) is None:
            yield
            return
        folder = get_current_settings().home / "millrace" / "leases" / str(limit_id)
        with lease_book(folder) as note:
            leases = Leases(client, name, slots, note, say)
            try:
                await leases.give_back(left_leases(folder))
                runs = await leases.join()
                if make is not None:
                    await limit.fit(make, runs=runs)
                await leases.compare()
                async with leases.kept():
                    yield
            finally:
                await leases.leave()


class Leases:
    """What one run holds of a limit. An unreachable server changes nothing: a healthy run goes on with what it has."""

    def __init__(self, client: PrefectClient, name: str, slots: Slots, note: Note, say: Say) -> None:
        self.wanted = slots.capacity
        self._client = client
        self._name = name
        self._runs = f"{name}-runs"
        self._slots = slots
        self._note = note
        self._say = say
        self._chunks: dict[UUID, int] = {}
        self._renewed_at: dict[UUID, float] = {}
        self._membership: UUID | None = None
        self._asked: set[asyncio.Task[object]] = set()
        self._starves_at = time.monotonic() + STARVED_SECONDS
        slots.resize(0)

    async def join(self) -> int:
        """Be counted among the runs.

        Returns:
            How many there are.
        """
        try:
            await self._client.read_global_concurrency_limit_by_name(self._runs)
        except ObjectNotFound:
            with suppress(httpx.HTTPError, ObjectAlreadyExists):  # another run may make it in the same moment
                await self._client.create_global_concurrency_limit(
                    GlobalConcurrencyLimitCreate(name=self._runs, limit=MOST_RUNS)
                )
        await self._take_membership()
        runs = await self._read(self._runs)
        return 1 if runs is None else runs.active_slots

    async def compare(self) -> None:
        """Say so where this run may not have in flight what it was asked for."""
        limit = await self._read(self._name)
        if limit is not None and limit.limit < self.wanted:
            wins = f"which wins: {limit.limit:,} for all runs"
            self._say(f"--concurrency {self.wanted:,} is above the limit {self._name}, {wins}")

    async def give_back(self, leases: Iterable[UUID]) -> None:
        """Give leases back; what the server does not hear of runs out by itself."""
        for lease in leases:
            with suppress(httpx.HTTPError):
                await self._client.release_concurrency_slots_with_lease(lease)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Renew what is held and come to the share, for the length of the block."""
        keeping = [asyncio.create_task(self._renew()), asyncio.create_task(self._balance())]
        try:
            yield
        finally:
            for each in keeping:
                each.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)

    async def _balance(self) -> None:
        """Take what is missing of the share as it comes free; give back what is above it as requests end."""
        while True:
            pause = POLL_SECONDS
            with suppress(httpx.HTTPError):
                pause = await self._come_to_the_share()
            await asyncio.sleep(pause)

    async def _come_to_the_share(self) -> float:
        """One step towards it.

        Returns:
            After how many seconds the next one is due.
        """
        limit, runs = await self._read(self._name), await self._read(self._runs)
        if limit is None:  # deleted by the operator: the option holds
            self._chunks.clear()
            self._slots.resize(self.wanted)
            return STEADY_POLL_SECONDS
        self._resize()
        share = fair_share(limit.limit, 1 if runs is None else runs.active_slots, self.wanted)
        for _ in range(to_give_back(list(self._chunks.values()), share)):
            await self._give_back_newest()
        if (chunk := next_chunk(sum(self._chunks.values()), share)) == 0:
            return STEADY_POLL_SECONDS
        if await self._take_chunk(chunk):
            return 0
        if not self._chunks and time.monotonic() >= self._starves_at:
            self._starves_at = math.inf
            taken = f"{limit.active_slots:,} of the {limit.limit:,} slots of the limit {self._name} are taken"
            self._say(f"{taken}; if no other run is there: prefect gcl update {self._name} --active-slots 0")
        return POLL_SECONDS

    async def _renew(self) -> None:
        """Keep all leases alive. One that the server does not know any more is not held any more."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            for lease in list(self._chunks):
                if await self._is_lost(lease) and (count := self._chunks.pop(lease, 0)):
                    self._resize()
                    await self._count_out(self._name, count, lease)
            if self._membership is not None and await self._is_lost(self._membership):
                lost, self._membership = self._membership, None
                await self._count_out(self._runs, 1, lost)
            if self._membership is None:
                with suppress(httpx.HTTPError):
                    await self._take_membership()

    async def leave(self) -> None:
        """Give everything back, also what is granted only now."""
        if self._asked:
            await asyncio.wait(self._asked)
        await self.give_back([*self._chunks, *([self._membership] if self._membership else [])])
        self._chunks.clear()

    async def _take_chunk(self, count: int) -> bool:
        def keep(lease: UUID) -> None:
            self._chunks[lease] = count
            self._resize()

        return await self._take(self._name, count, keep)

    async def _take_membership(self) -> None:
        def keep(lease: UUID) -> None:
            self._membership = lease

        await self._take(self._runs, 1, keep)

    async def _give_back_newest(self) -> None:
        """The newest chunk, once no request needs it."""
        lease, count = next(reversed(self._chunks.items()))
        fewer = max(0, sum(self._chunks.values()) - count)
        self._slots.resize(fewer)
        await self._slots.within(fewer)
        if lease in self._chunks:
            await self._client.release_concurrency_slots_with_lease(lease)
            self._chunks.pop(lease, None)

    async def _take(self, name: str, count: int, keep: Callable[[UUID], None]) -> bool:
        """Lease slots, or not where others have them. Cancelled, it still keeps what the server grants meanwhile."""
        asked = asyncio.create_task(self._ask_for(name, count, keep))
        self._asked.add(asked)
        asked.add_done_callback(self._asked.discard)
        return await asyncio.shield(asked)

    async def _ask_for(self, name: str, count: int, keep: Callable[[UUID], None]) -> bool:
        asked_at = time.monotonic()
        try:
            answer = await self._client.increment_concurrency_slots_with_lease(
                [name], count, "concurrency", lease_duration=LEASE_SECONDS
            )
        except httpx.HTTPStatusError as error:
            if error.response.status_code in {httpx.codes.LOCKED, httpx.codes.UNPROCESSABLE_ENTITY}:
                return False  # taken by others, or the limit was lowered just now
            raise
        granted = answer.json()
        if not granted["limits"]:
            return False  # for a limit that was deleted meanwhile the server grants everything
        lease = UUID(granted["lease_id"])
        self._note(lease)
        self._renewed_at[lease] = asked_at
        keep(lease)
        return True

    async def _is_lost(self, lease: UUID) -> bool:
        asked_at = time.monotonic()
        try:
            await self._client.renew_concurrency_lease(lease, LEASE_SECONDS)
        except httpx.HTTPStatusError as error:
            return error.response.status_code == httpx.codes.GONE
        except httpx.HTTPError:
            return False
        self._renewed_at[lease] = asked_at
        return False

    async def _count_out(self, name: str, count: int, lease: UUID) -> None:
        """Free the slots of a lease that was lost before it ran out: a restarted server still counts them."""
        if time.monotonic() - self._renewed_at.pop(lease) < LEASE_SECONDS:
            with suppress(httpx.HTTPError):
                await self._client.release_concurrency_slots([name], count, occupancy_seconds=1.0)

    async def _read(self, name: str) -> GlobalConcurrencyLimitResponse | None:
        try:
            return await self._client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            return None

    def _resize(self) -> None:
        self._slots.resize(sum(self._chunks.values()))
