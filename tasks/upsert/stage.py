"""Upsert: records of a segment go to the store; its receipt is written when the store has confirmed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from prefect import task
from prefect.cache_policies import CacheKeyFnPolicy

from tasks.checkpoints.keys import receipt_key
from tasks.halving import reason_of, send_halving
from tasks.limits.gate import Gate
from tasks.records import DeadLetter, EncodedRecord, Reason, Receipt, Record, Segment
from tasks.retries import Retries
from tasks.together import together
from tasks.upsert.packing import pack
from tasks.upsert.port import Store


class SegmentUpserter:
    """Upserts segments of one job (one shard), all within one gate."""

    def __init__(self, store: Store, gate: Gate, retries: Retries, *, job: str, shard: int, keep_text: bool) -> None:
        self._store = store
        self._gate = gate
        self._retries = retries
        self._keep_text = keep_text
        self.job = job
        self.shard = shard

    async def upsert_segment(self, segment: Segment) -> Receipt:
        """Send what was embedded; what the store refuses becomes a dead letter of the receipt."""
        assert segment.embedded is not None
        assert segment.entries is not None
        rows = np.flatnonzero(segment.embedded).tolist()
        records = await asyncio.to_thread(self._encode, segment, rows)
        limits = self._store.limits
        requests, oversized = pack(
            [record.size_bytes for record in records],
            max_bytes=limits.max_request_bytes,
            envelope_bytes=limits.envelope_bytes,
            max_records=limits.max_records,
        )
        sending = _Sending(records)
        await together(self._upsert_request(sending, request) for request in requests)
        for row in oversized:
            sending.refused[row] = (Reason.TOO_LARGE, f"its record takes {records[row].size_bytes:,} bytes")
        confirmed = [row for i, row in enumerate(rows) if i not in sending.refused]
        return Receipt(
            sequence=segment.sequence,
            entries=segment.entries[confirmed].tobytes(),
            dead_letters=_dead_letters(segment, rows, sending),
            upsert_requests=sending.requests,
            bytes_sent=sending.bytes_sent,
            keeps_vectors=bool(sending.refused),
        )

    def _encode(self, segment: Segment, rows: Sequence[int]) -> list[EncodedRecord]:
        if segment.vectors is None:  # nothing of the segment could be embedded
            return []
        return self._store.encode(
            [
                Record(document.id, segment.vectors[row], document.text if self._keep_text else None, document.metadata)
                for row, document in ((row, segment.pending[row]) for row in rows)
            ]
        )

    async def _upsert_request(self, sending: _Sending, request: Sequence[int]) -> None:
        async def send(some: Sequence[int]) -> None:
            records = [sending.records[i] for i in some]
            refused = await self._retries.call("upsert", lambda: self._ask(sending, records))
            for i in some:
                if (message := refused.get(sending.records[i].id)) is not None:
                    sending.refused[i] = (Reason.REJECTED, message)

        for i, error in (await send_halving(request, send)).items():
            sending.refused[i] = (reason_of(error), str(error))

    async def _ask(self, sending: _Sending, records: Sequence[EncodedRecord]) -> dict[str, str]:
        async with self._gate.slot():
            sending.requests += 1
            sending.bytes_sent += self._store.limits.envelope_bytes + sum(record.size_bytes for record in records)
            return dict(await self._store.upsert(records))


class _Sending:
    """One segment's records while the store confirms them; ``refused`` is by place among the records."""

    def __init__(self, records: list[EncodedRecord]) -> None:
        self.records = records
        self.refused: dict[int, tuple[Reason, str]] = {}
        self.requests = 0
        self.bytes_sent = 0


def _dead_letters(segment: Segment, rows: Sequence[int], sending: _Sending) -> list[DeadLetter]:
    return [segment.give_up(rows[i], reason, message) for i, (reason, message) in sorted(sending.refused.items())]


def _key(_context: Any, parameters: dict[str, Any]) -> str:
    segment: Segment = parameters["segment"]
    upserter: SegmentUpserter = parameters["upserter"]
    return receipt_key(upserter.job, upserter.shard, segment.sequence)


@task(
    task_run_name="upsert {segment.span}",
    cache_policy=CacheKeyFnPolicy(cache_key_fn=_key),
    persist_result=True,
    cache_result_in_memory=False,
    refresh_cache=True,  # a sequence number is new: a receipt that lies there already is not this segment's
)
async def upsert(segment: Segment, upserter: SegmentUpserter) -> Receipt:
    """Upsert one segment; its result is the receipt."""
    return await upserter.upsert_segment(segment)
