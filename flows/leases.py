"""The slots of a global concurrency limit of Prefect, leased for a run in bulk and shared out by its gate.

An operator makes the limit under the provider's `limit_name`; then it, and not `--concurrency`, is what all runs keep
together. Each run also holds one slot of `NAME-runs`, by which the others count it and work out their fair share.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from tasks.limits.shares import fair_share, next_chunk, to_give_back
from tasks.limits.slots import Slots
from tasks.provider_settings import EmbedderSettings

LEASE_SECONDS = 60.0
"""The least that Prefect takes; the server looks for expired ones every 15 seconds."""
RENEW_SECONDS = 15.0
POLL_SECONDS = 1.0
MOST_RUNS = 10_000


def limit_name(embedder: EmbedderSettings) -> str:
    """The limit's name on the Prefect server, such as `millrace-openai`."""
    return f"millrace-{embedder.kind}"


@asynccontextmanager
async def leased_slots(name: str, slots: Slots, say: Callable[[str], object]) -> AsyncIterator[None]:
    """Keep ``slots`` at this run's share of the limit for the length of the block, where there is such a limit.

    Nobody gets a slot before it is leased. What a killed run held comes back when its leases run out.
    """
    async with get_client() as client:
        try:
            limit = await client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            yield
            return
        leases = Leases(client, name, slots)
        if limit.limit < leases.wanted:
            say(f"--concurrency {leases.wanted:,} is above the limit {name}, which wins: {limit.limit:,} for all runs")
        await leases.join()
        keeping = [asyncio.create_task(leases.renew()), asyncio.create_task(leases.balance())]
        try:
            yield
        finally:
            for each in keeping:
                each.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)
            await leases.leave()


class Leases:
    """What one run holds of a limit. An unreachable server changes nothing: a healthy run goes on with what it has."""

    def __init__(self, client: PrefectClient, name: str, slots: Slots) -> None:
        self.wanted = slots.capacity
        self._client = client
        self._name = name
        self._runs = f"{name}-runs"
        self._slots = slots
        self._chunks: dict[UUID, int] = {}
        self._membership: UUID | None = None
        slots.resize(0)

    async def join(self) -> None:
        """Be counted among the runs."""
        try:
            await self._client.read_global_concurrency_limit_by_name(self._runs)
        except ObjectNotFound:
            with suppress(httpx.HTTPError, ObjectAlreadyExists):  # another run may make it in the same moment
                await self._client.create_global_concurrency_limit(
                    GlobalConcurrencyLimitCreate(name=self._runs, limit=MOST_RUNS)
                )
        self._membership = await self._take(self._runs, 1)

    async def balance(self) -> None:
        """Take what is missing of the share as it comes free; give back what is above it as requests end."""
        while True:
            taken = False
            with suppress(httpx.HTTPError):
                limit, runs = await self._read(self._name), await self._read(self._runs)
                share = fair_share(limit.limit, runs.active_slots, self.wanted)
                for _ in range(to_give_back(list(self._chunks.values()), share)):
                    await self._give_back()
                if (chunk := next_chunk(limit.limit, sum(self._chunks.values()), share)) > 0:
                    taken = await self._take_chunk(chunk)
            if not taken:
                await asyncio.sleep(POLL_SECONDS)

    async def renew(self) -> None:
        """Keep all leases alive. One that the server does not know any more is not held any more."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            for lease in list(self._chunks):
                if await self._is_lost(lease):
                    self._chunks.pop(lease, None)
                    self._resize()
            if self._membership is None or await self._is_lost(self._membership):
                with suppress(httpx.HTTPError):
                    self._membership = await self._take(self._runs, 1)

    async def leave(self) -> None:
        """Give everything back; what the server does not hear of runs out by itself."""
        for lease in [*self._chunks, *([self._membership] if self._membership else [])]:
            with suppress(httpx.HTTPError):
                await self._client.release_concurrency_slots_with_lease(lease)
        self._chunks.clear()

    async def _take_chunk(self, count: int) -> bool:
        lease = await self._take(self._name, count)
        if lease is not None:
            self._chunks[lease] = count
            self._resize()
        return lease is not None

    async def _give_back(self) -> None:
        """The newest chunk, once no request needs it."""
        lease, count = next(reversed(self._chunks.items()))
        fewer = max(0, sum(self._chunks.values()) - count)
        self._slots.resize(fewer)
        await self._slots.within(fewer)
        if self._chunks.pop(lease, None) is not None:
            await self._client.release_concurrency_slots_with_lease(lease)

    async def _take(self, name: str, count: int) -> UUID | None:
        try:
            answer = await self._client.increment_concurrency_slots_with_lease(
                [name], count, "concurrency", lease_duration=LEASE_SECONDS
            )
        except httpx.HTTPStatusError as error:
            if error.response.status_code in {httpx.codes.LOCKED, httpx.codes.UNPROCESSABLE_ENTITY}:
                return None  # taken by others, or the limit was lowered just now
            raise
        granted = answer.json()
        # For a limit that was deleted meanwhile the server grants everything.
        return UUID(granted["lease_id"]) if granted["limits"] else None

    async def _is_lost(self, lease: UUID) -> bool:
        try:
            await self._client.renew_concurrency_lease(lease, LEASE_SECONDS)
        except httpx.HTTPStatusError as error:
            return error.response.status_code == httpx.codes.GONE
        except httpx.HTTPError:
            return False
        return False

    async def _read(self, name: str) -> GlobalConcurrencyLimitResponse:
        try:
            return await self._client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound as error:
            raise httpx.RequestError(f"the concurrency limit {name} is gone") from error

    def _resize(self) -> None:
        self._slots.resize(sum(self._chunks.values()))
