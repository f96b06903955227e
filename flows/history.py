"""A job's record and dead letters: what earlier runs left, and what this one leaves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import msgspec

from tasks.checkpoints.binding import SAMPLES, Collected, changes, check_collection, now, read_record, write_record
from tasks.checkpoints.letters import read_dead_letters, write_dead_letters
from tasks.checkpoints.storage import CheckpointStorage
from tasks.dead_letters import Choice, FiledLetter, Name, Replaying, Skipping, entries_of, merged, name_of
from tasks.ledger import Ledger
from tasks.records import JobRecord, Reason
from tasks.tally import Tally


class Checkpoints(Protocol):
    """What of a job's checkpoints is looked at: of a whole job, or of the only shard there is."""

    @property
    def ledger(self) -> Ledger:
        """What earlier runs upserted."""
        ...

    async def load(self) -> object:
        """Read what earlier runs left."""
        ...

    async def rebuild(self) -> None:
        """Forget it."""
        ...

    def landed(self) -> Ledger:
        """The ledger with what this run confirmed."""
        ...


class History:
    """One job's. ``record`` is what this run makes of it, ``letters`` are the dead letters on file."""

    def __init__(
        self, storage: CheckpointStorage, checkpoints: Checkpoints, record: JobRecord, warn: Callable[[str], None]
    ) -> None:
        self.record = record
        self.letters: list[FiledLetter] = []
        self._storage = storage
        self._checkpoints = checkpoints
        self._warn = warn

    async def open(self, collection: Collected | None, *, rebuild: bool) -> None:
        """Find what earlier runs did; what changed since is said, and nothing is skipped for a collection that lost it.

        Raises:
            UsageError: the collection does not hold what the ledger says.
        """
        before = await read_record(self._storage, self.record.job)
        await self._checkpoints.load()
        changed = [] if before is None else changes(before, self.record)
        if changed:
            self._warn(f"job {self.record.job}: {', '.join(changed)}; every document counts as changed")
        if changed or rebuild:
            await self._checkpoints.rebuild()
        if before is not None:
            kept = [] if changed else before.sample_ids
            self.record = msgspec.structs.replace(self.record, first_run_at=before.first_run_at, sample_ids=kept)
        documents = len(self._checkpoints.ledger)
        if collection is not None and documents:
            await check_collection(collection, documents, self.record.sample_ids)
        self.letters = await read_dead_letters(self._storage, self.record.job, self._warn)

    def choice(self, *, skips: bool, replaying: Collection[Reason] | None) -> Choice:
        """What a run concerns, see `choose`."""
        return choose(self.letters, skips=skips, replaying=replaying)

    async def file_dead_letters(self, tally: Tally, choice: Choice, *, is_whole: bool) -> None:
        """Write the dead letters after a run; after one that broke off, those stay that did not land."""
        landed = set() if is_whole else self._landed()
        keeps = choice.keeps if is_whole else lambda letter: name_of(letter) not in landed
        self.letters = merged(self.letters, tally.given_up, at=now(), keeps=keeps)
        await write_dead_letters(self._storage, self.record.job, self.letters)

    async def write(self, tally: Tally, *, state: str) -> None:
        """Write down what the job is bound to and how it stands."""
        self.record = msgspec.structs.replace(
            self.record,
            state=state,
            documents=len(self._checkpoints.landed()),
            dead_letters=len(self.letters),
            sample_ids=(tally.sample_ids + self.record.sample_ids)[:SAMPLES],
        )
        await write_record(self._storage, self.record)

    def _landed(self) -> set[Name]:
        known = [letter for letter in self.letters if letter.fingerprint]
        held = self._checkpoints.landed().holds(entries_of(known))
        return {name_of(letter) for letter, is_held in zip(known, held.tolist(), strict=True) if is_held}


def choose(letters: Sequence[FiledLetter], *, skips: bool, replaying: Collection[Reason] | None) -> Choice:
    """What a run concerns. ``replaying`` are reasons of dead letters that are sent alone; empty means all."""
    if replaying is not None:
        return Replaying([letter for letter in letters if letter.reason in (replaying or list(Reason))])
    return Skipping(letters) if skips else Choice()
