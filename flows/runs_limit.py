"""The concurrency limit that a run makes at its start, where the operator made none."""

from __future__ import annotations

from contextlib import suppress
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound


class RunsLimit:
    """As large as the largest ``--concurrency`` of the runs that are there.

    A Prefect variable of the limit's name keeps what a run set it to last. A limit of another value was set by the
    operator, and so was one without such a variable: no run touches those.
    """

    def __init__(self, client: PrefectClient, name: str) -> None:
        self._client = client
        self._name = name

    async def id(self) -> UUID | None:
        """By which no other server knows another limit; None where there is none."""
        limit = await self._read()
        return None if limit is None else limit.id

    async def make(self, slots: int) -> None:
        """Make it where there is none."""
        if await self._read() is None:
            await self._set(slots)

    async def fit(self, slots: int, *, runs: int) -> None:
        """Make it no smaller than this run needs; as large as it needs, where no other run is there."""
        limit = await self._read()
        given = await self._client.read_variable_by_name(self._name)
        if limit is None or given is None or given.value != limit.limit:
            return
        fitting = slots if runs <= 1 else max(limit.limit, slots)
        if fitting != limit.limit:
            await self._set(fitting)

    async def _read(self) -> GlobalConcurrencyLimitResponse | None:
        try:
            return await self._client.read_global_concurrency_limit_by_name(self._name)
        except ObjectNotFound:
            return None

    async def _set(self, slots: int) -> None:
        # The variable first: who reads in between takes the limit for the operator's, and leaves it alone.
        if await self._client.read_variable_by_name(self._name) is None:
            with suppress(ObjectAlreadyExists):  # another run makes it in the same moment
                await self._client.create_variable(VariableCreate(name=self._name, value=slots))
        else:
            await self._client.update_variable(VariableUpdate(name=self._name, value=slots))
        with suppress(ObjectAlreadyExists):
            await self._client.upsert_global_concurrency_limit_by_name(self._name, slots)
