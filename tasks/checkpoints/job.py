"""All that one job (one shard of it) has on disk: receipts, vectors, the compacted ledger. One writer at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from hashlib import blake2b

import msgspec

from tasks.checkpoints import keys
from tasks.checkpoints.blobs import AT_ONCE, each
from tasks.checkpoints.storage import CheckpointStorage, result_store
from tasks.checkpoints.vectors import VectorParts
from tasks.errors import MillraceError
from tasks.fingerprints import Entries
from tasks.ledger import Ledger, from_bytes
from tasks.records import EmbedRecord, LedgerHead, Receipt, Segment
from tasks.settings import MAX_SEGMENTS_IN_FLIGHT

_UNFINISHED_SECONDS = 3600.0


class ReceiptLostError(MillraceError):
    """The store confirmed a segment, but its receipt could not be read back."""


class JobCheckpoints:
    """Finds what earlier runs left, numbers this run's segments, and compacts at its end."""

    def __init__(
        self,
        storage: CheckpointStorage,
        job: str,
        shard: int,
        warn: Callable[[str], None],
        *,
        keeps_vectors: bool = False,
    ) -> None:
        self.job = job
        self.shard = shard
        self.vectors = VectorParts(storage.blobs, job, shard, warn)
        self.ledger = Ledger()
        self._storage = storage
        self._blobs = storage.blobs
        self._warn = warn
        self._head = LedgerHead(generation=0, documents=0, digest="", next_sequence=0, delete_from=0)
        self._next_sequence = 0
        self._confirmed = bytearray()  # entries; one buffer, which goes back whole when they are folded
        self._keeps_vectors = keeps_vectors
        self.needs_vectors = keeps_vectors
        self.resumed = False
        self.has_kept_vectors = False

    @property
    def shards(self) -> int:
        """Of how many shards there may be something that this ledger does not cover."""
        return self._head.shards

    async def load(self) -> Ledger:
        """Read what earlier runs left; what they had embedded but not upserted becomes findable."""
        chapters = await self._compacted()
        sequence, gap = self._head.next_sequence, 0
        self._next_sequence = sequence
        while gap < MAX_SEGMENTS_IN_FLIGHT:
            window = range(sequence, sequence + AT_ONCE)
            receipts = await asyncio.gather(*map(self.receipt, window))
            # Vectors may lie beside a receipt, too: kept, or not yet dropped when a run was killed.
            remembered = await asyncio.gather(*map(self.vectors.remember, window))
            for number, receipt, has_vectors in zip(window, receipts, remembered, strict=True):
                if receipt is not None:
                    self.has_kept_vectors |= receipt.keeps_vectors
                    chapters.append(from_bytes(receipt.entries))
                elif not has_vectors:
                    gap += 1
                    continue
                gap, self._next_sequence = 0, number + 1
            sequence = window.stop
        self.ledger = Ledger.of(chapters)
        self.resumed = bool(len(self.ledger) or self.vectors.sequences)
        return self.ledger

    async def covered(self) -> Ledger:
        """What the last compaction wrote, for another shard to look at: nothing is changed or walked."""
        await self._read_head()
        return Ledger.of(await self._generation())

    def begin_with(self, ledger: Ledger) -> None:
        """Take what all shards had done before this run for done, too; what this one has done is newer."""
        self.ledger = Ledger.of([ledger.entries, self.ledger.entries])

    def take_sequence(self) -> int:
        """The number of this run's next segment."""
        self._next_sequence += 1
        return self._next_sequence - 1

    async def receipt(self, sequence: int) -> Receipt | None:
        """The receipt of a segment, or None where there is none (or it is damaged, which is said)."""
        record = await self._storage.record(keys.receipt_key(self.job, self.shard, sequence))
        return record if isinstance(record, Receipt) else None

    async def save(self, receipt: Receipt) -> None:
        """Write a receipt that no task run writes, and believe it as `confirm` does."""
        await result_store(self._storage).awrite(receipt, key=keys.receipt_key(self.job, self.shard, receipt.sequence))
        await self.confirm(receipt)

    async def confirm(self, receipt: Receipt) -> None:
        """Believe a receipt only when it can be read back: Prefect completes a task whose result it failed to save.

        Raises:
            ReceiptLostError: it can not.
        """
        if await self.receipt(receipt.sequence) != receipt:
            raise ReceiptLostError(
                f"receipt {receipt.sequence} of job {self.job} could not be saved: "
                "is the result storage full or read-only?"
            )
        self._confirmed += receipt.entries
        if receipt.keeps_vectors:
            self.needs_vectors = True
            await self.vectors.remember(receipt.sequence)

    async def drop_vectors(self, record: EmbedRecord, segment: Segment) -> None:
        """Delete the vectors of a segment whose receipt is there, and the embed record that points at them.

        Vectors that lie under another number (of a killed run, or of a twin in this one) stay: where that number has no
        receipt, they alone keep the walk of `load` from ending before it.
        """
        if (record.job, record.shard) != (self.job, self.shard):
            return
        if self._keeps_vectors:
            self.vectors.keep(record.sequence, record.parts)
            return
        if record.sequence == segment.sequence:
            await self.vectors.drop([record.sequence], record.parts)
        await self._blobs.delete(keys.embed_key(segment.vector_keys))

    def landed(self) -> Ledger:
        """The ledger with what this run has confirmed so far."""
        if not self._confirmed:
            return self.ledger
        before = [self.ledger.entries] if len(self.ledger) else []
        return Ledger.of([*before, from_bytes(self._confirmed)])

    async def rebuild(self) -> None:
        """Forget what was upserted, as if the job had never run; vectors that are on disk stay."""
        self.ledger, self._confirmed, self.resumed = Ledger(), bytearray(), False
        await self._write_generation()
        await self._delete_covered()

    async def compact(self) -> None:
        """Fold the receipts into one ledger file, then delete what it covers: when a run has seen its whole source."""
        if self._head.next_sequence != self._next_sequence:
            self.ledger, self._confirmed = self.landed(), bytearray()
            await self._write_generation()
            await self._delete_covered()
        if not self.needs_vectors:
            await self.drop_all_vectors()
        await self.sweep()

    async def sweep(self) -> None:
        """Remove the unfinished writes of killed runs. Embed records belong to no job: another may be writing one."""
        for prefix in keys.job_prefixes(self.job):
            await self._blobs.sweep(prefix)
        await self._blobs.sweep(keys.EMBEDS, older_than_seconds=_UNFINISHED_SECONDS)

    async def fold(self, others: Sequence[JobCheckpoints], shards: int) -> None:
        """Take what other shards have upserted into this ledger, which ``shards`` of them are going to begin with.

        A kill in here is harmless as long as the next writer folds again before anything is upserted: what it then
        takes in a second time is still the newest of its ids.
        """
        has_news = any(each._head.next_sequence != each._next_sequence for each in (self, *others))  # noqa: SLF001
        if not has_news and self._head.shards == shards:
            return
        self.ledger = Ledger.of([self.ledger.entries, *(other.ledger.entries for other in others)])
        await self._write_generation(shards)
        await self._delete_covered()
        for other in others:
            await other.cover()

    async def cover(self) -> None:
        """Say that another ledger holds what this shard has upserted, and delete its receipts."""
        if self._head.next_sequence != self._next_sequence:
            self.ledger = Ledger()
            await self._write_generation()
            await self._delete_covered()

    async def drop_all_vectors(self) -> None:
        """Delete every vector of this shard."""
        await self.vectors.drop(list(self.vectors.sequences))

    async def _compacted(self) -> list[Entries]:
        await self._read_head()
        if self._head.delete_from < self._head.next_sequence:
            await self._delete_covered()
        return await self._generation()

    async def _read_head(self) -> None:
        head = await self._storage.record(keys.ledger_head_key(self.job, self.shard))
        if isinstance(head, LedgerHead):
            self._head = head
            for sequence in head.keeps_vectors:
                await self.vectors.remember(sequence)

    async def _generation(self) -> list[Entries]:
        if not self._head.generation:
            return []
        content = await self._blobs.read(keys.ledger_key(self.job, self.shard, self._head.generation))
        if content is None or _digest(content) != self._head.digest:
            self._warn(f"the ledger of job {self.job} is damaged: what it covered is upserted again")
            return []
        return [from_bytes(content)]

    async def _write_generation(self, shards: int | None = None) -> None:
        generation, content = self._head.generation + 1, self.ledger.to_bytes()
        await self._blobs.write(keys.ledger_key(self.job, self.shard, generation), content, durable=True)
        await self._write_head(
            LedgerHead(
                generation=generation,
                documents=len(self.ledger),
                digest=_digest(content),
                next_sequence=self._next_sequence,
                delete_from=self._head.next_sequence,
                keeps_vectors=sorted(self.vectors.sequences),
                shards=shards or self._head.shards,
            )
        )

    async def _delete_covered(self) -> None:
        """Delete what the head covers. The head names the range, so that a kill in here only means doing it again."""
        head = self._head
        covered = range(head.delete_from, head.next_sequence)
        await each(self._blobs.delete, [keys.receipt_key(self.job, self.shard, sequence) for sequence in covered])
        await self._blobs.delete(keys.ledger_key(self.job, self.shard, head.generation - 1))
        await self._write_head(msgspec.structs.replace(head, delete_from=head.next_sequence))

    async def _write_head(self, head: LedgerHead) -> None:
        await result_store(self._storage).awrite(head, key=keys.ledger_head_key(self.job, self.shard))
        self._head = head


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()
